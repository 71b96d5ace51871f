"""Whatever files, clusters and people write, the terminal shows it and obeys none of it."""

import ast
import errno
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer import BadParameter, Exit
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from cdn_tune.cli import app
from cdn_tune.cli.cluster import jobs, logs, status
from cdn_tune.cli.show import output
from cdn_tune.cli.show.live import LiveTable
from cdn_tune.cli.show.output import Terminal, facts_table, head_table, visible
from cdn_tune.cli.show.tables import search_summary
from cdn_tune.config.space import BudgetConfig
from cdn_tune.distributed import jobs as server
from cdn_tune.distributed.jobs import Job
from cdn_tune.distributed.node_info import NodeInfo
from cdn_tune.errors import RunError
from cdn_tune.tuning.results.record import read_record

PACKAGE = Path(__file__).resolve().parents[2] / "cdn_tune"
EVIL = "a\x1b]0;owned\x07b\x1b[2Jc\x9b2Jd\x90e\x9c\x7f\r\x08\u202ef\u2066g\u2028h\udcffi"
# What a terminal obeys, but for the line feeds, tabs and colours that are ours.
OBEYED = re.compile(
    r"\x1b\[[0-9;]*m|([\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff])"
)
Entry = Callable[..., FrozenTrial]


def obeyed(text: str) -> list[str]:
    return [found[1] for found in OBEYED.finditer(text) if found[1]]


def test_the_test_sees_it() -> None:
    assert len(obeyed(EVIL)) == 13
    assert obeyed("\x1b[31mred\x1b[0m\tä\n") == []


@given(st.text(st.characters(), max_size=40))
def test_a_visible_text_is_obeyed_nowhere_and_of_the_same_length(text: str) -> None:
    shown = visible(text)
    assert obeyed(shown) == []
    assert len(shown) == len(text)
    assert shown.encode().decode() == shown
    assert all(after in (before, "\ufffd") for before, after in zip(text, shown, strict=True))


def test_what_people_write_stays() -> None:
    text = "人が\tドアを開ける \u200dशक्ति 👩\u200d🚀 ß\n"
    assert visible(text) == text


def shown_kinds() -> dict[str, Any]:
    table = Table(title=EVIL, caption=EVIL)
    table.add_column(EVIL)
    table.add_row(escape(EVIL))
    table.add_row(Text(EVIL))
    heads = head_table(escape(EVIL), fold=True)
    heads.add_row(Group(Text(EVIL), escape(EVIL)))
    return {
        "text": Text(EVIL, "bold"),
        "words": escape(EVIL),
        "table": table,
        "heads": heads,
        "facts": facts_table([(escape(EVIL), EVIL)]),
        "panel": Panel(escape(EVIL), title=escape(EVIL)),
    }


@pytest.mark.parametrize("kind", shown_kinds())
@pytest.mark.parametrize("is_terminal", [True, False])
def test_every_kind_of_output_is_only_text(kind: str, is_terminal: bool) -> None:
    console = Terminal(file=io.StringIO(), force_terminal=is_terminal, color_system="truecolor", width=100)
    console.print(shown_kinds()[kind], style="red")
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert obeyed(text) == []
    assert "owned" in text
    assert "\ufffd" in text


def test_a_table_is_laid_out_as_it_is_shown() -> None:
    console = Terminal(file=io.StringIO(), width=100)
    table = head_table("a", "b")
    table.add_row("\x9b\x9b\x9b", "x")
    table.add_row("123", "x")
    console.print(table)
    assert len({line.index("x") for line in console.file.getvalue().splitlines()[-2:]}) == 1  # type: ignore[attr-defined]


