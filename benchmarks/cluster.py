"""A search on many nodes: how full it keeps them, how soon it recovers, and what its record bears.

``python -m benchmarks.cluster [--part scheduling|recovery|storage ...]``. The nodes are raylets of this machine with
logical CPUs; trials of the first part sleep, those of the second train next to nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from benchmarks._measure import publish, table
from benchmarks.search import ignore, make_space
from cdn_tune.config import Experiment, load_experiment
from cdn_tune.data.planted import plant
from cdn_tune.training.reports import EpochReport, Report
from cdn_tune.tuning.search import SearchOptions, search
from cdn_tune.tuning.storage.open import open_storage
from cdn_tune.tuning.study.study import Study

PARTS = ("scheduling", "recovery", "storage")
STAMPS = "stamps"
POSTGRES = Path("/usr/lib/postgresql")


def one_epoch(experiment: Experiment, epoch: int, epochs: int, value: float) -> EpochReport:
    """Returns the report of an epoch that nobody trained."""
    return EpochReport(
        epoch=epoch, epochs=epochs, loss=1.0, losses={"moment_loss": 1.0, "attention_loss": 0.0}, learning_rate=1e-3,
        gradient_norm=1.0, samples_per_second=1.0, train_seconds=1.0, val_seconds=0.1,
        val=dict.fromkeys(experiment.eval.metrics, value), value=value, best_value=value, best_epoch=epoch,
        steps=epoch, val_queries=1,
    )  # fmt: skip


def sleeping(experiment: Experiment, folder: Path, report: Report, *, slots: int, **_: object) -> None:
    """Stands for a training: sleeps, reports three epochs, notes when it began and ended, and in which process.

    A process's first trial waits until every slot has its process: 64 processes take minutes to start on two cores.
    Then it sleeps up to twice as long as the others, so that trials end one by one, as real ones do.
    """
    began, epochs = time.time(), 3
    seconds = float(experiment.train.checkpoint) * 60
    present = folder.parents[1] / "present"
    present.mkdir(parents=True, exist_ok=True)
    mine = present / str(os.getpid())
    if not mine.exists():
        mine.touch()
        while len(list(present.iterdir())) < slots:
            time.sleep(1.0)
        seconds *= 1 + random.Random(os.getpid()).random()
    for epoch in range(1, epochs + 1):
        time.sleep(seconds / epochs)
        report(one_epoch(experiment, epoch, epochs, min(1.0, experiment.optim.lr * epoch)))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / STAMPS).open("a") as file:
        file.write(f"{os.getpid()} {began} {time.time()}\n")


def waiting(experiment: Experiment, folder: Path, report: Report, **_: object) -> None:
    """Stands for a training: notes when it begins, and in which process; ends once the search may end."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / STAMPS).open("a") as file:
        file.write(f"{os.getpid()} {time.time()}\n")
    while not (folder.parents[1] / "enough").exists():
        time.sleep(0.1)
    report(one_epoch(experiment, 1, 1, 0.5))


@contextmanager
def nodes(*cpus: int) -> Iterator[tuple[Any, list[Any]]]:
    """Yields a cluster of raylets with so many logical CPUs each, and them; the first is the head."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        yield cluster, [add_node(cluster, count) for count in cpus]
    finally:
        cluster.shutdown()


def add_node(cluster: Any, cpus: int) -> Any:
    """Adds a node to a cluster."""
    return cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20, include_dashboard=False)


def memory_of(pids: list[int]) -> float:
    """Returns the resident memory of processes, in GB of 10^9 bytes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * resource.getpagesize() / 1e9


