"""`cdn-tune report-bug`: what it holds, and that no planted secret, however a run holds it, gets out."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial
from typer.testing import CliRunner, Result

from cdn_tune.cli import app
from cdn_tune.cli.show import bug_report as module
from cdn_tune.config.yaml import dump

Entry = Callable[..., FrozenTrial]
MakeSearch = Callable[..., Path]
SECRET, KNOWN = "Sesame-0pen", "Abracadabra-9"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report-bug", *map(str, arguments)])


def report_of(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def run(make_search: MakeSearch, entry: Entry) -> Path:
    """A search with failed trials, a log and tracebacks."""
    run = make_search(
        [entry("complete", [0.3]), entry("failed", reason="ValueError: bad clip", failure="deterministic")], trials=2
    )
    (run / "ray.log").write_text("first line\n" + "a line of the log\n" * 10)
    folder = run / "trials" / "0001"
    folder.mkdir(parents=True)
    (folder / "error.txt").write_text("Traceback (most recent call last):\n  ...\nValueError: bad clip\n")
    return run


def test_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDN_TUNE_MADE_UP", "shown")
    text = report_of()
    for part in ("cdn-tune 0.1.0", "Python 3.", "torch 2.", "ray 2.", "## GPU", "## Disk", "CDN_TUNE_MADE_UP=shown"):
        assert part in text
    assert "## manifest.json" not in text


def test_of_a_run(run: Path, tmp_path: Path) -> None:
    text = report_of(run)
    for part in (
        "state: finished",
        "kind: search",
        "1 failed",
        "optim.lr",
        "a line of the log",
        "ValueError: bad clip",
    ):
        assert part in text
    assert "## trials/0001/error.txt" in text
    file = tmp_path / "bug.md"
    written = invoke(run, "--out", file)
    assert (written.exit_code, written.stdout) == (0, f"bug report: {file}\n")
    assert "read it before you send it" in written.stderr
    assert "a line of the log" in file.read_text()


def test_wrong_names_are_one_line(tmp_path: Path) -> None:
    for arguments in ([tmp_path / "none"], ["--out", tmp_path]):
        result = invoke(*arguments)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)


SENTENCES = [
    f"postgresql://me:{SECRET}@host/db",
    f"postgresql://me:with {SECRET}@host/db",
    f"s3://bucket/x?token={SECRET}",
    f"token={SECRET}",
    f"password: {SECRET}",
    f"--api-key {SECRET}",
    f"Authorization: Bearer {SECRET}",
    f'{{"secret": "{SECRET}"}}',
    f"pass\x1b[31mword={SECRET}",
    f"plainly {KNOWN}",  # the value of a variable
]


def _in_manifest(run: Path) -> None:
    whole = {str(number): {"root": text, text: [[text]]} for number, text in enumerate(SENTENCES)}
    (run / "manifest.json").write_text(json.dumps({"kind": "search", "storage": SENTENCES[0], "data": whole}))


def _in_command(run: Path) -> None:
    command = ["cdn-tune", "search", *SENTENCES, "--password", SECRET]
    (run / "manifest.json").write_text(json.dumps({"kind": "search", "command": command}))


def _in_yaml(name: str, run: Path) -> None:
    extra = {f"key {number}": text for number, text in enumerate(SENTENCES)}
    (run / name).write_text((run / name).read_text() + dump({"extra": extra}))


def _in_text(name: str, run: Path) -> None:
    (run / name).write_text("before\n" + "\n".join(SENTENCES) + "\nafter\n")


def _in_a_name(run: Path) -> None:
    (run / "trials" / f"x {KNOWN}").mkdir()
    (run / "trials" / f"x {KNOWN}" / "error.txt").write_text("a failure\n")


PLACES: dict[str, Callable[[Path], None]] = {
    "manifest": _in_manifest,
    "command": _in_command,
    "experiment": partial(_in_yaml, "experiment.yaml"),
    "space": partial(_in_yaml, "search_space.yaml"),
    "log": partial(_in_text, "ray.log"),
    "error": partial(_in_text, "trials/0001/error.txt"),
    "name": _in_a_name,
}


@pytest.mark.parametrize("place", PLACES)
def test_no_planted_secret_gets_out(place: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", KNOWN)
    PLACES[place](run)
    text = report_of(run)
    assert SECRET not in text
    assert KNOWN not in text
    assert "***" in text
    assert "\x1b" not in text
    if place in ("log", "error"):
        assert "before\n" in text
        assert "after\n" in text
        assert text.count("***") >= len(SENTENCES)


def test_no_secret_of_the_environment_gets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    monkeypatch.setenv("CDN_TUNE_STORAGE", f"mysql://me:{KNOWN}@host/db")
    monkeypatch.setenv("CDN_TUNE_MADE_UP", f"{SECRET} and {KNOWN}")
    text = report_of()
    assert "RAY_AUTH_TOKEN=***" in text
    assert "mysql://me:***@host/db" in text
    assert "CDN_TUNE_MADE_UP=*** and ***" in text


def test_the_user_is_not_named(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "mallory"))
    monkeypatch.setenv("LOGNAME", "mallory")
    (run / "ray.log").write_text(f"{tmp_path}/home/mallory/x, mallory@node, /home/oscar/y\n")
    text = report_of(run)
    assert "mallory" not in text
    assert "oscar" not in text
    assert "~/x, USER@node, /home/USER/y" in text


def test_links_out_of_the_run_are_not_followed(run: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("what is mine\n")
    for name in ("manifest.json", "experiment.yaml", "ray.log", "trials/0001/error.txt"):
        (run / name).unlink()
        (run / name).symlink_to(private)
    text = report_of(run)
    assert "what is mine" not in text
    assert text.count("leads out of the run folder; it is not read") == 4


def test_pipes_and_damage_are_told_in_their_part(run: Path) -> None:
    (run / "ray.log").unlink()
    os.mkfifo(run / "ray.log")
    (run / "manifest.json").write_text("{")
    (run / "experiment.yaml").write_bytes(b"\xff")
    text = report_of(run)
    for part in ("ray.log: is no regular file; it is not read", "cannot be read: ", "state: unreadable"):
        assert part in text
    assert "ValueError: bad clip" in text  # all else is there
    (run / "manifest.json").unlink()
    assert "No such file" in report_of(run)


def test_it_stays_short_and_keeps_the_ends_of_logs(run: Path) -> None:
    (run / "ray.log").write_text("".join(f"line {number}\n" for number in range(100_000)))
    for number in range(2, 30):
        folder = run / "trials" / f"{number:04d}"
        folder.mkdir()
        (folder / "error.txt").write_text(f"begins {number}\n" + "x\n" * 5000 + f"ends {number}\n")
    (run / "manifest.json").write_text(json.dumps({"kind": "search", "junk": ["y" * 100] * 9000}))
    text = report_of(run)
    assert len(text) <= 60_000
    assert "line 99999" in text
    assert "line 1\n" not in text
    assert [number for number in range(2, 30) if f"ends {number}\n" in text] == [25, 26, 27, 28, 29]
    assert "begins" not in text
    assert "characters more)" in text


def test_a_line_that_was_cut_shows_nothing(run: Path) -> None:
    """Where the end of a file begins within a line, what showed that it is a secret may be cut off."""
    (run / "ray.log").write_text("password: " + "zzz " * 20_000 + "\nlast line\n")
    text = report_of(run)
    assert "zzz" not in text
    assert "last line" in text


def test_text_of_a_run_is_text(run: Path) -> None:
    (run / "ray.log").write_text("```\n# not a heading\n````\n<script>\x1b]0;title\x07\x9b2J\n10 %\r50 %\r100 %\n")
    text = report_of(run)
    assert "`````text\n```\n# not a heading" in text
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(text)


def test_a_fault_of_ours_is_told_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise ImportError("libcudart is not there")

    monkeypatch.setattr(module, "_gpu", fail)
    assert "cannot be read: ImportError: libcudart is not there" in report_of(run)
