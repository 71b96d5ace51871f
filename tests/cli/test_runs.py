"""`cdn-tune runs` on real and made runs: what it shows, and what damaged and hostile folders may not do."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from optuna.trial import FrozenTrial
from typer.testing import CliRunner, Result

from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.evaluation import runs as module
from cdn_tune.evaluation.runs import COLUMNS, find_runs, summarise_run
from cdn_tune.training.object_store.store import ObjectStore
from cdn_tune.training.reports import EpochReport

from ..object_store import Store, store, store_server  # noqa: F401 - fixtures

Entry = Callable[..., FrozenTrial]
MakeSearch = Callable[..., Path]
Tiny = Callable[..., Experiment]
OLD = Path(__file__).resolve().parents[1] / "fixtures" / "runs-0.1.0.tar.xz"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["runs", *map(str, arguments)])


def printed(*arguments: object) -> dict[str, dict[str, Any]]:
    """The rows that `--json` prints, by the run folder's name."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert all(row.keys() <= COLUMNS.keys() for row in rows)
    return {Path(row["run"]).name: row for row in rows}


def epoch_line(epoch: int, value: float, epochs: int = 3) -> str:
    report = EpochReport(
        epoch=epoch,
        epochs=epochs,
        loss=1.0,
        losses={},
        learning_rate=1e-3,
        gradient_norm=1.0,
        samples_per_second=10.0,
        train_seconds=1.0,
        val_seconds=1.0,
        val={"R1@0.5": value},
        value=value,
        best_value=value,
        best_epoch=epoch,
    )
    return json.dumps(report.plain()) + "\n"


