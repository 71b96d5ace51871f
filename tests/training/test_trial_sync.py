"""A trial whose home is on an object store: taken up anywhere, exactly; never written by two."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cdn_tune.config import Experiment
from cdn_tune.config.yaml import dump
from cdn_tune.errors import RunError, TrainingError
from cdn_tune.training.object_store.store import open_store
from cdn_tune.training.object_store.trial_sync import Attempt, Superseded, TrialSync
from cdn_tune.training.object_store.working_copy import POSITION, place_of, working_copy
from cdn_tune.training.reports import Decisions, EpochReport, StepReport, Stop, ignore
from cdn_tune.training.runs.checkpoint import BEST, LAST, PREVIOUS, read_checkpoint
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.train_trial import train_in
from tests.object_store import Store

from .test_exact_resume import StopAt, assert_same

Tiny = Callable[..., Experiment]


def at_home(folder: Path) -> dict[str, int]:
    """What lies at home of a folder, with its size."""
    place = place_of(folder)
    assert place is not None
    return {name: entry.size for name, entry in place.store.entries(place.name).items()}


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From here on the cache is that of a machine which has seen nothing."""
    monkeypatch.setenv("CDN_TUNE_CACHE", str(folder))
    open_store.cache_clear()


def test_a_trial_is_brought_home_and_taken_up_on_another_machine(
    tiny: Tiny, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, url = tiny(**{"train.epochs": 4}), store.url()
    train_in(experiment, tmp_path / "whole", ignore)
    stop = StopAt(5)
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, working_copy(f"{url}#trials/0003"), ignore, stop.on_step, stop=stop)
    there = at_home(working_copy(url))
    assert {f"trials/0003/{name}" for name in (LAST, POSITION)} <= there.keys()
    another_machine(monkeypatch, tmp_path / "other cache")
    folder = working_copy(f"{url}#trials/0003")
    told: list[int] = []
    train_in(experiment, folder, lambda report: told.append(report.epoch))
    assert told == [1, 2, 3, 4]
    assert_same(folder, tmp_path / "whole")
    there = at_home(working_copy(url))
    for name in (LAST, BEST, PREVIOUS, Path("metrics.jsonl")):
        assert there[f"trials/0003/{name}"] == (folder / name).stat().st_size
    assert any("/tensorboard/events" in name for name in there)