def test_a_picture_that_is_redrawn_moves_the_cursor_itself_only() -> None:
    console = Terminal(file=io.StringIO(), force_terminal=True, width=80)
    with Live(console=console, auto_refresh=False) as live:
        live.update(Group(Text("one"), Text("two \x1b[2J\x1b]0;x\x07")), refresh=True)
        live.update(Text("three"), refresh=True)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[1A" in text, "the picture is drawn over"
    assert "\x1b[2J" not in text
    assert "\x1b]" not in text


def raising(error: BaseException) -> None:
    with pytest.raises((Exit, BadParameter)), output.one_line_errors():
        raise error


def test_the_home_of_no_user_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit) as left, output.one_line_errors():
        Path("~no-such-user/x").expanduser()
    assert left.value.exit_code == 2
    assert capsys.readouterr().err == "error: a path begins with ~ and the name of no user; write it out\n"


PRINTED: dict[str, Callable[[], object]] = {
    "line": lambda: output.print_line(EVIL),
    "note": lambda: output.print_note(EVIL),
    "warning": lambda: output.warn(EVIL),
    "csv": lambda: output.print_text(EVIL),
    "log": lambda: output.print_log(EVIL),
    "json": lambda: output.print_json({EVIL: EVIL}),
    "our error": lambda: raising(RunError(EVIL)),
    "internal error": lambda: raising(ZeroDivisionError(EVIL)),
    "system error": lambda: raising(OSError(errno.EACCES, "denied", EVIL)),
}


@pytest.mark.parametrize("way", PRINTED)
def test_every_way_of_printing_is_only_text(
    way: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(output.DEBUG, "1")
    PRINTED[way]()
    printed = "".join(capsys.readouterr())
    assert "owned" in printed
    assert obeyed(printed) == []


def test_json_is_escaped_not_changed(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"ü": [EVIL, "ü"]})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"ü": [EVIL, "ü"]}
    assert printed.count("ü") == 2


def test_a_log_has_its_lines_and_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_log("\x1b[36m(pid=1)\x1b[0m one\r\ntwo 10 %\rtwo 20 %\n\x1b[Hthree")
    assert capsys.readouterr().out == "(pid=1) one\ntwo 10 %\ntwo 20 %\n\ufffd[Hthree"


def test_warnings_of_libraries_are_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.lastResort
    assert handler is not None
    before = handler.formatter
    try:
        output.clean_logging()
        handler.emit(logging.LogRecord("any", logging.WARNING, "", 1, "%s", (EVIL,), None))
    finally:
        handler.setFormatter(before)
    assert obeyed(capsys.readouterr().err) == []