def scheduling(
    folder: Path, experiment: Experiment, raylets: int, per_node: int, rounds: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the row of how full the slots are, and that of what the driver and the head spend."""
    slots = raylets * per_node
    run = folder / "scheduling"
    space = make_space(
        "scheduling", slots * rounds, sampler={"name": "random"}, early_stopping={"name": "none"}, keep=1
    )
    with nodes(*[per_node] * raylets) as (cluster, members):
        [head] = [info.process.pid for info in members[0].all_processes["gcs_server"]]
        before = time.process_time()
        options = SearchOptions(train=partial(sleeping, slots=slots), address=cluster.address)
        result = search(space, experiment, run, ignore, options)
        spent = time.process_time() - before
        head_memory = memory_of([head])
    by_process: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for path in run.glob(f"trials/*/{STAMPS}"):
        for line in path.read_text().splitlines():
            pid, began, ended = line.split()
            by_process[int(pid)].append((float(began), float(ended)))
    spans = [sorted(each) for each in by_process.values()]
    everything = sorted(span for each in spans for span in each)
    start = sorted(ended for _, ended in everything)[2 * slots - 1]  # Ray's own start is over
    end = everything[-1][0]  # until then there is a trial for every slot
    gaps = [after[0] - before[1] for each in spans for before, after in itertools.pairwise(each) if before[1] >= start]
    busy = sum(max(0.0, min(ended, end) - max(began, start)) for began, ended in everything)
    lost = slots * rounds - sum(row["state"] == "complete" for row in result.rows)
    seconds = float(experiment.train.checkpoint) * 60
    left = "nothing" if result.audit is None or result.audit.is_clean else str(result.audit)
    full = [
        f"{slots} over {raylets} raylets",
        f"{seconds:.0f} s",
        f"{busy / (slots * (end - start)):.1%} of {end - start:.0f} s",
        f"{statistics.median(gaps):.2f} s",
        f"{sorted(gaps)[int(0.95 * len(gaps))]:.2f} s",
        str(lost),
        left,
    ]
    costs = [
        f"{len(everything)} trials, {3 * len(everything)} reports",
        f"{1000 * spent / len(everything):.0f} ms",
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
        f"{head_memory:.2f} GB",
        f"{statistics.mean(len(each) for each in spans):.1f}",
    ]
    return [full], [costs]


def recovery(folder: Path, experiment: Experiment, rounds: int) -> list[list[str]]:
    """Returns the row of the time from a node's death until its trial runs again, on a node that joins then."""
    run = folder / "recovery"
    space = make_space("recovery", 2, sampler={"name": "random"}, early_stopping={"name": "none"}, max_failures=0)
    again: list[float] = []
    joined: list[float] = []
    with nodes(0, 1, 1) as (cluster, members):
        thread = Thread(
            target=search, args=(space, experiment, run, ignore, SearchOptions(train=waiting, address=cluster.address))
        )
        thread.start()
        workers = members[1:]
        until(lambda: len(starts(run)) == 2)
        for _ in range(rounds):
            known = len(starts(run))
            victim = workers.pop(0)
            kill_node(victim)
            killed = time.time()
            workers.append(add_node(cluster, 1))
            up = time.time()
            until(lambda count=known: len(starts(run)) > count)  # type: ignore[misc]
            again.append(max(starts(run)) - killed)
            joined.append(max(starts(run)) - up)
        (run / "enough").touch()
        thread.join(timeout=120)
    return [[f"{rounds} kills", f"{statistics.median(again):.1f} s", f"{max(again):.1f} s", "<= 40 s"]]


def starts(run: Path) -> list[float]:
    """Returns when trials began, each time they did."""
    lines = [line for path in run.glob(f"trials/*/{STAMPS}") for line in path.read_text().splitlines()]
    return [float(line.split()[1]) for line in lines]


def kill_node(node: Any) -> None:
    """Kills a node's raylet and workers at once, as a power cut would."""
    [raylet] = [info.process.pid for info in node.all_processes["raylet"]]
    told = subprocess.run(["/usr/bin/pgrep", "-P", str(raylet)], capture_output=True, text=True, check=False)
    for pid in (raylet, *map(int, told.stdout.split())):
        os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain")
        time.sleep(0.05)


def storage(folder: Path, experiment: Experiment, trials: int) -> list[list[str]]:
    """Returns a row per storage: trials and reports a second that one writer gets through it."""
    journal = f"journal:///{folder / 'storage.journal'}"
    rows = [
        records("the run folder's journal", open_storage(journal, sole_writer=True), experiment, trials),
        records("Optuna's journal of many writers", open_storage(f"{journal}2"), experiment, trials),
        records("sqlite", open_storage(f"sqlite:///{folder / 'storage.db'}"), experiment, trials),
    ]
    with server() as url:
        if url is not None:
            rows.append(records("PostgreSQL on this machine", open_storage(url), experiment, trials))
    return rows


def records(name: str, opened: BaseStorage, experiment: Experiment, trials: int) -> list[str]:
    """Plays trials of nine epochs into a storage, without Ray."""
    space = make_space("storage", trials, sampler={"name": "random"}, early_stopping={"name": "asha"})
    study = Study(opened, space, experiment)
    epochs = 9
    asked = told = ended = 0.0
    reports = 0
    while True:
        moment = time.perf_counter()
        number = study.next(trials)
        asked += time.perf_counter() - moment
        if number is None:
            break
        for epoch in range(1, epochs + 1):
            note = {"epoch": epoch, "epochs": epochs, "best_epoch": epoch, "val": {experiment.eval.metric: 0.5}}
            moment = time.perf_counter()
            lags = study.report(number, epoch, min(1.0, study.parameters(number)["optim.lr"] * epoch), note)
            told += time.perf_counter() - moment
            reports += 1
            if lags and epoch < epochs:
                break
        moment = time.perf_counter()
        study.prune(number, "stopped early") if lags and epoch < epochs else study.complete(number)
        ended += time.perf_counter() - moment
    whole = asked + told + ended
    states = [trial.state for trial in study.trials()]
    assert all(state in (TrialState.COMPLETE, TrialState.PRUNED) for state in states)
    return [
        f"{name}, {trials} trials",
        f"{1000 * asked / trials:.0f} ms",
        f"{1000 * told / reports:.1f} ms",
        f"{1000 * ended / trials:.0f} ms",
        f"{trials / whole:.1f}",
        f"{reports / told:.0f}",
    ]


@contextmanager
def server() -> Iterator[str | None]:
    """Yields the URL of a PostgreSQL that runs for the duration; None if there is none on this machine."""
    programs = sorted(POSTGRES.glob("*/bin"))
    if not programs:
        yield None
        return
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    home = Path(tempfile.mkdtemp(prefix="cdn-tune-pg-"))
    if as_user:
        shutil.chown(home, "nobody", "nogroup")
    data, port = home / "data", 55_000 + os.getpid() % 5_000
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*as_user, programs[-1] / "initdb", "-D", data, "-A", "trust", "-U", "bench"], check=True, **quiet)
    started = subprocess.Popen(
        [*as_user, programs[-1] / "postgres", "-D", data, "-p", str(port), "-k", home, "-h", "127.0.0.1"], **quiet
    )
    try:
        ready = [programs[-1] / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-U", "bench"]
        until(lambda: subprocess.run(ready, check=False, **quiet).returncode == 0, 60)
        yield f"postgresql+psycopg2://bench@127.0.0.1:{port}/postgres"
    finally:
        started.send_signal(signal.SIGINT)  # at once: the study keeps a connection open
        started.wait(timeout=60)
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Prints the section of the results and writes it, if all of it was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--raylets", type=int, default=8)
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="that a trial of the first part sleeps")
    parser.add_argument("--rounds", type=int, default=8, help="trials per slot")
    parser.add_argument("--kills", type=int, default=5, help="of nodes, in the second part")
    parser.add_argument("--trials", type=int, default=300, help="of the storage's part")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lines = ["## Search on many nodes", "", "`python -m benchmarks.cluster`, raylets on one machine."]
    with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as name:
        folder = Path(name)
        plant(folder / "data", videos=40, feature_size=64, seed=0)
        sleep = {"train.checkpoint": options.seconds / 60}
        demo = load_experiment("demo/small", {"data.root": str(folder / "data"), "train.epochs": 3, **sleep})
        if "scheduling" in options.part:
            full, costs = scheduling(folder, demo, options.raylets, options.per_node, options.rounds)
            heads = ["slots", "a trial", "busy in steady state", "to the next, median", "95 %", "lost", "left behind"]
            lines += [
                "",
                "Trials that sleep and report three epochs. Steady state: from the end of two trials a slot until the "
                "last trial begins. To the next: from a trial's end to the next one's first step in the same process, "
                "in steady state. Aims: 90 %, 1.5 s.",
                "",
                *table(heads, full),
                "",
                "What that takes beside the trials.",
                "",
                *table(["", "driver's CPU a trial", "driver's memory", "head's GCS", "trials a process"], costs),
            ]
        if "recovery" in options.part:
            lines += [
                "",
                "From the death of a trial's node (raylet and workers killed) until the trial runs again, on a node "
                "that joins then.",
                "",
                *table(["", "median", "longest", "aim"], recovery(folder, demo, options.kills)),
            ]
        if "storage" in options.part:
            heads = ["storage", "next trial", "a report", "its end", "trials a second", "reports a second"]
            lines += [
                "",
                "The study alone: trials of nine epochs with ASHA by one writer, without Ray or a pause.",
                "",
                *table(heads, storage(folder, demo, options.trials)),
            ]
    if set(PARTS) == set(options.part):
        publish("cluster", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
