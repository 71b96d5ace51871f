"""The commands as a person meets them: help, output, one-line errors, exit codes."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cdn_tune import __version__
from cdn_tune.cli import app
from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump

ROOT = Path(__file__).resolve().parents[1]
Tiny = Callable[..., Experiment]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def file(tiny: Tiny, tmp_path: Path) -> Path:
    """A tiny experiment as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny(**{"train.epochs": 1}).plain()))
    return path


@pytest.mark.parametrize(
    "command", [[], ["train"], ["search"], ["evaluate"], ["demo"], ["data"], ["data", "plant"], ["data", "draw"]]
)
def test_help(command: list[str]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cdn_tune.cli import app\n"
        "app(['search', '--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "ray", "optuna", "h5py", "numpy"} & set(done.stdout.splitlines()[-1].split()) == set()


def test_a_search_loads_what_few_searches_need_when_they_do(tmp_path: Path) -> None:
    """Databases, for a study that is none in the run folder; torchtext, for word vectors that no process has read."""
    url = f"journal:///{tmp_path}/study.journal"
    code = (
        "import sys, cdn_tune.tuning.search as search\n"
        f"search.is_same_storage('', ''), search.open_storage({url!r}, sole_writer=True)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"sqlalchemy", "torchtext"} & loaded == set()
    assert {"torch", "ray.tune"} <= loaded


def test_version() -> None:
    assert invoke("--version").output.strip() == f"cdn-tune {__version__}"


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["search", "--help"], ["schema", "space"]])
def test_a_full_standard_output_is_one_line(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with open("/dev/full", "w") as sys.stdout, pytest.raises(SystemExit) as ended:
        app(command)
    sys.stdout = before
    assert ended.value.code == 2
    assert capfd.readouterr().err.splitlines() == [
        "error: standard output: cannot be written (No space left on device); make room there, or send it elsewhere"
    ]


def test_a_reader_that_has_gone_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    before = sys.stdout
    with open(writer, "w") as sys.stdout, pytest.raises(SystemExit) as ended:
        app(["schema", "space"])
    sys.stdout = before
    assert ended.value.code == 1
    assert capfd.readouterr().err == ""


def test_train_then_again_then_evaluate(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    first = invoke("train", file, "--run", run)
    assert first.exit_code == 0, first.output
    assert "best val R1@0.5" in first.output
    assert "(planted data), val split, epoch 1 of 1" in first.output
    assert "checkpoints on disk" in first.output
    second = invoke("train", file, "--run", run)
    assert second.exit_code == 0
    assert "run is finished" in second.output
    evaluation = invoke("evaluate", run)
    assert evaluation.exit_code == 0, evaluation.output
    for word in ("best constant answer", "random moments", "planted data", "R1@0.5"):
        assert word in evaluation.output
    assert "opened 2 times" in invoke("evaluate", run).output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "{file}", "lr=3"], "lr: unknown key; did you mean optim.lr?"),
        (["train", "{file}", "model.map.kernel_size=4"], "kernel_size 4 is even"),
        (["train", "{file}", "data.root=/nowhere"], "/nowhere"),
        (["train", "{file}", "data.feature_size=17"], "17"),
        (["train", "{file}", "data.word_size=13"], "13"),
        (["train", "{file}", "data.word_vectors=none.txt"], "none.txt"),
        (["train", "{file}", "data.features=none.hdf5"], "none.hdf5"),
        (["search", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["evaluate", "/nowhere"], "/nowhere: no such run folder"),
        (["data", "plant", "{file}"], "tiny.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(file: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    run = tmp_path / "run"
    filled = [argument.format(file=file) for argument in arguments]
    more = ["--run", str(run)] if filled[0] in ("train", "search") else []
    result = invoke(*filled, *more)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.output
    assert told in errors[0]
    assert "Traceback" not in result.output
    assert not (run / "manifest.json").exists()


def test_our_mistakes_exit_1(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("cdn_tune.distributed.train_run.train_in", fail)
    result = invoke("train", file, "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "internal error: ZeroDivisionError: oops" in result.output
    assert "Traceback" not in result.output


def test_run_folder_of_another_experiment_is_not_touched(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke("train", file, "--run", run).exit_code == 0
    before = (run / "metrics.jsonl").read_bytes()
    result = invoke("train", file, "optim.lr=0.5", "--run", run)
    assert result.exit_code == 2
    assert "optim.lr is 0.003 there, 0.5 here" in result.output
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_goes_on(tiny: Tiny, tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(dump(tiny(**{"train.epochs": 2000}).plain()))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "cdn_tune", "train", str(file), "--run", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (run / "checkpoints/last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command goes on from the last checkpoint"
    assert "Traceback" not in errors


def test_replaced_data_are_told(tiny: Tiny, tmp_path: Path) -> None:
    data = tmp_path / "data"
    planting = [
        "data",
        "plant",
        data,
        "--videos",
        "24",
        "--feature-size",
        "16",
        "--word-size",
        "12",
        "--frame-rate",
        "2",
    ]
    assert invoke(*planting).exit_code == 0
    file = tmp_path / "tiny.yaml"
    file.write_text(dump(tiny(**{"train.epochs": 1, "data.root": str(data)}).plain()))
    assert invoke("train", file, "--run", tmp_path / "run").exit_code == 0
    assert invoke(*planting, "--seed", "5", "--overwrite").exit_code == 0
    result = invoke("train", file, "--run", tmp_path / "run")
    assert result.exit_code == 2
    assert "have changed since it began" in result.output


def test_an_address_without_workers_is_refused(file: Path) -> None:
    result = invoke("train", file, "--address", "nowhere:1")
    assert result.exit_code == 2
    assert "add --workers N" in result.output


@pytest.fixture
def spaced_python(tmp_path: Path) -> str:
    """The interpreter of "a folder/.venv": Ray starts its workers through a shell, which must survive the space."""
    environment = tmp_path / "a folder" / ".venv"
    venv.create(environment, with_pip=False)
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text("\n".join([sysconfig.get_path("purelib"), str(ROOT)]) + "\n")
    return str(environment / "bin/python")


@pytest.mark.slow
def test_terminated_search_goes_on(tiny: Tiny, tmp_path: Path, spaced_python: str) -> None:
    """SIGTERM, as a cluster's preemption sends it: a graceful end, exit 130, the leaderboard written."""
    (tmp_path / "experiment.yaml").write_text(dump(tiny(**{"train.epochs": 500}).plain()))
    parameters = {"optim.lr": {"type": "float", "low": 0.001, "high": 0.01}}
    space = {"name": "s", "experiment": str(tmp_path / "experiment.yaml"), "parameters": parameters, "trials": 2}
    (tmp_path / "space.yaml").write_text(dump(space))
    run = tmp_path / "a run"
    command = [spaced_python, "-m", "cdn_tune", "search", str(tmp_path / "space.yaml"), "--run", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not any(run.glob("trials/*/checkpoints/last.pt")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("interrupted; the same command goes on")
    assert "Traceback" not in errors
    assert "***" not in errors
    assert "running" in (run / "leaderboard.csv").read_text()


@pytest.mark.slow
def test_demo(tmp_path: Path, spaced_python: str) -> None:
    run = tmp_path / "a demo"
    command = [spaced_python, "-m", "cdn_tune", "demo", "--run", str(run), "--trials", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert (run / "evaluation.json").exists()
    assert "best constant answer" in done.stdout
    assert "planted data" in done.stdout
