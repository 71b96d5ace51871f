"""The protocol of fetching, as a stranger speaks it: what does not follow it is one error, and changes nothing here."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_tune.distributed import fetch_protocol as protocol
from cdn_tune.distributed.fetch import LEFT_OUT, fetch
from cdn_tune.distributed.fetch_protocol import (
    Begin,
    Data,
    Done,
    End,
    Fault,
    Frame,
    Link,
    ProtocolError,
    Request,
    Run,
    SenderFault,
    check_path,
    line_of,
    read,
    send,
)
from cdn_tune.distributed.jobs import Job
from cdn_tune.errors import CdnTuneError, ClusterError, RunError

REQUEST = Request("/run", {}, LEFT_OUT, 1 << 20)
RUN = Run('{"kind": "train"}', 100, 3)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@dataclass
class Told:
    """A cluster whose job prints a given log."""

    log: Iterable[str]
    stopped: list[str] = field(default_factory=list)

    def submit(self, *_: Any) -> str:
        return "job"

    def follow(self, _job: str) -> Iterator[str]:
        yield from self.log

    def job(self, job: str) -> Job:
        return Job(job, "STOPPED", "", "gone", None, None, None, {})

    def stop(self, job: str) -> bool:
        self.stopped.append(job)
        return True

    def wait(self, job: str, _seconds: float) -> Job:
        return self.job(job)

    def forget(self, job: str) -> None:
        pass


def log_of(*frames: Frame | str) -> str:
    return "".join(f"{frame if isinstance(frame, str) else line_of(frame)}\n" for frame in frames)


def bring(log: str | Iterable[str], to: Path) -> Any:
    jobs: Any = Told([log] if isinstance(log, str) else log)
    try:
        return fetch(jobs, "/run", to, states=False, python="python", on_progress=lambda *_: None)
    finally:
        assert jobs.stopped in ([], ["job"])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes]]:
    """What the sender prints of a small run, a line each, and the run's files."""
    run = tmp_path_factory.mktemp("honest")
    (run / "best").mkdir()
    (run / "manifest.json").write_text('{"kind": "train", "name": "\\u2028 ü"}')
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n')
    (run / "best/checkpoint.pt").write_bytes(bytes(range(200)))
    (run / "best.pt").hardlink_to(run / "best/checkpoint.pt")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "_write", lambda frame: lines.append(line_of(frame)))
        patch.setattr(protocol, "_PIECE", 64)
        send(run, Request(str(run), {}, LEFT_OUT, 1 << 20))
    return lines, tree(run)


