"""A run's home on an object store: what is wrong is told in a line, one command works at a time, copies agree."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.object_store import lease
from cdn_tune.training.object_store.lease import LEASE, Lease, is_leased
from cdn_tune.training.object_store.store import ObjectStore
from cdn_tune.training.object_store.sync import RunSync, fetched, push_run
from cdn_tune.training.object_store.working_copy import MARKER, place_of, portable, shown, url_of, working_copy
from cdn_tune.training.runs import stop_flag as flag
from cdn_tune.training.runs.run_folder import claim, locked, read_manifest
from cdn_tune.training.runs.stop_flag import StopFlag
from tests.object_store import Store


def home_of(url: str) -> ObjectStore:
    place = place_of(working_copy(url))
    assert place is not None
    return place.store


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/runs/a", "s3://bucket/runs/a?region=eu-west-1"),
        (Path("s3://bucket//runs/a/"), "s3://bucket/runs/a"),
        ("S3://bucket/a?scheme=http&endpoint_override=h:1", "s3://bucket/a?endpoint_override=h%3A1&scheme=http"),
        (Path("s3://b/a?endpoint_override=http://h:1"), "s3://b/a?endpoint_override=h%3A1&scheme=http"),
        (Path("gs://bucket/a"), "gs://bucket/a"),
        ("abfs://files@account.dfs.core.windows.net/a", "abfs://files@account.dfs.core.windows.net/a"),
        ("runs/a", None),
        (Path("/runs/a#b?c"), None),
    ],
)
def test_a_url_has_one_form(given: Any, url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    found = url_of(given if url is None or "region" not in url else f"{given}?region=eu-west-1")
    assert found == url
    if found is not None:
        assert url_of(Path(found)) == found


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://KEY:hidden@bucket/a", "credentials do not belong in a URL"),
        ("s3://hidden@bucket/a", "credentials do not belong in a URL"),
        ("s3://bucket/a?secret_key=hidden", "secret_key cannot be set in the URL"),
        ("s3://bucket", "names no folder in a bucket"),
        ("s3://bucket/../a", "without .."),
        ("hdfs://host/a", "no such store; write s3://, gs:// or abfs://"),
    ],
)
def test_a_wrong_url_is_told(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        url_of(Path(url))
    assert "hidden" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "url", "told"),
    [
        ({}, "s3://no-such-bucket/a", "s3://no-such-bucket/a: there is no such bucket; create it"),
        ({}, "s3://denied/a", "access is denied; let this user or role list, read, write and delete"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://bucket/a", "knows no such credentials; set AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "s3://bucket/a", "knows no such credentials"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "s3://bucket/a",
            "does not answer; check the network, and the end",
        ),
    ],
)
def test_what_is_wrong_with_a_store_is_told_at_once(
    change: dict[str, str], url: str, told: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(RunError, match=told) as raised:
        home_of(url).check()
    assert time.monotonic() - began < 60  # the default is minutes
    assert "\n" not in str(raised.value)
    assert store.secret not in str(raised.value)


def test_patience_has_an_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    home = ObjectStore(url_of(store.url()) or "", patience=1.0)
    store.proxy.fail = 10**6
    with pytest.raises(RunError, match="the store does not answer"):
        home.write("a", b"b")
    store.proxy.fail = 0
    home.write("a", b"b")
    assert home.read("a") == b"b"


def test_a_large_file_comes_and_goes_whole(store: Store, tmp_path: Path) -> None:
    home = home_of(store.url())
    (tmp_path / "a").write_bytes(os.urandom(25 << 20))  # several parts
    assert home.upload(tmp_path / "a", "x/a.pt") == home.entry("x/a.pt") == home.entries()["x/a.pt"]
    home.copy("x/a.pt", "x/b.pt")
    assert home.download("x/b.pt", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert not home.download("x/c.pt", tmp_path / "c")
    assert list(tmp_path.glob("*")) == [tmp_path / "a", tmp_path / "b"] or not (tmp_path / "c").exists()
    home.delete_folder("x")
    assert home.entries() == {}
    home.delete_folder("x")
    home.delete("x/a.pt")


def test_a_folder_is_found_again_on_another_machine(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    url = store.url("my run")
    folder = working_copy(f"{url}#trials/0003")
    text = portable(folder)
    assert shown(folder) == f"{url}/trials/0003"
    assert store.secret not in text
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "other"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # what the text says is enough
    there = working_copy(text)
    assert there != folder
    assert shown(there) == shown(folder)
    place = place_of(there)
    assert place is not None
    place.store.check()
    assert place_of(tmp_path) is None
    assert portable(tmp_path) == shown(tmp_path) == str(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "[" * 10**5])
def test_a_damaged_name_of_a_store_is_told(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "runs" / "x" / "run").mkdir(parents=True)
    (folder.parent / MARKER).write_text(content)
    assert place_of(folder) is None
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path))
    with pytest.raises(RunError, match=rf"{MARKER}: is damaged; delete {folder.parent}"):
        place_of(folder)


def test_a_strangers_folder_names_no_store(store: Store, tmp_path: Path) -> None:
    """Only what lies in the cache is believed: a name found elsewhere would have this user sign requests to it."""
    ours = working_copy(store.url("run"))
    theirs = tmp_path / "runs" / ours.parent.name / ours.name
    shutil.copytree(ours.parent, theirs.parent)
    assert place_of(theirs) is None
    assert portable(theirs) == shown(theirs) == str(theirs)
    (link := tmp_path / "link").symlink_to(ours.parent.parent)
    assert place_of(link / ours.parent.name / ours.name) is not None


def test_copies_agree(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store.url()
    mine = working_copy(url)
    models = ("best/trial-0001/checkpoint.pt", "start.pt")
    for name in ("manifest.json", "leaderboard.csv", *models, "trials/0001/metrics.jsonl"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(name)
    (mine / ".lock").touch()
    push_run(mine)
    home = home_of(url)
    assert set(home.entries()) == {"manifest.json", "leaderboard.csv", *models}
    home.write("trials/0001/metrics.jsonl", b"{}")
    before = len(store.proxy.requests)
    push_run(mine)
    assert not [line for line in store.proxy.requests[before:] if line.startswith("PUT")]
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "other"))
    theirs = fetched(url)
    assert {path.name for path in theirs.iterdir()} == {"manifest.json", "leaderboard.csv"}
    fetched(url, models=True, trials=True)
    assert [(theirs / name).read_text() for name in models] == list(models)
    assert (theirs / "trials/0001/metrics.jsonl").exists()
    (mine / "leaderboard.csv").write_text("longer than before")
    push_run(mine)
    place = place_of(mine)
    assert place is not None
    RunSync(place).drop("best/trial-0001")
    fetched(url, models=True)
    assert (theirs / "leaderboard.csv").read_text() == "longer than before"
    assert not (theirs / "best/trial-0001/checkpoint.pt").exists()
    home.write("manifest.json", b"of a new run at this URL")
    fetched(url)
    assert (theirs / "manifest.json").read_text() == "of a new run at this URL"
    assert not (theirs / "trials/0001/metrics.jsonl").exists()


def test_two_machines_do_not_work_on_one_run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    url = store.url()
    with locked(working_copy(url)) as mine:
        claim(mine, {"kind": "train"}, {"experiment.yaml": {"a": 1}})
        assert is_leased(home_of(url))
        monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "other"))
        with pytest.raises(RunError, match="is in use by another cdn-tune"), locked(working_copy(url)):
            pass
    assert not is_leased(home_of(url))
    with locked(working_copy(url)) as theirs:
        assert theirs != mine
        assert read_manifest(theirs)["kind"] == "train"
        with pytest.raises(RunError, match="a is 1 there, 2 here"):
            claim(theirs, {"kind": "train"}, {"experiment.yaml": {"a": 2}})


HOLD = """
import sys, time
from cdn_tune.training.object_store.lease import Lease
from cdn_tune.training.object_store.working_copy import place_of, working_copy
with Lease(place_of(working_copy(sys.argv[1])).store):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_killed_holder_does_not_block(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where it can be seen to be dead; from elsewhere once the lease has stood still for long enough."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    home = home_of(url := store.url())
    process = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with monkeypatch.context() as patch:
        patch.setattr(lease, "STALE_SECONDS", 60.0)  # it is renewed every 5 s
        with pytest.raises(RunError, match=f"process {process.pid} on"), Lease(home):
            pass
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with monkeypatch.context() as patch:
        patch.setattr(lease, "_is_live", lambda _, held, __: not lease._is_dead_here(held))
        assert not is_leased(home)
    monkeypatch.setattr(lease, "_machine", lambda: "another machine")
    with Lease(home):
        assert home.read(LEASE)
    assert home.read(LEASE) is None


def test_who_has_lost_the_lease_is_stopped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    interrupted = threading.Event()
    monkeypatch.setattr("_thread.interrupt_main", interrupted.set)
    home = home_of(store.url())
    held = Lease(home).__enter__()
    home.write(LEASE, b'{"owner": "somebody else"}')
    assert interrupted.wait(10)
    assert held.is_lost
    with pytest.raises(RunError, match="was taken over by another cdn-tune"):
        home.write("leaderboard.csv", b"of the one that was lost from sight")
    with pytest.raises(RunError, match="was taken over by another cdn-tune"):
        held.__exit__(None, None, None)
    assert home.read(LEASE) == b'{"owner": "somebody else"}'


def test_a_flag_is_seen_on_another_machine(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flag, "_FILE_SECONDS", 0.0)
    monkeypatch.setattr(flag, "_STORE_SECONDS", 0.0)
    url = store.url()
    mine = StopFlag(working_copy(url) / ".stop")
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "other"))
    theirs = StopFlag(working_copy(url) / ".stop")
    assert not theirs()
    mine.raise_it()
    deadline = time.monotonic() + 30
    while not theirs() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert theirs()
    assert theirs.is_raised()
    mine.lower()
    assert not theirs.is_raised()
