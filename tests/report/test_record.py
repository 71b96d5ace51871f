"""Reading a run folder for the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cdn_tune.config import Experiment
from cdn_tune.errors import RunError
from cdn_tune.report.record import hide_passwords, read_record, stamp

Tiny = Callable[..., Experiment]
MakeRun = Callable[..., Path]


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
