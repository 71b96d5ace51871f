"""A run folder whose study is lost, damaged or altered: nothing is run again, and one command makes the study anew."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.errors import RunError
from cdn_tune.report.record import read_record as read_for_report
from cdn_tune.tuning.rebuild import rebuild
from cdn_tune.tuning.results.record import front_trials, read_record
from cdn_tune.tuning.results.status import status_of
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.study.filtered_study import CONSTRAINT
from tests.epochs import epoch_line
from tests.tuning.test_search_rules import make_space, run_search

Entry = Callable[..., FrozenTrial]
MakeSearch = Callable[..., Path]
Tiny = Callable[..., Experiment]
LAYERS = {"type": "int", "low": 1, "high": 2}


def space(**more: Any) -> Any:
    """A space whose proposals are pruned, refused and copied."""
    return make_space(
        parameters={
            "model.map.layers": LAYERS,
            "optim.lr": {"type": "float", "low": 1e-3, "high": 1e-2, "step": 1e-3},
        },
        constraints=["optim.lr < 0.006"],
        early_stopping={"name": "median", "startup_trials": 1},
        start_with=[{"optim.lr": 4e-3, "model.map.layers": 1}],
        **more,
    )


@pytest.fixture
def searched(tiny: Tiny, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a finished search, whose study is in a database if an earlier version began it; returns its study."""

    def make(database: bool = False, trials: int = 5) -> Path:
        if trials not in _FINISHED:
            _FINISHED[trials] = tmp_path_factory.mktemp("finished") / "run"
            run_search(tiny, _FINISHED[trials], space(trials=trials), trials=trials)
        run = tmp_path / f"run-{trials}"
        shutil.copytree(_FINISHED[trials], run)
        if not database:
            return run / "study.journal"
        journal = open_storage(f"journal:///{run}/study.journal")
        optuna.copy_study(
            from_study_name="rules", from_storage=journal, to_storage=open_storage(f"sqlite:///{run}/study.db")
        )
        (run / "study.journal").unlink()
        return run / "study.db"

    return make


_FINISHED: dict[int, Path] = {}  # by number of trials


def shown(run: Path) -> list[dict[str, Any]]:
    """Returns the leaderboard but for when and how fast."""
    left_out = ("samples_per_second", "node", "gpu_hours", "of_epochs")
    rows = sorted(read_record(run).rows(), key=lambda row: row["trial"])
    return [{key: value for key, value in row.items() if key not in left_out} for row in rows]


