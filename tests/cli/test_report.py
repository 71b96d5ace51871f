"""`cdn-tune report` on the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdn_tune.cli import app
from tests.epochs import epoch_line

runner = CliRunner()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"kind": "train", "data": {"planted": True}}))
    (folder / "experiment.yaml").write_text("name: mine\neval: {metric: R1@0.5}\n")
    (folder / "metrics.jsonl").write_text(json.dumps(epoch_line(1, 0.25)) + "\n")
    return folder


def test_writes_the_report_and_says_where(run: Path) -> None:
    result = runner.invoke(app, ["report", str(run)])
    assert result.exit_code == 0
    path = run / "report" / "index.html"
    assert str(path) in result.stdout
    assert "25.00" in path.read_text(encoding="utf-8")
    assert "no checkpoint" in result.stderr  # the queries' part is missing, and why


def test_out_names_the_file(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "mine.html"
    assert runner.invoke(app, ["report", str(run), "--out", str(path), "--views", "0"]).exit_code == 0
    assert path.exists()
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "thesis.html"], "no report of cdn-tune"),
        (["--out", "."], "is a folder"),
        (["--serve", "--out", "x.html"], "drop --out"),
        (["--port", "8000"], "add --serve"),
        (["--videos", "absent"], "--videos absent: is no folder"),
        (["--videos", "thesis.html"], "--videos thesis.html: is no folder"),
    ],
)
def test_bad_arguments_write_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("thesis.html").write_text("my thesis")
    result = runner.invoke(app, ["report", str(run), *arguments])
    assert result.exit_code == 2
    assert told in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error")]) == 1
    assert Path("thesis.html").read_text() == "my thesis"
    assert not (run / "report").exists()


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    result = runner.invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "not a run folder" in result.stderr
    assert list(tmp_path.iterdir()) == []


def heed_interrupts() -> None:
    """A test run in the background of a shell ignores interrupts, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_serving_cleanly(run: Path) -> None:
    command = [sys.executable, "-m", "cdn_tune", "report", str(run), "--serve", "--port", "0", "--views", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  # our own server
            assert "25.00" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in told
    finally:
        process.kill()
        process.wait()