def test_what_is_sent_is_what_is_read(honest: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    lines, files = honest
    text = "Running entrypoint\n" + "\n".join(lines) + "\n"
    bring((text[at : at + 7] for at in range(0, len(text), 7)), tmp_path / "to")
    found = tree(tmp_path / "to")
    del found[".fetched.json"]
    assert found == files
    assert os.path.samefile(tmp_path / "to/best.pt", tmp_path / "to/best/checkpoint.pt")


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        ([Begin("a", 1, 0), Data(b"a")], "does not begin with the run"),
        ([Done(False)], "does not begin with the run"),
        ([RUN, RUN], "run outside of a file"),
        ([RUN, Data(b"a")], "data outside of a file"),
        ([RUN, End(EMPTY)], "end outside of a file"),
        ([RUN, Begin("a", 1, 0), Data(b"ab")], "a: longer than the 1 bytes"),
        ([RUN, Begin("a", 1, 0), Done(False)], "a: done before its end"),
        ([RUN, Begin("a", 1, 0), Begin("b", 1, 0)], "a: begin before its end"),
        ([RUN, Begin("a", 5, 3)], "a: goes on at byte 3, and 0 are here"),
        ([RUN, Begin("a", 0, 0), End(EMPTY), Begin("a", 0, 0)], "a: comes twice"),
        ([RUN, Begin("a", 0, 0), End(EMPTY), Begin("a/b", 0, 0)], "a/b: comes twice"),
        ([RUN, Begin("a/b", 0, 0), End(EMPTY), Begin("a", 0, 0)], "a: comes twice"),
        ([RUN, Link("a", "b")], "a: is a second name of what has not come"),
        ([RUN, Begin(".stop", 0, 0)], "is not asked for"),
        ([RUN, Begin(".ssh/authorized_keys", 0, 0)], "is not asked for"),
        ([RUN, Begin(".lock", 0, 0)], "is not asked for"),
        ([RUN, Begin("trials/0001/.lock", 0, 0)], "is not asked for"),
        ([RUN, Begin("a", 0, 0), End(EMPTY), Link(".fetched.json", "a")], "is not asked for"),
        ([RUN, Begin("a", 1 << 40, 0)], "more than the 100 bytes"),
        ([Run("{}", 1, 0), Begin("a", 1, 0)], "more than the 0 files"),
        ([RUN, Done(True)], "stops before its share is sent"),
        ([RUN], "ends before all was sent"),
        (['@cdn-tune run {"manifest": "{}", "bytes": -1, "files": 1}'], "bytes is -1"),
        (['@cdn-tune run {"manifest": "{}", "bytes": 1e999, "files": 1}'], "bytes is inf"),
        (['@cdn-tune run {"manifest": "{}", "bytes": true, "files": 1}'], "bytes is True"),
        (['@cdn-tune run {"manifest": {}, "bytes": 1, "files": 1}'], "manifest is {}"),
        (['@cdn-tune run {"manifest": "{}"}'], "needs manifest, bytes, files"),
        (["@cdn-tune run [1"], "its content is damaged"),
        (["@cdn-tune run " + "[" * 100_000], "its content is damaged"),
        (["@cdn-tune run 1" + "0" * 5000], "its content is damaged"),
        ([f"@cdn-tune run {10**6 * ' '}" + " " * 10**5], "a line of more than"),
        (["@cdn-tune exec {}"], "'exec' is no frame"),
        ([RUN, "@cdn-tune data ****"], "its content is damaged"),
        ([RUN, "@cdn-tune data ="], "its content is damaged"),
        ([RUN, '@cdn-tune end {"sha256": "0"}'], "without its SHA-256"),
        ([RUN, '@cdn-tune begin {"path": "a", "size": 1, "offset": 2}'], "from byte 2 of 1"),
        ([RUN, '@cdn-tune begin {"path": "\\ud800", "size": 1, "offset": 0}'], "control characters"),
        (["x" * 1000] * 17_000, "too much else"),
    ],
)
def test_what_does_not_follow_the_protocol_is_one_error(frames: list[Frame | str], told: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        list(read([log_of(*frames)], REQUEST))
    assert told in str(caught.value)


def test_a_line_or_a_body_without_an_end_is_not_read_to_it() -> None:
    def endless(text: str) -> Iterator[str]:
        for _ in range(10_000):
            yield text
        pytest.fail("everything was read")

    with pytest.raises(ProtocolError, match="a line of more"):
        list(read(endless("a" * 1000), REQUEST))
    with pytest.raises(ProtocolError, match="longer than"):
        list(read(chain([log_of(RUN, Begin("a", 10, 0))], endless(log_of(Data(b"0123456789")))), REQUEST))


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "../x", "a/../../x", "", ".", "a//b", "a/./b", "a/", "a\0b", "a\\b", "a\nb", "a\x1b]0;b"),
        *("a\x9bb", "\udcff", "\u202eb", "a" * 256, "ü" * 128, "a/" * 600 + "a"),
    ],
)
def test_no_path_leads_out_or_cannot_be_created(path: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_path(path)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_a_sender_says_what_it_cannot_send(tmp_path: Path) -> None:
    with pytest.raises(SenderFault, match="no such folder"):
        list(read([log_of(RUN, Begin("a", 9, 0), Data(b"a"), Fault("no such folder"))], REQUEST))
    with pytest.raises(RunError, match="/run: disk error, as the head node sees it"):
        bring(log_of(Fault("disk\nerror")), tmp_path / "to")


def test_another_run_gets_nothing_and_tells_nothing(tmp_path: Path) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / "manifest.json").write_text('{"kind": "train", "run": 1}')
    (to / "checkpoint.pt").write_text("mine")
    before = tree(to)
    other = log_of(RUN, Begin("checkpoint.pt", 0, 0), End(EMPTY), Done(False))
    with pytest.raises(RunError, match="holds another run"):
        bring(other, to)
    unsaid = log_of(Begin("checkpoint.pt", 0, 0), End(EMPTY), Done(False))
    with pytest.raises(ClusterError, match="does not begin with the run"):
        bring(unsaid, to)
    same = log_of(Run((to / "manifest.json").read_text(), 9, 1), Begin("checkpoint.pt", 0, 0), End(EMPTY), Done(False))
    with pytest.raises(ClusterError, match=r"manifest\.json is not that of the run"):
        bring(same, to)
    assert tree(to) == before
    (to / "manifest.json").unlink()
    jobs: Any = Told([])
    jobs.submit = lambda *_: pytest.fail("the cluster was told what the folder holds")
    with pytest.raises(RunError, match="is no run folder"):
        fetch(jobs, "/run", to, states=False, python="python", on_progress=lambda *_: None)


