"""A search on many slots: how full the one driver keeps them, and what its decisions take; nothing is trained.

``python -m benchmarks.scale [--trials N] [--slots N] [--storage journal postgresql] [--sampler random tpe] [--cpu]``.
Study, driver, sampler, stopping rule, leaderboard and storage are the real ones. Epochs pass on a virtual clock, which
goes on by the time of each decision: while the driver decides for one slot, the others wait as real ones would. That is
real time, or with ``--cpu`` the process's own, for a machine that does other things meanwhile.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from benchmarks._measure import publish, table
from benchmarks.cluster import server
from benchmarks.search import EPOCHS, ignore, make_space
from cdn_tune.config import load_experiment
from cdn_tune.tuning.checkpoints.retention import Retention
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.engine.door import Answer, Assignment, Decision, Ending, Loss, Room, TrialReport
from cdn_tune.tuning.engine.virtual.engine import CurvePoint, VirtualClock, VirtualEngine, World
from cdn_tune.tuning.engine.virtual.files import Flag, MemoryFiles
from cdn_tune.tuning.progress import Progress
from cdn_tune.tuning.results.record import quiet
from cdn_tune.tuning.storage.check import file_system
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.study.study import Study

TRIALS = {"journal": 20_000, "postgresql": 2_000}
SLOTS = 1_000
SAMPLERS = ("random", "tpe")
SECONDS = 10.0  # of an epoch, in the mean
AT = (100, 10_000)  # ended trials at which a proposal is timed, over the hundred proposals that follow
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples are spread evenly

Result = TypeVar("Result")


class DecisionClock(VirtualClock):
    """A virtual clock that runs with another one, of seconds, while the driver decides."""

    def __init__(self, other: Callable[[], float]) -> None:
        super().__init__()
        self._other = other
        self._since: float | None = None

    def __call__(self) -> float:
        """Returns the time in seconds."""
        return self.now + (0.0 if self._since is None else self._other() - self._since)

    @contextmanager
    def deciding(self, seconds: list[float]) -> Iterator[None]:
        """Runs during the block, and notes how long that was."""
        self._since = began = self._other()
        yield
        seconds.append(self._other() - began)
        self._since, self.now = None, self.now + seconds[-1]


class Watch:
    """A driver whose decisions are timed.

    Attributes:
        seconds: Of each call, by its name.
        proposals: Trials that had ended before each assignment, and its seconds.
        epochs: When each epoch of any trial began and how long it trained.
        filled: When every slot first had a trial.
        last: When the last trial was assigned.
    """

    def __init__(self, driver: Driver, clock: DecisionClock, slots: int) -> None:
        self._driver, self._clock, self._slots = driver, clock, slots
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.proposals: list[tuple[int, float]] = []
        self.epochs: list[tuple[float, float]] = []
        self.filled = self.last = 0.0
        self._began: dict[int, float] = {}
        self._ended = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def _timed(self, name: str, call: Callable[..., Result], *arguments: Any) -> Result:
        with self._clock.deciding(self.seconds[name]):
            return call(*arguments)

    def next(self, room: Room) -> Assignment | Answer:
        """Passes a question on."""
        answer = self._timed("next", self._driver.next, room)
        if isinstance(answer, Assignment):
            self._begin(answer.number)
            self.last = self._clock.now
            self.proposals.append((self._ended, self.seconds["next"][-1]))
            if len(self._began) == self._slots and not self.filled:
                self.filled = self._clock.now
        return answer

    def reported(self, number: int, report: TrialReport) -> Decision:
        """Passes a report on."""
        self.epochs.append((self._began[number], report.epoch.train_seconds))
        decision = self._timed("reported", self._driver.reported, number, report)
        self._begin(number)
        if decision is Decision.STOP:
            self._leave(number)
        return decision

    def ended(self, number: int, ending: Ending) -> None:
        """Passes an end on."""
        self._timed("ended", self._driver.ended, number, ending)
        self._leave(number)

    def lost(self, number: int, loss: Loss) -> bool:
        """Passes a loss on."""
        return self._timed("lost", self._driver.lost, number, loss)

    def poll(self, room: Room) -> None:
        """Passes a poll on."""
        self._timed("poll", self._driver.poll, room)

    def _begin(self, number: int) -> None:
        self._began[number] = self._clock.now

    def _leave(self, number: int) -> None:
        del self._began[number]
        self._ended += 1

    def busy(self) -> float:
        """Returns the share of slot time spent in epochs from when all slots are filled until the last trial begins."""
        spans = [(max(began, self.filled), min(began + seconds, self.last)) for began, seconds in self.epochs]
        return sum(max(0.0, end - start) for start, end in spans) / (self._slots * (self.last - self.filled))

    def at(self, ended: int) -> list[float]:
        """Returns the seconds of the hundred proposals after so many trials had ended."""
        return [seconds for before, seconds in self.proposals if before >= ended][:100]


def rising(number: int, parameters: Mapping[str, Any], metrics: Sequence[str]) -> list[CurvePoint]:
    """Returns a curve that rises towards what a point is worth, with some noise; no two trials' epochs are as long."""
    worth = 0.9 - 0.2 * abs(math.log10(parameters["optim.lr"]) + 2.5) - 0.03 * abs(parameters["model.map.layers"] - 3)
    worth -= 0.05 * (parameters["model.proposals"] == "pool") + 0.1 * abs(parameters["loss.min_iou"] - 0.3)
    seconds = SECONDS * (0.8 + 0.4 * (number * _GOLDEN % 1))
    values = [worth * (1 - 0.6**epoch) + 0.01 * math.sin(7 * number + epoch) for epoch in range(1, EPOCHS + 1)]
    return [CurvePoint(dict.fromkeys(metrics, max(0.0, value)), seconds, 1 - value) for value in values]