@pytest.fixture
def make_training(tiny: Tiny, tmp_path: Path) -> Callable[..., Path]:
    """Makes a train run's folder with so many epochs on record, of three."""

    def make(name: str, epochs: int = 3, created: str = "2026-05-04T09:00:00+00:00", **manifest: Any) -> Path:
        run = tmp_path / name
        run.mkdir(parents=True)
        (run / "manifest.json").write_text(json.dumps({"kind": "train", "created": created, **manifest}))
        (run / "experiment.yaml").write_text(dump(tiny().plain()))
        (run / "metrics.jsonl").write_text("".join(epoch_line(epoch, 0.1 * epoch) for epoch in range(1, epochs + 1)))
        return run

    return make


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Runs that version 0.1.0 made: a finished and a killed search, both evaluated or not, and a training."""
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_real_runs(old: Path) -> None:
    rows = printed(old)
    assert set(rows) == {"finished", "killed", "trained"}  # and not what was exported
    finished, killed, trained = (rows[name] for name in ("finished", "killed", "trained"))
    facts = json.loads((old / "finished" / "evaluation.json").read_text())
    board = json.loads((old / "finished" / "leaderboard.json").read_text())
    assert (finished["kind"], finished["state"], finished["family"]) == ("search", "finished", "cdn")
    assert finished["val"] == board[0]["value"]
    assert finished["test"] == pytest.approx(facts["metrics"][finished["metric"]], abs=1e-4)
    assert (finished["trials"], finished["of_trials"]) == (5, 5)
    assert finished["dataset"] == "charades_sta"
    assert finished["planted"] is True
    assert (killed["state"], "test" in killed) == ("stopped", False)
    assert killed["trials"] < killed["of_trials"]
    assert (trained["kind"], trained["state"], "trials" in trained) == ("train", "finished", False)
    assert trained["test"] > 0
    assert not any("reason" in row for row in rows.values())
    size = sum(path.lstat().st_blocks for path in (old / "trained").rglob("*")) * 512
    assert trained["size"] == size


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_loses_nothing(old: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdn_tune.cli.show import output

    monkeypatch.setattr(output.out, "width", width)
    result = invoke(old)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    for text in ("val R1@0.5", "test R1@0.5", "finished", "stopped", "5/5", "charades_sta (planted)", "search", "KiB"):
        assert text in result.stdout
    assert sum("finished" in line for line in lines) >= 2


def test_states(make_training: Callable[..., Path], make_search: MakeSearch, entry: Entry, tmp_path: Path) -> None:
    make_training("done")
    make_training("cut", 2)
    make_training("fresh", 0)
    make_training("weights", 0, imported_from={"name": "x.pkl"})
    held = make_training("held", 1)
    make_search([entry("failed", reason="loss is not finite"), entry("failed")], tmp_path / "hopeless", trials=2)
    make_search([entry("complete", [0.3]), entry("running", [0.5])], tmp_path / "open", trials=4)
    make_search([entry("running", [0.5]), entry("running", [0.6])], tmp_path / "early", trials=4)
    with FileLock(held / ".lock"):
        rows = printed(tmp_path)
    assert {name: row["state"] for name, row in rows.items()} == {
        "done": "finished",
        "cut": "stopped",
        "fresh": "stopped",
        "weights": "imported",
        "held": "running",
        "hopeless": "failed",
        "open": "stopped",
        "early": "stopped",
    }
    assert (rows["open"]["val"], rows["open"]["trials"], rows["open"]["of_trials"]) == (0.3, 1, 4)
    assert rows["early"]["val"] == 0.6  # of the running ones
    assert "val" not in rows["hopeless"]
    assert "val" not in rows["fresh"]
    assert rows["done"]["val"] == 0.3


def test_families_and_several_metrics(make_search: MakeSearch, entry: Entry, tmp_path: Path) -> None:
    space = {"parameters": {"model.name": {"type": "categorical", "choices": ["cdn", "tan"]}}}
    make_search([], tmp_path / "among", space=space)
    assert printed(tmp_path)["among"]["family"] == "cdn,tan"


def test_sort_and_filter(make_training: Callable[..., Path], tmp_path: Path) -> None:
    for name, epochs, day in (("b", 1, 3), ("a", 3, 1), ("c", 2, 2)):
        make_training(name, epochs, f"2026-05-0{day}T09:00:00+00:00")
    assert list(printed(tmp_path)) == ["b", "c", "a"]  # the newest first
    assert list(printed(tmp_path, "--sort", "created")) == ["a", "c", "b"]
    assert list(printed(tmp_path, "--sort", "val")) == ["a", "c", "b"]
    assert list(printed(tmp_path, "--sort", "-val")) == ["b", "c", "a"]
    assert list(printed(tmp_path, "--sort", "run")) == ["a", "b", "c"]
    assert set(printed(tmp_path, "--filter", "state == stopped", "--filter", "val >= 0.2")) == {"c"}
    nothing = invoke(tmp_path, "--filter", "val > 1")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "3 runs, none for which the filters hold" in nothing.stderr
    for wrong in (["--sort", "vall"], ["--filter", "vall > 1"], ["--filter", "val"]):
        refused = invoke(tmp_path, *wrong)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "did you mean val?" in invoke(tmp_path, "--sort", "vall").stderr


def test_where_runs_are_looked_for(make_training: Callable[..., Path], tmp_path: Path) -> None:
    run = make_training("deep/deeper/run")
    make_training("deep/deeper/run/inside")  # a run's own
    make_training(".hidden/run")
    away = make_training("elsewhere/away")
    (tmp_path / "deep" / "linked").symlink_to(away)
    (tmp_path / "deep" / "others").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "deep" / "round").symlink_to(tmp_path)
    assert find_runs(tmp_path / "deep") == [run, tmp_path / "deep" / "linked"]
    assert find_runs(run) == [run]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert json.loads(invoke(empty, "--json").stdout) == []
    assert "no runs there; cdn-tune train" in invoke(empty).stderr
    missing = invoke(tmp_path / "missing")
    assert missing.exit_code == 2
    assert "missing: no such folder" in missing.stderr


def test_too_many_files_are_not_looked_through(
    make_training: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_training("run")
    for number in range(20):
        (run / f"{number}").touch()
    monkeypatch.setattr(module, "_MOST_ENTRIES", 10)
    assert "holds more than 10 files, as no run does" in summarise_run(run)["reason"]
    for number in range(20):
        (tmp_path / f"{number}").touch()
    refused = invoke(tmp_path)
    assert refused.exit_code == 2
    assert "holds 10 files or more; name the folder of your runs" in refused.stderr


def _pipe(run: Path) -> None:
    (run / "manifest.json").unlink()
    os.mkfifo(run / "manifest.json")


def _pipe_deep_inside(run: Path) -> None:
    (run / "trials" / "0000").mkdir(parents=True)
    os.mkfifo(run / "trials" / "0000" / "metrics.jsonl")


def _device(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/zero")


def _round(run: Path) -> None:
    (run / "manifest.json").unlink()
    (run / "manifest.json").symlink_to("manifest.json")


def _huge(run: Path) -> None:
    os.truncate(run / "metrics.jsonl", 1 << 40)  # of holes


def _pickle(run: Path) -> None:
    (run / "manifest.json").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")


def _yaml_code(run: Path) -> None:
    (run / "experiment.yaml").write_text("name: !!python/object/apply:os.system ['touch owned']")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "pipe": _pipe,
    "pipe deep inside": _pipe_deep_inside,
    "device": _device,
    "link to itself": _round,
    "huge": _huge,
    "pickle": _pickle,
    "yaml": _yaml_code,
    "empty": lambda run: (run / "manifest.json").write_text(""),
    "deep": lambda run: (run / "manifest.json").write_text("[" * 100_000),
    "a list": lambda run: (run / "manifest.json").write_text("[]"),
    "another kind": lambda run: (run / "manifest.json").write_text('{"kind": "bake"}'),
    "no study": lambda run: (run / "manifest.json").write_text('{"kind": "search"}'),
    "a server": lambda run: (
        (run / "manifest.json").write_text('{"kind": "search", "storage": "mysql://me:hush@127.0.0.1:1/x"}'),
        (run / "search_space.yaml").write_text(
            "name: x\nexperiment: y\nparameters: {seed: {type: int, low: 1, high: 3}}"
        ),
    ),
    "no experiment": lambda run: (run / "experiment.yaml").unlink(),
    "a folder": lambda run: ((run / "experiment.yaml").unlink(), (run / "experiment.yaml").mkdir()),
    "evaluation": lambda run: (run / "evaluation.json").write_text("{"),
    "title": lambda run: (run / "manifest.json").write_text('{"kind": "\\u001b]0;owned\\u0007"}'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_one_row_with_the_reason(
    name: str, make_training: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_training("runs/good")
    DAMAGE[name](make_training("runs/bad"))
    rows = printed()
    assert rows["good"]["state"] == "finished"
    assert rows["bad"]["reason"]
    assert "internal error" not in rows["bad"]["reason"]
    if name != "evaluation":  # of which all else is shown
        assert rows["bad"]["state"] == "unreadable"
    table = invoke()
    assert table.exit_code == 0, table.output
    assert "\x1b" not in table.output
    assert "hush" not in table.output
    assert not list(tmp_path.rglob("owned"))
    assert sum("runs/bad" in line for line in table.stdout.splitlines()) >= 1


def test_what_nobody_expected_hides_no_other_run(
    make_training: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_training("run")

    def fail(_: Path) -> None:
        raise ZeroDivisionError("really")

    monkeypatch.setattr(module, "read_manifest", fail)
    assert "cannot be read (ZeroDivisionError: really)" in printed(tmp_path)["run"]["reason"]


def test_the_size_is_that_of_the_folder_alone(make_training: Callable[..., Path], tmp_path: Path) -> None:
    run = make_training("runs/run")
    before = summarise_run(run)["size"]
    (tmp_path / "big").write_bytes(b"x" * (1 << 20))
    (run / "outside").symlink_to(tmp_path / "big")
    (run / "up").symlink_to(tmp_path)
    assert summarise_run(run)["size"] - before < 1 << 16
    (run / "weights").write_bytes(b"x" * (1 << 20))
    os.link(run / "weights", run / "again")  # as `best/` holds checkpoints
    grown = summarise_run(run)["size"] - before
    assert 1 << 20 <= grown < (1 << 20) + (1 << 16)


def test_runs_on_an_object_store(store: Store, make_training: Callable[..., Path]) -> None:  # noqa: F811
    base = store.url("runs")
    for name, epochs in (("one", 3), ("two", 1)):
        run = make_training(name, epochs)
        for file in run.iterdir():
            ObjectStore(module.url_of(f"{base}/{name}") or "").upload(file, file.name)
    ObjectStore(module.url_of(f"{base}/other") or "").write("file", b"no run's")
    rows = printed(base)
    assert {name: row["state"] for name, row in rows.items()} == {"one": "finished", "two": "stopped"}
    assert rows["one"]["run"] == f"{base}/one"
    assert rows["one"]["size"] == sum(file.stat().st_size for file in run.parent.glob("one/*"))
    assert list(printed(f"{base}/two")) == ["two"]
