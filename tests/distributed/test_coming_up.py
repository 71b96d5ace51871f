"""A Ray that comes up beside its caller's preparations: when it is waited for, what it raises, that it ends."""

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cdn_tune.distributed import cluster
from cdn_tune.distributed.cluster import coming_up, connected
from cdn_tune.errors import ClusterError

LEFT_OPEN = """
import sys
from cdn_tune.distributed import cluster
class Ray:
    def is_initialized(self): return False
    def shutdown(self): print("ended")
cluster.ray = Ray()
cluster._start = lambda *_: None
cluster.coming_up().__enter__()
sys.exit(3)
"""


class FakeRay:
    """Records what is done with Ray, and in which thread."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: list[threading.Thread] = []
        self.is_up = False
        self.may_come_up = threading.Event()
        self.fault: BaseException | None = None
        self.blocked: set[int] = set()

    def start(self, address: str | None, head: str | None) -> None:
        """Stands for what starts or joins a Ray."""
        self.calls.append(f"start {address} {head}")
        self.threads.append(threading.current_thread())
        self.blocked = set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        assert self.may_come_up.wait(30)
        if self.fault is not None:
            raise self.fault
        self.is_up = True

    def is_initialized(self) -> bool:
        """Whether it is up."""
        return self.is_up

    def remote(self, **_: Any) -> Any:
        """Makes a task that is never run."""
        return lambda _: SimpleNamespace(remote=lambda: None)

    def cluster_resources(self) -> dict[str, float]:
        """What it has."""
        assert self.is_up
        return {"CPU": 2.0}

    def shutdown(self) -> None:
        """Ends it."""
        self.calls.append("end")
        self.threads.append(threading.current_thread())
        self.is_up = False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Stands for Ray in `cluster`."""
    found = FakeRay()
    monkeypatch.setattr(cluster, "ray", found)
    monkeypatch.setattr(cluster, "_start", found.start)
    monkeypatch.setattr(cluster, "check_join", lambda address: f"head of {address}")
    monkeypatch.setattr(cluster, "_check_workers", lambda address, _: found.calls.append(f"check {address}"))
    return found


def test_it_comes_up_meanwhile_and_ends_with_the_connection(fake: FakeRay) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with coming_up():
        fake.may_come_up.set()
        with connected() as resources:
            assert resources == {"CPU": 2.0}
            with connected("h:1"):
                pass
            assert fake.calls == ["start None None", "check None"]
        assert fake.calls == ["start None None", "check None", "end"]
    assert fake.calls == ["start None None", "check None", "end"]
    assert fake.threads[0] is fake.threads[1] is not threading.main_thread()  # Linux ends with it what it has started
    assert not fake.threads[0].is_alive()
    assert signal.SIGHUP in fake.blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert {each: signal.getsignal(each) for each in before} == before


def test_what_went_wrong_is_raised_where_it_is_waited_for(fake: FakeRay) -> None:
    fake.fault = ClusterError("Ray cannot be started here")
    fake.may_come_up.set()
    with coming_up():
        with pytest.raises(ClusterError, match="cannot be started"), connected():
            raise AssertionError("connected to nothing")
        assert fake.calls[-1] == "end"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_it_ends_where_it_is_needed_no_more(fake: FakeRay, error: type[BaseException]) -> None:
    """Also while it comes up: the error is raised once nothing is left."""

    def prepare() -> None:
        threading.Timer(0.1, fake.may_come_up.set).start()
        raise error

    with pytest.raises(error), coming_up():
        prepare()
    assert fake.calls == ["start None None", "end"]
    assert not fake.threads[0].is_alive()


def test_one_that_is_there_is_used_and_left(fake: FakeRay) -> None:
    fake.is_up = True
    with coming_up(), connected() as resources:
        assert resources == {"CPU": 2.0}
    assert fake.calls == []


def test_none_is_left_for_the_next(fake: FakeRay) -> None:
    fake.may_come_up.set()
    with coming_up():
        pass
    with connected("h:1"):
        pass
    assert fake.calls == ["start None None", "end", "start h:1 head of h:1", "check h:1", "end"]


def test_one_that_nobody_ends_goes_with_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "ended\n", "")