def measure(sampler: str, storage: str, url: str, run: Path, trials: int, slots: int, cpu: bool) -> list[str]:
    """Returns the row of a search; to be called in a process of its own, whose memory it tells."""
    base = load_experiment("demo/small", {"train.epochs": EPOCHS})
    space = make_space(f"scale-{sampler}", trials, sampler={"name": sampler})
    metrics = [base.eval.metric, *(name for name in base.eval.metrics if name != base.eval.metric)]
    clock = DecisionClock(time.process_time if cpu else time.perf_counter)
    flushes = timed_flushes()
    world = World(clock, {0: slots})
    with quiet():
        study = Study(open_storage(url, sole_writer=storage == "journal"), space, base, clock=clock)
        study.begin()
        driver = Driver(study, trials, Retention(MemoryFiles(world), space.keep), clock, Flag())
        driver.observer = Progress(driver, run, base, ignore, clock)
        watch = Watch(driver, clock, slots)
        began = time.perf_counter()
        driver.start()
        VirtualEngine(lambda number, point: rising(number, point, metrics), world).run(watch)
        driver.close()
    wall = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    decided = sum(map(sum, watch.seconds.values()))
    states = Counter(trial.state.name for trial in Study(open_storage(url), space, base).trials())
    assert sum(states.values()) == states["COMPLETE"] + states["PRUNED"] == trials, states  # on record
    early, late = (watch.at(ended) for ended in AT)
    print(
        f"{storage}, {sampler}: {wall:.0f} s, virtual {clock.now:.0f} s, filled after {watch.filled:.1f} s, "
        + ", ".join(f"{name} {len(each)}x {sum(each):.1f} s" for name, each in watch.seconds.items()),
        flush=True,
    )
    return [
        sampler,
        f"{trials}, {len(watch.epochs)}",
        f"{watch.busy():.1%}",
        f"{len(watch.epochs) / decided:.0f}",
        _spread(early),
        _spread(late),
        f"{statistics.median(late) / statistics.median(early):.2f}x" if late else "-",
        _spread(watch.seconds["reported"]),
        f"{len(flushes) / trials:.1f}, each {_spread(flushes)}" if flushes else "-",
        f"{memory:.2f} GB",
    ]


def timed_flushes() -> list[float]:
    """Has every flush of a file in this process add its real seconds to the list that is returned."""
    seconds: list[float] = []
    flush = os.fsync

    def timed(file: int) -> None:
        began = time.perf_counter()
        flush(file)
        seconds.append(time.perf_counter() - began)

    os.fsync = timed  # type: ignore[assignment]
    return seconds


def _spread(seconds: Sequence[float]) -> str:
    """Returns the median and the 99 % quantile in milliseconds."""
    if not seconds:
        return "-"
    return f"{1000 * statistics.median(seconds):.1f}, {1000 * sorted(seconds)[int(0.99 * len(seconds))]:.1f} ms"


def in_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """Returns what a function returns in a new process, which ends with it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    """Prints a section of the results per storage and writes it, if all of it was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, help=f"instead of {TRIALS}")
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--storage", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--sampler", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--cpu", action="store_true", help="decisions take processor time, not real time")
    options = parser.parse_args()
    is_whole = options.trials is None and options.slots == SLOTS and set(options.sampler) == set(SAMPLERS)
    for storage in options.storage:
        rows = []
        with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as name, storages(storage, Path(name)) as urls:
            if urls is None:
                print(f"{storage}: no server on this machine, left out", flush=True)
                continue
            for sampler in options.sampler:
                run = Path(name) / sampler
                run.mkdir()
                trials = options.trials or TRIALS[storage]
                work = (sampler, storage, urls(sampler), run, trials, options.slots, options.cpu)
                rows.append(in_process(measure, *work))
        lines = section(storage, rows, options.slots, options.cpu)
        if is_whole:
            publish(f"scale_{storage}{'_cpu' * options.cpu}", lines)
        else:
            print("\n".join(lines))


@contextmanager
def storages(storage: str, folder: Path) -> Iterator[Callable[[str], str] | None]:
    """Yields the URL of each sampler's study in a kind of storage; None if there is none here."""
    if storage == "journal":
        yield lambda sampler: f"journal:///{folder / sampler}.journal"
        return
    with server() as url:
        yield None if url is None else lambda _: str(url)


def section(storage: str, rows: list[list[str]], slots: int, cpu: bool) -> list[str]:
    """Returns the section of the results of a storage."""
    heads = ["sampler", "trials, reports", "slots busy", "reports a second", f"a proposal at {AT[0]} trials"]
    heads += [f"at {AT[1]}", "ratio", "a report", "flushes a trial", "peak memory"]
    timed = "processor" if cpu else "real"
    about = (
        f"{slots} virtual slots, trials of {EPOCHS} epochs of about {SECONDS:g} s, ASHA from the first epoch. Slots "
        f"busy: the share of their time spent in epochs, while the driver's decisions take {timed} time, from when all "
        "are filled until the last trial begins. Reports a second of all decisions together. A proposal (of the "
        "hundred after so many trials have ended), a report, a flush (real time): median and 99 %. Aims: 98 %, 300 "
        "reports a second, a ratio of 1.3, 1.5 GB."
    )
    disk = file_system(Path(tempfile.gettempdir())) or "an unknown file system"
    command = f"`python -m benchmarks.scale --storage {storage}{' --cpu' * cpu}`, its files on {disk}."
    title = f"## A search on many slots: simulated, {storage}{', processor time alone' * cpu}"
    return [title, "", command, "", about, "", *table(heads, rows)]


if __name__ == "__main__":
    main()