def cut(path: Path) -> None:
    """As a file system loses the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES: Mapping[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "overwritten": lambda path: path.write_bytes(b"\0no study\n" * 99),
    "cut": cut,
}


@pytest.mark.parametrize("database", [False, True], ids=["journal", "database"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_search_without_its_study_is_refused_until_it_is_made_anew(
    tiny: Tiny, searched: Callable[..., Path], damage: str, database: bool
) -> None:
    study = searched(database)
    run = study.parent
    before, leaderboard = shown(run), (run / "leaderboard.json").read_bytes()
    assert {"complete", "pruned", "refused"} <= {row["state"] for row in before}
    DAMAGES[damage](study)
    with pytest.raises(RunError, match=rf"cdn-tune search rebuild {run} makes it anew") as error:
        run_search(tiny, run, space(), trials=5)
    assert "another" not in str(error.value)
    assert (run / "leaderboard.json").read_bytes() == leaderboard
    record, status = read_record(run), status_of(run)
    assert record.notice is not None
    assert "shown is what the run folder records" in record.notice
    assert (status.notice, status.ended, status.best) == (record.notice, 5, {**status.best, "rank": 1})
    assert record.notice in read_for_report(run).notices
    assert shown(run) == before
    result = CliRunner().invoke(app, ["search", "rebuild", str(run)])
    assert result.exit_code == 0, result.output
    assert "[I " not in result.output  # Optuna's own lines
    assert read_record(run).attributes["planted"] is True  # known by the manifest until the search goes on
    assert read_record(run).notice is None
    assert shown(run) == before
    assert (run / "study.journal.old").exists() or damage == "deleted" or database
    assert run_search(tiny, run, space(), trials=5).was_finished
    run_search(tiny, run, space(), trials=6)
    longer = shown(searched(trials=6).parent)
    assert [row["optim.lr"] for row in shown(run)] == [row["optim.lr"] for row in longer]  # as if nothing was lost
    with pytest.raises(RunError, match="there is nothing to make anew"):
        rebuild(run)


def test_a_study_of_yesterday_is_refused(tiny: Tiny, searched: Callable[..., Path]) -> None:
    """A copy that was brought back knows some trials as running that have ended since."""
    run = searched().parent
    lines = (run / "study.journal").read_bytes().splitlines(keepends=True)
    last_end = max(place for place, line in enumerate(lines) if b'"state":1' in line or b'"state":2' in line)
    (run / "study.journal").write_bytes(b"".join(lines[:last_end]).rstrip() + b"\n")
    with pytest.raises(RunError, match="does not know 1 of the trials"):
        run_search(tiny, run, space(), trials=5)
    rebuild(run)
    assert run_search(tiny, run, space(), trials=5).was_finished


def epoch(number: int, value: float, best: float, best_epoch: int) -> dict[str, Any]:
    val = {"R1@0.5": value, "mIoU": value / 2}
    return epoch_line(number, value, val=val, best_value=best, best_epoch=best_epoch, loss=0.5, steps=10 * number)


def add_trial(run: Path, number: int, epochs: list[dict[str, Any]], experiment: Experiment | None = None) -> None:
    """Adds what a trial has written; an experiment is that of its kept checkpoint."""
    folder = run / "trials" / f"{number:04d}"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in epochs))
    if experiment is not None:
        kept = run / "best" / f"trial-{number:04d}"
        kept.mkdir(parents=True)
        (kept / "experiment.yaml").write_text(dump(experiment.plain()))
        (kept / "checkpoint.pt").touch()
        (kept / "record.json").write_text(json.dumps({"value": 0.123456789}))


@pytest.mark.parametrize("going_on", ["running", "paused"])
def test_metrics_and_kept_checkpoints_tell_what_the_leaderboard_does_not(
    going_on: str, tiny: Tiny, make_search: MakeSearch
) -> None:
    run = make_search([])
    rows = [
        {"trial": 0, "state": "complete", "value": 0.3333, "epochs": 2, "of_epochs": 3, "optim.lr": 1e-3},
        {"trial": 1, "state": going_on, "epochs": 1, "optim.lr": 2e-3},
        {"trial": 2, "state": "running", "epochs": 1, "optim.lr": 4e-3},
        {"trial": 3, "state": "failed", "optim.lr": 5e-3, "failure": "memory", "reason": "no memory"},
    ]
    (run / "leaderboard.json").write_text(json.dumps(rows))
    add_trial(run, 0, [epoch(1, 1 / 3, 1 / 3, 1), epoch(2, 0.2, 1 / 3, 1), epoch(3, 0.9, 0.9, 3)])
    add_trial(run, 1, [epoch(1, 0.1, 0.1, 1), epoch(2, 0.2, 0.2, 2)])  # taken up again from its checkpoint
    (run / "trials/0001/checkpoints").mkdir()
    (run / "trials/0001/checkpoints/last.pt").touch()
    add_trial(run, 2, [epoch(1, 0.1, 0.1, 1)])  # its checkpoint is gone: it was stopped early, and that was lost
    add_trial(run, 5, [epoch(number, 0.5, 0.5, 1) for number in (1, 2, 3)], tiny(**{"optim.lr": 6e-3}))
    add_trial(run, 6, [epoch(1, 0.5, 0.5, 1)])
    (run / "study.journal").unlink()
    found = rebuild(run)
    trials = read_record(run).entries
    states = ["COMPLETE", "RUNNING", "PRUNED", "FAIL", "FAIL", "COMPLETE", "FAIL", "WAITING"]
    assert [trial.state.name for trial in trials] == states  # the last: the base experiment, which was no trial's
    assert trials[0].intermediate_values == {1: 1 / 3, 2: 1 / 3}  # exact, and no epoch that was never reported
    assert (trials[0].user_attrs["best_epoch"], trials[0].user_attrs["val"]["mIoU"]) == (1, 1 / 6)
    assert trials[1].intermediate_values == {1: 0.1, 2: 0.2}
    assert trials[3].system_attrs[f"{CONSTRAINT}memory"] == 1.0
    assert trials[5].params["optim.lr"] == 6e-3
    assert found.unknown == [4, 6]  # their numbers, and folders, are not used again
    assert (run / "trials/0006/metrics.jsonl").exists()


def test_objectives_and_other_entries_are_made_anew(make_search: MakeSearch, entry: Entry) -> None:
    both = ["R1@0.5", "parameters"]
    entries = [
        entry("complete", [0.5], values=[0.5, 300.0], parameters=300, kernels=[3, 5]),
        entry("complete", [0.5], values=[0.5, 300.0], parameters=300, kernels=[3, 5], role="copy", copy_of=0),
        entry("failed", reason="no worker", failure="lost"),
        entry("complete", [0.6], values=[0.6, 200.0], parameters=200, role="learned", learned_from="x", epochs=1),
        entry("running", [0.2], retry_of=2),
    ]
    run = make_search(entries, space={"objectives": both}, directions=["maximize", "minimize"])
    from cdn_tune.tuning.results.leaderboard import write_leaderboard

    write_leaderboard(run, read_record(run).rows())
    before = read_record(run)
    (run / "study.journal").unlink()
    with pytest.raises(RunError, match="search rebuild"):
        front_trials(run)  # a look at test is not spent on rounded values
    add_trial(run, 4, [epoch(1, 0.2, 0.2, 1)])
    (run / "trials/0004/checkpoints").mkdir()
    (run / "trials/0004/checkpoints/last.pt").touch()
    rebuild(run)
    after = read_record(run)
    for name in ("values", "params", "state"):
        found, expected = ([getattr(trial, name) for trial in each.entries[:5]] for each in (after, before))
        assert found == expected
    assert front_trials(run) == [0]
    for key in ("role", "copy_of", "learned_from", "retry_of", "failure", "reason"):
        found, expected = ([trial.user_attrs.get(key) for trial in each.entries[:5]] for each in (after, before))
        assert found == expected


@pytest.mark.parametrize(
    "content",
    [
        "[", "{}", "7", "[1]", '[{"trial": -1, "state": "complete"}]', '[{"trial": 0, "state": "gone"}]', "[" * 99_999,
        '[{"trial": 0, "state": "complete", "optim.lr": "fast"}]',
        '[{"trial": 0, "state": "complete", "optim.lr": 0.001, "epochs": "two"}]',
        '[{"trial": 0, "state": "copy", "copy_of": 7, "optim.lr": 0.001}]',
        '[{"trial": 99999999, "state": "complete", "optim.lr": 0.001}]',
    ],
)  # fmt: skip
def test_a_damaged_leaderboard_is_one_line(content: str, make_search: MakeSearch) -> None:
    run = make_search([])
    (run / "study.journal").unlink()
    (run / "leaderboard.json").write_text(content)
    with pytest.raises(RunError) as error:
        rebuild(run)
    assert "\n" not in str(error.value)
    assert str(run) in str(error.value)


# What may be wrong in a study: SQL for a database, a change of the lines of a journal.
TRIAL = "trial_user_attributes set value_json = {!r} where key = {!r}"


def journal_attribute(key: str, value: str) -> Callable[[str], str]:
    def change(content: str) -> str:
        found = []
        for line in content.splitlines():
            log = json.loads(line)
            if key in log.get("user_attrs", {}):
                log["user_attrs"][key] = "CHANGED"
            found.append(json.dumps(log, separators=(",", ":")).replace('"CHANGED"', value))
        return "\n".join(found) + "\n"

    return change


ATTRIBUTES = [
    ("best_epoch", '"two"'), ("epoch", "NaN"), ("epochs", "null"), ("seconds", "1e999"), ("val", "[1]"),
    ("samples_per_second", '"x"'),
    ("val", '{"R1@0.5": "high"}'), ("segments", '[["a", "b", 3]]'), ("segments", "7"), ("best_epoch", "[" * 5000),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ATTRIBUTES)
@pytest.mark.parametrize("database", [False, True], ids=["journal", "database"])
def test_an_attribute_of_another_kind_is_one_line(
    key: str, value: str, database: bool, make_search: MakeSearch, entry: Entry
) -> None:
    run = make_search([entry("complete", [0.5], segments=[["a", 0.0, 1.0]])], database=database)
    if database:
        with closing(sqlite3.connect(run / "study.db")) as connection, connection:
            changed = connection.execute(
                "update trial_user_attributes set value_json = ? where key = ?", [value, key]
            ).rowcount
        assert changed == 1
    else:
        path = run / "study.journal"
        before = path.read_text()
        path.write_text(journal_attribute(key, value)(before))
        assert path.read_text() != before
    refused(run)


STATEMENTS = [
    "update trials set state = 'LOST'",
    "update trial_values set value = null, value_type = 'FINITE'",
    "delete from trial_values",
    "update trial_values set value = null, value_type = 'INF_POS'",
    "insert into study_directions (direction, study_id, objective) values ('MINIMIZE', 1, 1)",
    "update study_directions set direction = 'MINIMIZE'",
    "update trial_params set distribution_json = '{}'",
    "update trial_params set param_name = 'model.unheard_of' where param_name = 'optim.lr'",
    "update trial_params set param_value = 'fast'",
    "update trial_intermediate_values set intermediate_value = 'high'",
    "update trials set datetime_complete = null",
    "update trials set datetime_start = 'yesterday'",
    "update trials set number = 7",
    "drop table trial_params",
    "create view more as with recursive n(x) as (select 1 union all select x + 1 from n) select x from n",
    "create trigger more after insert on trials begin select 1; end",
    "create virtual table more using fts5(text)",
    "alter table trials add column more as (hex(zeroblob(1000000)))",
    "drop table trials; create view trials as with recursive n(x) as (select 1 union all select x + 1 from n) select x "
    "as trial_id, 0 as number, 1 as study_id, 'COMPLETE' as state, null as datetime_start, null as datetime_complete "
    "from n",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_database_that_no_search_wrote_is_one_line(statement: str, make_search: MakeSearch, entry: Entry) -> None:
    run = make_search([entry("complete", [0.5])], database=True)
    with closing(sqlite3.connect(run / "study.db")) as connection, connection:
        connection.executescript(statement)
    refused(run)


def test_a_journal_that_names_further_files_is_not_rolled_back(make_search: MakeSearch, entry: Entry) -> None:
    """SQLite deletes the file that it names."""
    from cdn_tune.tuning.storage.sqlite import copy_database

    run = make_search([entry("complete", [0.5])], database=True)
    (run / "study.db-journal").write_bytes(b"\0" * 512 + b"/home/me/file" + bytes.fromhex("d9d505f920a163d7"))
    (run / "copy").mkdir()
    with pytest.raises(ValueError, match="belongs to several databases"):
        copy_database(run / "study.db", run / "copy")


LINES = [
    lambda text: text.replace('"state":1', '"state":9'),
    lambda text: text.replace('"values":[0.5]', '"values":["x"]').replace('"value":0.5', '"value":"x"'),
    lambda text: text.replace('"directions":[2]', '"directions":[2,1]'),
    lambda text: text.replace('"op_code":4', '"op_code":99'),
    lambda text: text + '{"op_code":8,"worker_id":"x","trial_id":0,"user_attr":{"seconds":' + "[" * 5000 + "}}\n" * 2,
    lambda text: text + "[1]\n7\n",
]


@pytest.mark.parametrize("change", LINES)
def test_a_journal_that_no_search_wrote_is_one_line(
    change: Callable[[str], str], make_search: MakeSearch, entry: Entry
) -> None:
    run = make_search([entry("complete", [0.5])])
    path = run / "study.journal"
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    refused(run)


def refused(run: Path) -> None:
    """Checks that a study is refused in one line, and is made anew if the folder shows its trials."""
    with pytest.raises(RunError, match=r"search rebuild '.*' makes it anew") as error:
        read_record(run)
    assert "\n" not in str(error.value)
    with pytest.raises(RunError, match="without its study nothing of it is left"):
        rebuild(run)
    (run / "leaderboard.json").write_text('[{"trial": 0, "state": "complete", "value": 0.5, "optim.lr": 0.001}]')
    record = read_record(run)
    assert record.notice is not None
    assert str(error.value) in record.notice
    assert record.rows()[0]["value"] == 0.5
    rebuild(run)
    assert read_record(run).notice is None


def test_a_folder_with_a_trial_of_no_epoch_is_no_obstacle(make_search: MakeSearch, entry: Entry) -> None:
    """Its record may have been lost with its machine; nothing was reached."""
    run = make_search([entry("complete", [0.5])])
    add_trial(run, 1, [])
    assert read_record(run).notice is None
    add_trial(run, 2, [epoch(1, 0.5, 0.5, 1)])
    assert read_record(run).notice is not None
    shutil.rmtree(run / "trials")
    assert read_record(run).entries[0].state == TrialState.COMPLETE


def test_confirmations_come_back_with_a_study_made_anew(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    confirming = make_space(trials=6, confirm={"top": 2, "seeds": 2})
    run_search(tiny, run, confirming)
    before = shown(run)
    assert sum(row["confirms"] != "" for row in before) == 4
    (run / "study.journal").unlink()
    assert shown(run) == before
    rebuild(run)
    assert shown(run) == before
    assert run_search(tiny, run, confirming).was_finished
