"""Reading a run folder for the report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import read_mapping
from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.report import page
from cdn_tune.report.record import hide_passwords, read_record, stamp
from tests.epochs import epoch_line

Tiny = Callable[..., Experiment]
MakeRun = Callable[..., Path]
CASES = int(os.environ.get("CDN_TUNE_EXAMPLES", "6"))


def rename(run: Path) -> None:
    path = run / "search_space.yaml"
    path.write_text(path.read_text().replace("made-up", "another"))


def test_reads_a_search(make_run: MakeRun, tiny: Tiny) -> None:
    record = read_record(make_run(tiny(), trials=24, evaluated=True))
    assert record.is_search
    assert record.name == "made-up"
    assert len(record.trials) == 24
    assert record.metric == "R1@0.5"
    assert record.planted
    assert record.evaluation
    assert record.notices == ()


def test_reading_changes_nothing(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), trials=3)
    before = stamp(run)
    read_record(run)
    assert stamp(run) == before  # or a served report would be built for ever


def test_the_stamp_follows_the_record(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), trials=3)
    before = stamp(run)
    (run / "evaluation.json").write_text("{}")
    assert stamp(run) != before


def test_a_damaged_evaluation_is_a_notice(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), trials=3)
    (run / "evaluation.json").write_text('{"metrics":')
    record = read_record(run)
    assert record.evaluation is None
    assert len(record.notices) == 1
    assert "evaluation.json" in record.notices[0]


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda run: (run / "study.db").unlink(), "no .*study"),
        (lambda run: (run / "study.db").write_bytes(b"no database" * 200), "cannot be read"),
        (rename, "no study named another"),
        (lambda run: (run / "manifest.json").unlink(), "not a run folder"),
    ],
)
def test_what_cannot_be_read_is_told(
    make_run: MakeRun, tiny: Tiny, break_it: Callable[[Path], object], told: str
) -> None:
    run = make_run(tiny(), trials=3)
    break_it(run)
    with pytest.raises(RunError, match=told):
        read_record(run)


def test_a_storage_that_is_not_there_is_told_and_not_created(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), trials=3)
    manifest = json.loads((run / "manifest.json").read_text())
    url = f"sqlite:///{run}/elsewhere/none.db"
    (run / "manifest.json").write_text(json.dumps({**manifest, "storage": url}))
    with pytest.raises(RunError, match=r"none\.db"):
        read_record(run)
    assert not (run / "elsewhere").exists()


def test_passwords_are_hidden() -> None:
    value = {"storage": "postgresql://me:hush@host/db", "command": ["x", "mysql://me:hush@h/d", 3]}
    hidden = hide_passwords(value)
    assert "hush" not in str(hidden)
    assert hidden["storage"] == "postgresql://me:***@host/db"
    assert hidden["command"][2] == 3


EPOCH = epoch_line(1, 0.4)
DAMAGE: list[Any] = [None, True, "text", -1, 10**400, [], [[]], {}, {"a": {"b": [1, "2"]}}, 1.5, float("nan"), [None]]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a plain one, and its own."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def damaged(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A plain value with another one at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = damaged(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", ["evaluation.json", "manifest.json", "metrics.jsonl", "experiment.yaml"])
@pytest.mark.parametrize("kind", ["search", "train"])
def test_a_page_is_built_of_damaged_files(
    make_run: MakeRun, tiny: Tiny, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value of a file in turn is another one: what is wrong is a notice or one line, and never a traceback."""
    monkeypatch.setattr(page, "landscape", lambda _: [])  # reads the study alone, and takes long
    run = make_run(tiny(), trials=2, evaluated=True)
    if kind == "train":
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "kind": "train"}))
    trial = run / "trials/0000"
    trial.mkdir(parents=True)
    for folder in (run, trial):
        (folder / "metrics.jsonl").write_text(json.dumps(EPOCH) + "\n")
    paths = [run / name, trial / name] if name == "metrics.jsonl" else [run / name]
    good = EPOCH if name == "metrics.jsonl" else read_mapping(run / name)
    random = Random(name + kind)
    for path in random.sample(list(places(good)), min(CASES, len(list(places(good))))):
        text = json.dumps(damaged(good, path, random.choice(DAMAGE)))  # JSON is YAML, too
        for file in paths:
            file.write_text(text)
        try:
            shown = page.Builder(run, views=0).build(1.78e9).html
        except CdnTuneError as error:
            shown = str(error)
        assert "</html>" in shown or name in shown, text


def test_damaged_records_are_told(make_run: MakeRun, tiny: Tiny) -> None:
    run = make_run(tiny(), trials=2, evaluated=True)
    (run / "trials/0001").mkdir(parents=True)
    (run / "trials/0001/metrics.jsonl").write_text(json.dumps(EPOCH) + '\n{"epoch": "2"}\n')
    (run / "evaluation.json").write_text('{"metrics": [1]}')
    record = read_record(run)
    assert record.curves[1] == [EPOCH]
    assert record.evaluation is None
    assert [notice.rpartition("/")[2].partition(": ")[0] for notice in record.notices] == [
        "metrics.jsonl",
        "evaluation.json",
    ]
    assert all(len(notice.splitlines()) == 1 for notice in record.notices)