def test_a_damaged_record_names_the_way_out(honest: tuple[list[str], dict[str, bytes]], tmp_path: Path) -> None:
    to = tmp_path / "to"
    log = "\n".join(honest[0]) + "\n"
    bring(log, to)
    (to / ".fetched.json").write_text("[1]")
    (to / "metrics.jsonl").write_text("mine")
    with pytest.raises(RunError, match=r"\.fetched\.json: is damaged; delete it and fetch again"):
        bring(log, to)
    (to / ".fetched.json").unlink()
    assert bring(log, to).changed_here == ["metrics.jsonl"]


KINDS = st.sampled_from(["run", "begin", "data", "end", "link", "done", "fault", "x", ""])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["best.pt", "../x", ".stop"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
CONTENTS = VALUES.map(json.dumps) | st.text() | st.binary().map(lambda data: data.decode("latin-1"))
LINES = st.builds("@cdn-tune {} {}".format, KINDS, CONTENTS) | CONTENTS


def exchanged(line: str, key: int, value: Any) -> str:
    """A frame with another value under one of its keys, or without it."""
    head, _, content = line.partition(" {")
    try:
        fields = json.loads("{" + content)
    except ValueError:  # no frame with keys, or damaged already
        return line
    if not fields:
        return line
    name = sorted(fields)[key % len(fields)]
    if value is None:
        del fields[name]
    else:
        fields[name] = value
    return f"{head} {json.dumps(fields)}"


CHANGES: st.SearchStrategy[Callable[[list[str], int], list[str]]] = st.one_of(
    st.just(lambda lines, at: lines[:at] + lines[at + 1 :]),
    st.just(lambda lines, at: lines[: at + 1] + lines[at:]),
    st.just(lambda lines, at: lines[at:] + lines[:at]),
    st.just(lambda lines, at: lines[:at]),
    st.builds(lambda new: lambda lines, at: [*lines[:at], new, *lines[at:]], LINES),
    st.builds(lambda cut: lambda lines, at: [*lines[:at], lines[at][:cut], *lines[at + 1 :]], st.integers(0, 90)),
    st.builds(
        lambda key, value: lambda lines, at: [*lines[:at], exchanged(lines[at], key, value), *lines[at + 1 :]],
        st.integers(0, 2),
        VALUES,
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(CHANGES, st.integers(0, 10**6)), min_size=1, max_size=3), old=st.booleans())
def test_whatever_arrives_the_folder_is_as_before_or_the_run(
    changes: list[tuple[Callable[[list[str], int], list[str]], int]],
    old: bool,
    honest: tuple[list[str], dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    lines, files = honest
    around = tmp_path_factory.mktemp("around")
    to = around / "to"
    if old:
        to.mkdir()
        (to / "manifest.json").write_bytes(files["manifest.json"])
        (to / "best.pt").write_text("mine")
    before = tree(around)
    for change, at in changes:
        lines = change(lines, at % len(lines)) if lines else lines
    fault: CdnTuneError | None = None
    try:
        bring("\n".join(lines) + "\n", to)
    except CdnTuneError as error:
        fault = error
    if fault is not None:
        assert len(str(fault).splitlines()) == 1
        assert {name: data for name, data in tree(around).items() if ".to.fetching" not in name} == before
    else:
        found = tree(to)
        assert json.loads(found["manifest.json"]) == json.loads(files["manifest.json"])
        assert found.items() - files.items() <= {(".fetched.json", found[".fetched.json"]), ("best.pt", b"mine")}
    assert {path.name for path in around.iterdir()} <= {"to", ".to.fetching"}
