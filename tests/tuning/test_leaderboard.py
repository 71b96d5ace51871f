"""The leaderboard: every entry on record, ranked, in files that programs and spreadsheets read alike."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from cdn_tune.errors import ConfigError, RunError
from cdn_tune.tuning.results.filters import find_column, parse_filter, sort_rows
from cdn_tune.tuning.results.importance import importance
from cdn_tune.tuning.results.leaderboard import csv_text, json_text, leaderboard, occupied_seconds, write_leaderboard
from cdn_tune.tuning.results.record import Record, read_record

Entry = Callable[..., FrozenTrial]
MakeSearch = Callable[..., Path]
PARAMETERS = ["optim.lr", "model.attention_steps", "model.map.kernel_size"]
METRICS = ["R1@0.5", "mIoU"]


def number(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    for place, trial in enumerate(trials):
        trial.number = place
    return trials


def rows_of(trials: list[FrozenTrial], **more: Any) -> list[dict[str, Any]]:
    return leaderboard(number(trials), PARAMETERS, METRICS, **more)


def test_every_entry_has_a_row_and_only_own_trials_are_ranked(entry: Entry) -> None:
    rows = rows_of(
        [
            entry("failed", role="refused", reason="parameters <= 4e8 does not hold"),
            entry("complete", [0.9], role="learned", learned_from="runs/other"),
            entry("complete", [0.2, 0.4]),
            entry("complete", [0.4], role="copy", copy_of=2),
            entry("pruned", [0.5, 0.3], reason="stopped early"),
            entry("failed", reason="out of memory", failure="memory"),
            entry("running", [0.6], retry_of=5),
        ]
    )
    assert [(row["rank"], row["trial"], row["state"], row["value"]) for row in rows] == [
        (1, 4, "pruned", 0.5),
        (2, 2, "complete", 0.4),
        ("", 6, "running", 0.6),
        ("", 5, "failed", ""),
        ("", 1, "learned", 0.9),
        ("", 3, "copy", 0.4),
        ("", 0, "refused", ""),
    ]
    by_trial = {row["trial"]: row for row in rows}
    assert by_trial[4]["best_epoch"] == 1
    assert by_trial[4]["val mIoU"] == 0.25
    assert (by_trial[2]["epochs"], by_trial[2]["of_epochs"], by_trial[2]["seconds"]) == (2, 3, 20.0)
    assert by_trial[3]["copy_of"] == 2
    assert (by_trial[6]["retry_of"], by_trial[5]["tried_again"], by_trial[4]["tried_again"]) == (5, 1, "")
    assert by_trial[5]["failure"] == "memory"
    assert by_trial[1]["learned_from"] == "runs/other"


def test_progress_is_in_epochs_where_intermediate_values_are_by_step(entry: Entry) -> None:
    trial = entry("running", [0.1, 0.2], epoch=1, steps_=0)
    trial.intermediate_values = {120: 0.1, 240: 0.2}
    assert rows_of([trial])[0]["epochs"] == 1


def test_values_per_layer_are_one_list_in_the_layers_order(entry: Entry) -> None:
    trial = entry("complete", [0.5], kernels=[3, 5, 5])
    names = sorted(trial.params, reverse=True)  # as a storage may give them
    trial.params = {name: trial.params[name] for name in names}
    row = rows_of([trial])[0]
    assert row["model.map.kernel_size"] == [3, 5, 5]
    assert row["model.attention_steps"] == ""


def test_the_pareto_front_is_marked(entry: Entry) -> None:
    both = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    trials = [
        entry("complete", [0.5], values=[0.5, 300.0], parameters=300),
        entry("complete", [0.4], values=[0.4, 100.0], parameters=100),
        entry("complete", [0.3], values=[0.3, 200.0], parameters=200),
        entry("pruned", [0.6]),
    ]
    rows = rows_of(trials, directions=both)
    assert {row["trial"] for row in rows if row["pareto"] == 1} == {0, 1}
    assert {row["trial"]: row["parameters"] for row in rows}[1] == 100
    assert "pareto" not in rows_of(trials, directions=both[:1])[0]


def test_gpu_hours_count_what_was_occupied_once(entry: Entry) -> None:
    side_by_side = [["a", 0.0, 100.0], ["b", 50.0, 150.0], ["a", 1000.0, 1050.0], ["a", 2000.0, None]]
    assert occupied_seconds({"segments": side_by_side, "seconds": 3.0}) == 200.0
    assert occupied_seconds({"seconds": 30.0}) == 30.0
    row = rows_of([entry("complete", [0.5], segments=side_by_side)], gpus=0.5)[0]
    assert row["gpu_hours"] == pytest.approx(200 * 0.5 / 3600, abs=1e-5)
    assert row["node"] == "a b"


def test_files_say_the_same(entry: Entry, tmp_path: Path) -> None:
    evil = 'shape, "wrong"\n=1+1'
    rows = rows_of(
        [entry("complete", [0.5], kernels=[3, 5]), entry("failed", reason=evil), entry("failed", reason="=A1")]
    )
    path = write_leaderboard(tmp_path, rows)
    frame = pandas.read_csv(path)
    assert list(frame.columns) == list(rows[0])
    assert len(frame) == 3
    assert frame["reason"][1] == evil  # whole, with its comma, quotes and line break
    assert frame["reason"][2] == "'=A1"  # no formula
    assert json.loads(frame["model.map.kernel_size"][0]) == [3, 5]
    assert frame["value"][0] == 0.5
    read = json.loads((tmp_path / "leaderboard.json").read_text())
    assert [row["trial"] for row in read] == [row["trial"] for row in rows]
    assert read[0]["model.map.kernel_size"] == [3, 5]
    assert "model.attention_steps" not in read[0]
    assert read[2]["reason"] == "=A1"


def test_not_finite_values_are_written_and_never_ranked(entry: Entry, tmp_path: Path) -> None:
    trial = entry("failed", [0.1], val={"R1@0.5": float("nan")}, loss=float("inf"))
    trial.intermediate_values = {1: float("nan")}
    rows = rows_of([trial])
    write_leaderboard(tmp_path, rows)
    assert json.loads((tmp_path / "leaderboard.json").read_text())[0]["loss"] == "inf"
    assert (rows[0]["rank"], rows[0]["value"]) == ("", "")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
@example("\r=1")
@example("a\rb")
def test_any_text_survives_csv_and_starts_no_formula(text: str) -> None:
    read = next(iter(csv.DictReader(io.StringIO(csv_text([{"a": 1, "reason": text}]), newline=""))))["reason"]
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    assert read in (lines, f"'{lines}")
    assert not read.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


def test_no_rows_make_empty_files(tmp_path: Path) -> None:
    assert write_leaderboard(tmp_path, []).read_text() == ""
    assert json.loads(json_text([])) == []


COLUMNS = ["trial", "state", "value", "val R1@0.5", "optim.lr", "model.map.layers", "model.map.kernel_size", "reason"]
ROWS: list[dict[str, Any]] = [
    dict(zip(COLUMNS, row, strict=True))
    for row in [
        (0, "complete", 0.5, 0.5, 0.01, 3, [3, 3, 5], ""),
        (1, "pruned", 0.4, 0.4, 0.001, 2, [3, 3], "lags"),
        (2, "failed", "", "", 0.02, "", "", "nan"),
    ]
]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("val R1@0.5 >= 0.4", [0, 1]),
        ("R1@0.5>0.4", [0]),
        ("value < 1e9", [0, 1]),  # no value satisfies nothing
        ("state == complete", [0]),
        ("state=complete", [0]),
        ("state != 'complete'", [1, 2]),
        ("model.map.layers > 2", [0]),
        ("layers <= 3", [0, 1]),
        ("layers == none", [2]),
        ("layers != none", [0, 1]),
        ("kernel_size == [3, 3]", [1]),
        ("kernel_size <= 3", [1]),  # every layer
        ("optim.lr < 2e-2", [0, 1]),
        ("reason == lags", [1]),
    ],
)
def test_filters(text: str, kept: list[int]) -> None:
    test = parse_filter(text, COLUMNS)
    assert [row["trial"] for row in ROWS if test(row)] == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("statee == complete", "unknown column statee; did you mean state?"),
        ("optim.rl > 1", "did you mean optim.lr"),
        ("state", "is no comparison"),
        ("value >=", "is no comparison"),
        ("state > complete", "compares numbers"),
        ("__import__('os') == 1", "unknown column"),
    ],
)
def test_wrong_filters_are_told(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="--filter") as error:
        parse_filter(text, COLUMNS)
    assert message in str(error.value)


def test_an_ambiguous_name_is_told() -> None:
    with pytest.raises(ConfigError, match=r"lr may be a\.lr or b\.lr"):
        find_column("lr", ["a.lr", "b.lr"], "--sort lr")


def test_sorting_puts_the_best_first_and_the_missing_last() -> None:
    def order(key: str) -> list[int]:
        return [row["trial"] for row in sort_rows(ROWS, key, COLUMNS)]

    assert order("R1@0.5") == [0, 1, 2]
    assert order("-value") == [1, 0, 2]
    assert order("lr") == [1, 0, 2]
    assert order("-lr") == [2, 0, 1]
    assert order("kernel_size") == [1, 0, 2]


@pytest.mark.parametrize("name", ["study.journal", "study.db"])
def test_the_record_is_read_without_a_trace(name: str, make_search: MakeSearch, entry: Entry) -> None:
    run = make_search([entry("complete", [0.5])], database=name == "study.db", planted=True)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}
    (run / name).chmod(0o444)
    run.chmod(0o555)
    try:
        record = read_record(run)
    finally:
        run.chmod(0o755)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()} == before
    assert record.attributes["planted"] is True
    assert record.rows()[0]["value"] == 0.5


def test_a_killed_writers_journal_is_no_obstacle(make_search: MakeSearch, entry: Entry) -> None:
    """A driver killed within a write leaves a hot journal: a reader must see the state before that write."""
    import os
    import signal
    import subprocess
    import sys

    run = make_search([entry("complete", [0.5])], database=True)
    script = (
        "import sqlite3, sys, os, signal\n"
        "db = sqlite3.connect(sys.argv[1])\n"
        "db.execute('PRAGMA cache_size=1'); db.execute('BEGIN IMMEDIATE')\n"
        "db.execute('UPDATE trial_values SET value = 0.9')\n"
        "db.execute('CREATE TABLE filler (x)')\n"
        "db.executemany('INSERT INTO filler VALUES (?)', [('y' * 3000,)] * 200)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, run / "study.db"], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.path.getsize(run / "study.db-journal") > 0
    assert read_record(run).entries[0].values == [0.5]
    assert (run / "study.db-journal").exists()  # rolled back in a copy alone


def test_a_journal_is_read_while_it_is_written(make_search: MakeSearch, entry: Entry) -> None:
    """Also if its writer was killed within a line; the line stays for the next writer to cut off."""
    run = make_search([entry("complete", [0.5]), entry("complete", [0.6])])
    journal = run / "study.journal"
    whole = journal.read_bytes()
    for torn in (whole + b'{"op_code":4,"worker', whole[:-5], whole + b"\0" * 9):
        journal.write_bytes(torn)
        assert [trial.value for trial in read_record(run).entries] == [0.5, 0.6][: 1 + (len(torn) > len(whole))]
        assert journal.read_bytes() == torn


def test_what_cannot_be_read_is_told(make_search: MakeSearch, entry: Entry, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        read_record(tmp_path / "absent")
    run = make_search([entry("complete", [0.5])])
    (run / "study.journal").unlink()
    with pytest.raises(RunError, match="has no study yet"):
        read_record(run)
    assert not (run / "study.journal").exists()  # reading creates nothing
    (run / "study.journal").write_text("no journal at all\n" * 2)
    with pytest.raises(RunError, match="its study cannot be read"):
        read_record(run)
    (run / "study.db").write_text("no database at all" * 100)
    with pytest.raises(RunError, match="its study cannot be read"):
        read_record(run)
    with pytest.raises(RunError, match="a storage of unknown kind"):
        read_record(run, "no url")
    with pytest.raises(RunError, match=r"postgresql\+?\w*://me:\*\*\*@") as error:
        read_record(run, "postgresql://me:secret@127.0.0.1:1/none?connect_timeout=1")
    assert "secret" not in str(error.value)
    (run / "manifest.json").write_text('{"kind": "train"}')
    with pytest.raises(RunError, match="is a train run"):
        read_record(run)


def test_a_journal_storage_is_read(make_search: MakeSearch, entry: Entry, tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    run = make_search([])
    path = tmp_path / "study.log"
    with pytest.raises(RunError, match="has no study yet"):
        read_record(run, f"journal:///{path}")
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name="tiny-search", direction="maximize")
    study.add_trial(entry("complete", [0.7], kernels=[5, 3, 5]))
    assert read_record(run, f"journal:///{path}").rows()[0]["model.map.kernel_size"] == [5, 3, 5]
    manifest = {"kind": "search", "storage": f"journal:///{path}"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert read_record(run).rows()[0]["value"] == 0.7


def make_trials(entry: Entry, count: int = 40) -> list[FrozenTrial]:
    """The value follows the learning rate; conditional steps and layers do nothing."""
    return [
        entry(
            "complete",
            [0.9 - abs(place - 30) / 50],
            lr=10 ** (-4 + 3 * place / count),
            kernels=[3, 5, 3][: 1 + place % 3],
            steps=1 + place % 2 if place % 4 else None,
        )
        for place in range(count)
    ]


def recorded(make_search: MakeSearch, trials: list[FrozenTrial], run: Path | None = None) -> Record:
    """A record with these trials, without writing every one of them to disk."""
    return replace(read_record(make_search([], run)), entries=number(trials))


@pytest.mark.parametrize("evaluator", ["ped-anova", "fanova"])
def test_importance_finds_what_mattered(make_search: MakeSearch, entry: Entry, evaluator: Any) -> None:
    trials = make_trials(entry)
    confusing = [entry("complete", [0.99], lr=1e-4, role="copy", copy_of=0) for _ in range(5)]
    record = recorded(make_search, [*trials, *confusing, entry("pruned", [0.99], lr=1e-4)])
    found = importance(record, evaluator)
    assert found.trials == 40
    assert not found.is_uncertain
    assert next(iter(found.shares)) == "optim.lr"
    assert sum(found.shares.values()) == pytest.approx(1)
    assert importance(record, evaluator) == found  # repeatable
    conditional = {"model.attention_steps", "model.map.kernel_size[1]", "model.map.kernel_size[2]"}
    assert "model.map.kernel_size[0]" in {**found.shares, **found.left_out}
    if evaluator == "fanova":
        assert conditional <= found.left_out.keys()
        assert "conditional: sampled in 30 of 40 trials" in found.left_out["model.attention_steps"]
    else:
        assert conditional <= found.shares.keys()
        assert found.sampled["model.attention_steps"] == 30


def test_importance_needs_trials_and_its_library(
    make_search: MakeSearch, entry: Entry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="1 of its trials is complete, and importance needs two"):
        importance(recorded(make_search, [entry("complete", [0.5])]))
    record = recorded(make_search, make_trials(entry, 4), tmp_path / "few")
    assert importance(record).is_uncertain
    from optuna.importance._fanova import _fanova

    def missing() -> None:
        raise ImportError("sklearn")

    monkeypatch.setattr(_fanova._imports, "check", missing)
    with pytest.raises(ConfigError, match=r"pip install 'cdn-tune\[fanova\]'"):
        importance(record, "fanova")


def test_one_value_cannot_matter(make_search: MakeSearch, entry: Entry) -> None:
    trials = [entry("complete", [0.1 * place]) for place in range(1, 4)]
    for trial in trials:
        name = "optim.lr"
        trial.distributions[name] = type(trial.distributions[name])(1e-3, 1e-3)
    found = importance(recorded(make_search, trials))
    assert found.left_out["optim.lr"] == "has one value only"
    assert found.left_out["model.attention_steps"] == "never sampled in a complete trial"