def test_nothing_is_printed_past_it() -> None:
    """All output of the package is through `cli/show/output.py`; progress and live tables draw on its consoles."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place in ("cli/show/output.py", "config/reference.py", "distributed/fetch_protocol.py"):
            continue  # itself; a page of the docs; a program of its own whose output is the protocol
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {each.arg: ast.unparse(each.value) for each in node.keywords}
            printing = called in ("print", "typer.echo", "echo", "Console", "secho", "traceback.print_exc")
            printing |= bool(re.search(r"(std(out|err)|\bout\.file|\berr\.file)\.write", called))
            printing |= place.startswith("cli/") and called in ("Live", "Progress") and given.get("console") != "err"
            if printing:
                found.append(f"{place}:{node.lineno} {called}")
    assert found == []


def commands(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield from commands(command, (*names, name)) if isinstance(command, TyperGroup) else [(*names, name)]


@pytest.mark.parametrize("command", [*commands(get_command(app)), ()], ids=" ".join)
def test_every_commands_errors_are_only_text(command: tuple[str, ...]) -> None:
    for arguments in ([f"--{EVIL}"], [f"--address={EVIL}", f"--{EVIL}", EVIL]):
        result = CliRunner().invoke(app, [*command, *arguments])
        assert result.exit_code == 2, result.output
        assert obeyed(result.output) == []


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "report", "leaderboard", "export", "compare", "search status"]
)
def test_a_hostile_path_is_only_text(command: str) -> None:
    path = EVIL.replace("\x00", "")
    more = {"compare": [path], "export": ["--out", path]}.get(command, [])
    result = CliRunner().invoke(app, [*command.split(), path, *more])
    assert result.exit_code == 2, result.output
    assert obeyed(result.output) == []
    assert "owned" in result.output


@pytest.fixture
def run(make_search: Callable[..., Path], entry: Entry) -> Path:
    """A search in which everything that people or programs write is hostile."""
    plain = EVIL.replace("\udcff", "")  # no JSON file holds it
    segments = [[plain, 1.0, 2.0]]
    return make_search(
        [
            entry("complete", [0.2], segments=segments),
            entry("failed", reason=plain, failure="deterministic"),
            entry("failed", role="refused", reason=plain),
            entry("running", [0.1], segments=[[plain, 1.0, None]]),
        ],
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["leaderboard"],
        ["leaderboard", "--csv"],
        ["leaderboard", "--json"],
        ["leaderboard", "--columns", "trial,reason,node"],
        ["leaderboard", "--config", "1"],
        ["leaderboard", "--filter", "state == refused"],
        ["search", "status"],
        ["search", "status", "--json"],
    ],
    ids=" ".join,
)
def test_a_hostile_search_is_only_text(run: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [*arguments, str(run)])
    assert result.exit_code == 0, result.output
    assert "owned" in result.output
    assert obeyed(result.output) == []


def drawn(shown: Any) -> str:
    console = Terminal(file=io.StringIO(), force_terminal=True, width=100, height=30)
    console.print(shown)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_what_clusters_and_searches_tell_is_only_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(EVIL, EVIL, EVIL, EVIL, 1.0, 2.0, 1, {"cdn_tune": EVIL})
    versions: dict[str, str | None] = dict.fromkeys(("python", "torch", "ray", "cdn-tune", "optuna"), EVIL)
    node = NodeInfo(EVIL, EVIL, EVIL, True, False, {"CPU": 1.0}, {"CPU": 1.0}, EVIL, versions, 0.0, EVIL)
    rows = read_record(run).rows()
    state = SimpleNamespace(rows=rows, limit=2, slots=1, finished=True, elapsed=1.0, gpu_hours=0.0)
    state.halted, state.lines = EVIL, (EVIL,)
    live: Any = state
    for shown in (
        jobs.jobs_table([job], 3.0),
        facts_table(jobs.job_facts(job, 3.0)),
        status.nodes_table([node]),
        status.versions_table([node], versions),
        search_summary(rows, ["optim.lr"], EVIL),
        LiveTable(live, ["optim.lr"], EVIL, {}, BudgetConfig()),
    ):
        assert "owned" in drawn(shown)
        assert obeyed(drawn(shown)) == []
    told: Any = SimpleNamespace(follow=lambda _: [EVIL], wait=lambda *_: job)
    with pytest.raises(Exit):
        logs.follow(told, EVIL)
    assert obeyed("".join(capsys.readouterr())) == []


def test_a_time_that_no_calendar_has_is_none() -> None:
    details = SimpleNamespace(submission_id="a", status="FAILED", entrypoint="", message=None, metadata=None)
    details.start_time, details.end_time, details.driver_exit_code = 10**30, -1, None
    job = server._job(details)
    assert (job.started, job.ended) == (None, None)
    assert "owned" not in drawn(jobs.jobs_table([job], 3.0))


def test_rays_lines_are_apart_from_what_a_job_prints(capsys: pytest.CaptureFixture[str]) -> None:
    log = (
        "2026-11-29 02:06:03,181\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job raysubmit_1: exec python\n{\n"
        '2026-11-29 02:06:04,000\tWARNING worker.py:1 -- low\n  "nodes": 1\n}\nend'
    )
    for pieces in ([log], [log[at : at + 5] for at in range(0, len(log), 5)]):
        logs.print_output(pieces)
        printed = capsys.readouterr()
        assert printed.out == '{\n  "nodes": 1\n}\nend'
        assert len(printed.err.splitlines()) == 3
        logs.print_output(pieces, rays=False)
        assert capsys.readouterr() == (printed.out, "")