def test_a_report_is_told_when_its_checkpoint_is_at_home(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    folder = working_copy(store.url())
    place = place_of(folder)
    assert place is not None
    home = place.store

    def report(done: EpochReport) -> None:
        assert home.download(str(LAST), tmp_path / "last.pt")
        assert home.download(str(BEST), tmp_path / "best.pt")
        assert len(read_checkpoint(tmp_path / "last.pt")["history"]) >= done.epoch
        assert read_checkpoint(tmp_path / "best.pt")["epoch"] >= done.best_epoch
        assert len((home.read("metrics.jsonl") or b"").splitlines()) >= done.epoch

    train_in(tiny(**{"train.checkpoint": "epoch"}), folder, report)


def test_the_best_model_that_a_decision_needs_is_at_home(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    """Without a state, which nothing needs before the end."""
    folder = working_copy(store.url())
    place = place_of(folder)
    assert place is not None
    home, states = place.store, []

    def report(done: EpochReport) -> None:
        assert home.download(str(BEST), tmp_path / "best.pt")
        assert read_checkpoint(tmp_path / "best.pt")["epoch"] == done.best_epoch
        states.append(home.entry(str(LAST)) is not None)

    train_in(tiny(**{"train.checkpoint": 1e6}), folder, report, decisions=Decisions())
    assert states == [False, False, True]


def test_the_curve_of_a_trial_that_a_report_may_end_is_at_home(tiny: Tiny, store: Store) -> None:
    """Without a checkpoint: a stopped trial whose best would not be kept has none, and its report may not return."""
    folder = working_copy(store.url())
    place = place_of(folder)
    assert place is not None
    home, lines = place.store, []

    def report(_: EpochReport) -> None:
        lines.append(len((home.read("metrics.jsonl") or b"").splitlines()))
        assert home.entry(str(LAST)) is None

    experiment = tiny(**{"train.checkpoint": 1e6, "train.epochs": 4})
    decisions = Decisions(first=2, factor=2, worth=2.0)
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, folder, report, stop=lambda: Stop(2 * (len(lines) == 3)), decisions=decisions)
    assert lines == [0, 2, 2]


def test_a_curve_that_cannot_be_sent_before_a_report_is_sent_later(
    tiny: Tiny, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = working_copy(store.url())
    place = place_of(folder)
    assert place is not None
    send, reached = TrialSync._send, []

    def fail(sync: TrialSync, name: Path) -> None:
        if str(name) == "metrics.jsonl" and len(reached) < 3:
            raise RunError("the store is away")
        send(sync, name)

    monkeypatch.setattr(TrialSync, "_send", fail)
    train_in(tiny(**{"train.checkpoint": 1e6}), folder, reached.append, decisions=Decisions(worth=2.0))
    assert sum("the store is away" in record.message for record in caplog.records) == len(reached) == 3
    assert len((place.store.read("metrics.jsonl") or b"").splitlines()) == 3


def test_the_curve_of_a_failed_trial_is_at_home(tiny: Tiny, store: Store) -> None:
    folder = working_copy(store.url())
    place = place_of(folder)
    assert place is not None

    def fail(step: StepReport) -> None:
        if step.epoch == 3:
            raise TrainingError("planted")

    with pytest.raises(TrainingError, match="planted"):
        train_in(tiny(**{"train.checkpoint": 1e6, "train.epochs": 4}), folder, ignore, fail)
    assert len((place.store.read("metrics.jsonl") or b"").splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("pauses", [(0.1,), pytest.param((0.0, 0.15, 0.3, 0.45), marks=pytest.mark.slow)])
def test_killed_and_its_machine_lost(pauses: tuple[float, ...], tiny: Tiny, store: Store, tmp_path: Path) -> None:
    """Each time: kill -9 at a random moment, and every file on the machine gone."""
    experiment, url = tiny(**{"train.epochs": 8, "train.checkpoint": 1e-9}), store.url()
    train_in(experiment, tmp_path / "whole", ignore)
    (tmp_path / "experiment.yaml").write_text(dump(experiment.plain()))
    command = [sys.executable, "-m", "cdn_tune", "train", str(tmp_path / "experiment.yaml"), "--run", url]
    home = place_of(working_copy(url)).store  # type: ignore[union-attr]
    killed = 0
    for pause in pauses:
        before = home.read(POSITION)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and home.read(POSITION) == before:
            time.sleep(0.01)
        time.sleep(pause)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        shutil.rmtree(tmp_path / "cache")
    assert killed
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(working_copy(url), tmp_path / "whole")


def test_what_this_machine_has_is_not_fetched_again(tiny: Tiny, store: Store) -> None:
    experiment, folder = tiny(), working_copy(store.url())
    stop = StopAt(3)
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, folder, ignore, stop.on_step, stop=stop)
    before = len(store.proxy.requests)
    train_in(experiment, folder, ignore)
    asked = store.proxy.requests[before:]
    assert not [line for line in asked if line.startswith("GET") and line.endswith(".pt")]


def test_a_state_that_was_not_brought_home_in_time_is_gone_on_with(
    tiny: Tiny, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the disk and home: this machine is further, and home lags."""
    experiment, folder = tiny(**{"train.epochs": 4, "train.checkpoint": "epoch"}), working_copy(store.url())
    train_in(experiment, tmp_path / "whole", ignore)
    with monkeypatch.context() as patch:

        def lost(self: TrialSync, name: Path) -> None:
            if name == LAST and len(read_metrics(folder)) >= 2:
                raise RunError("the power is out")

        send = TrialSync._send
        patch.setattr(TrialSync, "_send", lambda self, name: lost(self, name) or send(self, name))
        with pytest.raises(RunError, match="the power is out"):
            train_in(experiment, folder, ignore)
    trained: list[StepReport] = []
    train_in(experiment, folder, ignore, trained.append)
    assert {step.epoch for step in trained} == {4}
    assert_same(folder, tmp_path / "whole")


def test_home_counts_where_a_trial_of_that_number_was_lost(tiny: Tiny, store: Store) -> None:
    """Another machine's record of a trial that is no more at home is no state of the new one."""
    folder = working_copy(store.url() + "#trials/0001")
    train_in(tiny(), folder, ignore)
    place = place_of(folder)
    assert place is not None
    place.store.delete_folder(place.name)
    trained: list[StepReport] = []
    train_in(tiny(**{"optim.lr": 1e-3}), folder, ignore, trained.append)
    assert trained[0].epoch == 1


def test_a_damaged_last_at_home_gives_way_to_the_one_before(
    tiny: Tiny, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, url = tiny(**{"train.checkpoint": 1e-9}), store.url()
    train_in(experiment, tmp_path / "whole", ignore)
    stop = StopAt(5)
    with pytest.raises(KeyboardInterrupt):
        train_in(experiment, working_copy(url), ignore, stop.on_step, stop=stop)
    place = place_of(working_copy(url))
    assert place is not None
    place.store.write(str(LAST), b"half a checkpoint")
    another_machine(monkeypatch, tmp_path / "other cache")
    train_in(experiment, working_copy(url), ignore)
    assert_same(working_copy(url), tmp_path / "whole")


@pytest.mark.parametrize("where", ["store", "folder"])
def test_an_older_attempt_writes_no_more(
    where: str, tiny: Tiny, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old process comes back after a new one has begun: it ends with an error, and what is there stays."""
    folder = working_copy(store.url()) if where == "store" else tmp_path / "run"
    experiment = tiny(**{"train.epochs": 5, "train.checkpoint": "epoch"})

    def overtaken(step: StepReport) -> None:
        if step.epoch == 3:
            Attempt(folder).claim()

    reported: list[int] = []
    with pytest.raises(Superseded, match="another process has taken this trial over"):
        train_in(experiment, folder, lambda done: reported.append(done.epoch), overtaken)
    assert max(reported) == 2
    assert len(read_checkpoint(folder / LAST)["history"]) == 2
    if where == "store":
        place = place_of(folder)
        assert place is not None
        assert place.store.download(str(LAST), tmp_path / "last.pt")
        assert len(read_checkpoint(tmp_path / "last.pt")["history"]) == 2


def test_what_a_late_write_has_spoilt_is_put_right(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    """An old process looked, froze, and wrote when it woke: the newer one notices before it ends."""
    folder = working_copy(store.url())
    place = place_of(folder)
    assert place is not None

    def spoil(done: EpochReport) -> None:
        if done.is_last:
            place.store.write(str(BEST), b"of the old process")

    train_in(tiny(), folder, spoil)
    assert place.store.download(str(BEST), tmp_path / "best.pt")
    assert (tmp_path / "best.pt").read_bytes() == (folder / BEST).read_bytes()


def test_a_store_that_fails_for_a_while_is_waited_for(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    folder = working_copy(store.url())
    train_in(tiny(), tmp_path / "whole", ignore)

    def fail(step: StepReport) -> None:
        if (step.epoch, step.step) == (2, 1):
            store.proxy.fail = 7  # more than the client tries by itself

    train_in(tiny(), folder, ignore, fail)
    assert_same(folder, tmp_path / "whole")


def test_a_store_of_which_some_requests_fail(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    folder = working_copy(store.url())
    train_in(tiny(), tmp_path / "whole", ignore)
    store.proxy.share = 0.1
    train_in(tiny(), folder, ignore)
    store.proxy.heal()
    assert_same(folder, tmp_path / "whole")


def test_other_trials_checkpoints_leave_the_machine(tiny: Tiny, store: Store) -> None:
    url = store.url()
    first, second = (working_copy(f"{url}#trials/000{number}") for number in range(2))
    train_in(tiny(**{"train.epochs": 1}), first, ignore)
    train_in(tiny(**{"train.epochs": 1}), second, ignore)
    assert not (first / LAST).parent.exists()
    assert f"trials/0000/{BEST}" in at_home(working_copy(url))
