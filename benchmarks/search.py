"""What a search costs beside its trials, and what it finds: against random search at equal budget.

``python -m benchmarks.search [--part overhead|start|groups|budget|simulate|defaults|real ...] [--trials N] [--seeds
N]``. Trials of the first three parts train nothing or next to nothing; `budget` trains real ones on ``planted-medium``;
`simulate` compares with plain Ray Tune over the tables of `benchmarks/curves/`, and `defaults` with other settings of
ours: both train nothing; `real` compares with plain Ray Tune by real trials.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks._against import Epochs, changed, real, simulated
from benchmarks._first_step import STAMPS, stamped
from benchmarks._measure import RESULTS, publish, table
from benchmarks.curves import TABLES
from cdn_tune.config import Experiment, SearchSpace, load_experiment
from cdn_tune.config.yaml import dump
from cdn_tune.data.planted import plant
from cdn_tune.data.planted.planting import preset
from cdn_tune.distributed.cluster import connected
from cdn_tune.training.reports import EpochReport, Report
from cdn_tune.tuning.engine.door import Decision, Ending, EngineDriver, TrialReport
from cdn_tune.tuning.engine.ray.engine import RayEngine
from cdn_tune.tuning.progress import SearchState
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.search import SearchOptions, search
from cdn_tune.tuning.study.ranking import value_of

TIMED = ("overhead", "start", "groups")
PARTS = (*TIMED, "budget", "simulate", "defaults", "real")
EPOCHS = 9
SIMULATED = 100  # seeds of simulated searches
BUDGETS = (120, 480)  # epochs of simulated searches with other settings than the defaults
PARAMETERS: dict[str, Any] = {
    "model.map.kernel_size": {"type": "categorical", "choices": [1, 3, 5, 7]},
    "model.map.layers": {"type": "int", "low": 1, "high": 4},
    "model.proposals": {"type": "categorical", "choices": ["pool", "conv"]},
    "optim.lr": {"type": "float", "low": 1e-4, "high": 3e-2, "log": True},
    "train.batch_size": {"type": "categorical", "choices": [8, 16, 32]},
    "loss.min_iou": {"type": "float", "low": 0.1, "high": 0.6},
}


def ignore(_: SearchState) -> None:
    """Looks at nothing."""


def nothing(experiment: Experiment, _: Path, report: Report, **__: object) -> None:
    """Stands for a training: reports epochs whose value follows from the learning rate; learns nothing."""
    best = 0.0
    for epoch in range(1, EPOCHS + 1):
        best = min(1.0, experiment.optim.lr * 30 * epoch / EPOCHS)
        report(
            EpochReport(
                epoch=epoch, epochs=EPOCHS, loss=1.0 - best, losses={"moment_loss": 0.0, "attention_loss": 0.0},
                learning_rate=experiment.optim.lr, gradient_norm=1.0, samples_per_second=1.0, train_seconds=0.0,
                val_seconds=0.0, val=dict.fromkeys(experiment.eval.metrics, best), value=best, best_value=best,
                best_epoch=epoch, steps=epoch, val_queries=1,
            )
        )  # fmt: skip


def make_space(name: str, trials: int, **more: Any) -> SearchSpace:
    """Returns a search space over the demo experiment."""
    values = {
        "name": name, "experiment": "demo/small", "parameters": PARAMETERS, "trials": trials, "start_with": [],
        "early_stopping": {"name": "asha", "min_resource": 1, "reduction_factor": 3}, **more,
    }  # fmt: skip
    return SearchSpace.model_validate(values, strict=False)


def times(run: Path) -> list[float]:
    """Returns when each trial of a search ended, in seconds since the first one began."""
    trials = read_record(run).entries
    begin = min(trial.datetime_start for trial in trials if trial.datetime_start)
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return sorted((end - begin).total_seconds() for end in ends)


def overhead(folder: Path, experiment: Experiment, trials: int) -> list[list[str]]:
    """Returns a row per sampler: seconds of a one-worker trial whose training does nothing."""
    rows = []
    for sampler in ("random", "tpe"):
        run = folder / f"nothing-{sampler}"
        space = make_space("nothing", trials, sampler={"name": sampler})
        search(space, experiment, run, ignore, SearchOptions(train=nothing))
        ends = times(run)
        first, last = ends[99] - ends[0], ends[-1] - ends[-100]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        rows.append(
            [
                f"{sampler}, {len(ends)} trials",
                f"{(ends[-1] - ends[0]) / (len(ends) - 1):.3f} s",
                f"{first / 99:.3f} s",
                f"{last / 99:.3f} s",
                f"{last / first:.2f}x",
                f"{memory:.2f} GB",
            ]
        )
    return rows


def start(folder: Path, experiment: Experiment, trials: int) -> list[list[str]]:
    """Returns the row of how long a slot stands empty between two real trials, until the next one's first step."""
    run = folder / "start"
    space = make_space("start", trials, sampler={"name": "random"}, early_stopping={"name": "none"})
    search(space, experiment, run, ignore, SearchOptions(train=stamped))
    stamps = sorted(tuple(map(float, path.read_text().split())) for path in run.glob(f"trials/*/{STAMPS}"))
    gaps = []
    free: list[float] = []
    for began, stepped, ended in stamps:
        earlier = [moment for moment in free if moment <= began]
        if earlier:
            free.remove(max(earlier))
            gaps.append(stepped - max(earlier))
        free.append(ended)
    middle = f"{statistics.median(gaps):.2f} s"
    return [[f"{len(gaps)} times", middle, f"{max(gaps):.2f} s", "<= 0.5 s"]]


def first_step(times: int) -> list[list[str]]:
    """Returns the row of how long a search takes from its command, on a Ray of its own, to its first step."""
    found = []
    parameters = {"optim.lr": {"type": "float", "low": 1e-4, "high": 3e-2, "log": True}}
    with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as name:
        data, space = Path(name) / "data", Path(name) / "space.yaml"
        plant(data, videos=40, feature_size=64, seed=0)
        space.write_text(dump({"name": "first", "experiment": "demo/small", "parameters": parameters, "trials": 2}))
        command = [sys.executable, "-m", "benchmarks._first_step", str(space), f"data.root={data}", "train.epochs=1"]
        for number in range(times):
            run = Path(name) / f"run-{number}"
            began = time.time()
            subprocess.run([*command, "--run", str(run)], check=True, capture_output=True)
            stamps = run.glob(f"trials/*/{STAMPS}")
            found.append(min(float(path.read_text().split()[1]) for path in stamps) - began)
    return [[f"{len(found)} times", f"{statistics.median(found):.1f} s", f"{max(found):.1f} s", "<= 10 s"]]


class WatchedEngine(RayEngine):
    """Ray Tune, with a note of when each trial first reported and when its end was known."""

    def run(self, driver: EngineDriver) -> None:
        """Runs the search."""
        self.first: dict[int, float] = {}
        self.ends: dict[int, float] = {}
        super().run(_Watch(driver, self))


class _Watch:
    """A driver whose answers are noted."""

    def __init__(self, driver: EngineDriver, engine: WatchedEngine) -> None:
        self._driver, self._engine = driver, engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def reported(self, number: int, report: TrialReport) -> Decision:
        self._engine.first.setdefault(number, time.monotonic())
        decision = self._driver.reported(number, report)
        if decision is Decision.STOP:
            self._engine.ends.setdefault(number, time.monotonic())
        return decision

    def ended(self, number: int, ending: Ending) -> None:
        self._engine.ends.setdefault(number, time.monotonic())
        self._driver.ended(number, ending)


def groups(folder: Path, experiment: Experiment, trials: int) -> list[list[str]]:
    """Returns the row of two-worker trials, one after the other, half of them stopped early, the dashboard off."""
    run = folder / "groups"
    rates = {"type": "categorical", "choices": [1e-2, 1e-7]}
    parameters = {"optim.lr": rates, "seed": {"type": "int", "low": 0, "high": trials}}
    points = [{"optim.lr": rates["choices"][trial % 2], "seed": trial} for trial in range(trials)]
    stopping = {"name": "asha", "min_resource": 1, "reduction_factor": 2}
    space = make_space(
        "groups", trials, parameters=parameters, start_with=points, resources={"workers": 2}, early_stopping=stopping
    )
    engine = WatchedEngine(space, experiment, run)
    began = time.monotonic()
    result = search(space, experiment, run, ignore, SearchOptions(engine=engine))
    states = [row["state"] for row in result.rows]
    first, *further = sorted(engine.first.values())
    gaps = [after - before for before, after in zip(sorted(engine.ends.values()), further, strict=False)]
    return [
        [
            f"{trials} trials, {states.count('pruned')} stopped early",
            f"{first - began:.1f} s",
            f"{statistics.median(gaps):.2f} s",
            f"{max(gaps):.2f} s",
            str(trials - states.count("complete") - states.count("pruned")),
            "nothing" if result.audit is None or result.audit.is_clean else str(result.audit),
            "15 s, 1 s",
        ]
    ]


def plain_groups(folder: Path, trials: int) -> list[list[str]]:
    """Returns the row of Ray's own way to nest: `TorchTrainer.fit` in a Tune function, two workers that do nothing."""
    from cdn_tune.distributed.ray import tune

    ends: list[float] = []

    class Watch(tune.Callback):  # type: ignore[misc]  # Ray ships no types
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
            ends.append(time.monotonic())

        def __getstate__(self) -> dict[str, Any]:
            return {}

    tuner = tune.Tuner(
        tune.with_resources(_nest, {"CPU": 0.01}),
        param_space={"folder": str(folder / "plain")},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder / "plain"), callbacks=[Watch()], verbose=0),
    )
    lost = len(tuner.fit().errors)
    each = [after - before for before, after in pairwise(ends)]
    middle, longest = f"{statistics.median(each):.1f} s", f"{max(each):.1f} s"
    return [[f"plain Ray, {trials} trials", "-", middle, longest, str(lost), "not looked at", "-"]]


def _nest(config: dict[str, Any]) -> None:
    """A trial of plain Ray."""
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run = RunConfig(name=uuid.uuid4().hex, storage_path=config["folder"])
    TorchTrainer(
        _idle, scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.9}), run_config=run
    ).fit()
    tune.report({"ended": True})


def _idle() -> None:
    """What its workers do."""


# Before a third of its epochs a trial of planted-medium shows little: high learning rates, which win, begin badly.
STOPPING = {"name": "asha", "min_resource": 4, "reduction_factor": 3}
LENGTH, VIDEOS = 12, 200  # epochs of a trial there, and videos; 40 % of those that are not test are val
Curve = list[tuple[int, float]]


def curve_of(run: Path) -> Curve:
    """Returns the best val metric after so many trained epochs, over all trials in the order they ended."""
    found: Curve = [(0, 0.0)]
    trials = [trial for trial in read_record(run).entries if trial.datetime_complete]
    for trial in sorted(trials, key=lambda trial: trial.datetime_complete or 0):
        epochs = found[-1][0] + len(trial.intermediate_values)
        found.append((epochs, max(found[-1][1], value_of(trial) or 0.0)))
    return found


def at(curve: Curve, epochs: int) -> float:
    """Returns the best value within so many epochs."""
    return max(value for spent, value in curve if spent <= epochs)


def budget(folder: Path, experiment: Experiment, seeds: int, epochs: int) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the tables of the best val metric at equal budgets, and of the epochs to random search's final value."""
    curves: dict[str, list[Curve]] = {"tpe + asha": [], "random": []}
    for seed in range(seeds):
        for name, sampler, stopping in (
            ("tpe + asha", {"name": "tpe", "seed": seed, "startup_trials": 8}, STOPPING),
            ("random", {"name": "random", "seed": seed}, {"name": "none"}),
        ):
            run = folder / f"{sampler['name']}-{seed}"
            trials = epochs // experiment.train.epochs if stopping["name"] == "none" else epochs
            space = make_space("budget", trials, sampler=sampler, early_stopping=stopping)
            state = Epochs(epochs)
            search(space, experiment, run, state.look, SearchOptions(stop=state))
            curves[name].append(curve_of(run))
            print(name, seed, f"{at(curves[name][-1], epochs):.4f}", len(curves[name][-1]) - 1, "trials", flush=True)
    shares = (0.25, 0.5, 0.75, 1.0)
    rows = []
    for name, found in curves.items():
        row = [name]
        for share in shares:
            values = [at(curve, int(share * epochs)) for curve in found]
            row.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
        rows.append(row)
    reached = []
    for seed in range(seeds):
        goal = at(curves["random"][seed], epochs)
        spent = next((spent for spent, value in curves["tpe + asha"][seed] if value >= goal), None)
        shown = "not reached" if spent is None else f"{spent / epochs:.0%}"
        mine = at(curves["tpe + asha"][seed], epochs)
        reached.append([str(seed), f"{goal:.4f}", f"{mine:.4f}", shown])
    return rows, reached


def main() -> None:
    """Prints the section of the results and writes it, if all of it was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=480)
    parser.add_argument("--simulated", type=int, default=SIMULATED, help="seeds of simulated searches")
    parser.add_argument("--only", default="", help="of the part defaults: changes with this in their name; prints them")
    options = parser.parse_args()
    lines = ["## Search", "", "`python -m benchmarks.search`, Ray on this machine, the study in the run folder."]
    if "simulate" in options.part:
        cases = [(path, slots) for path in sorted(TABLES.glob("*.jsonl.gz")) for slots in (2, 8)]
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(simulated, *case, options.simulated, options.epochs) for case in cases]
            rows = [row for job in jobs for row in job.result()]
        heads = ["search", "median", "95 % of seeds", "best val", "test of the chosen", "regret", "to plain Ray Tune's"]
        about = (
            f"{options.epochs} epochs each, {options.simulated} seeds, over recorded curves. First the "
            "share of the epochs after which as much was found as random search finds in the end (aims: 12 and 35 %), "
            "then what each ends with: means over the seeds, the regret with its standard error (aim: half of plain "
            "Ray Tune's, which is `OptunaSearch` and `ASHAScheduler` as they come)."
        )
        command = "`python -m benchmarks.search --part simulate`."
        if rows:
            publish("search_simulated", ["## Search: simulated", "", command, "", about, "", *table(heads, rows)])
    if "defaults" in options.part:
        seeds = options.simulated
        tables = sorted(TABLES.glob("*.jsonl.gz"))
        rows = [
            row for path in tables for slots in (2, 8) for row in changed(path, slots, seeds, BUDGETS, options.only)
        ]
        heads = ["curves", "changed"]
        heads += [head for budget in BUDGETS for head in (f"regret after {budget} epochs", "against ours as it is")]
        about = (
            f"Our search with one thing changed, {seeds} seeds, over recorded curves: the test regret of the chosen "
            "model in points of the metric, and by how much it is more than without the change (same seeds; mean with "
            "its 95 % interval), so that a change with a difference below 0 finds more."
        )
        section = ["## Search: its defaults", "", "`python -m benchmarks.search --part defaults`.", "", about, ""]
        section += table(heads, rows)
        if rows and not options.only:
            publish("search_defaults", section)
        else:
            print("\n".join(section))
    if "real" in options.part:
        with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as name, connected():
            rows = real(Path(name), RESULTS / "search_real.jsonl", options.seeds, options.epochs)
        heads = ["seed", "seconds, ours", "plain Ray Tune", "ratio", "test, ours", "plain Ray Tune", "ahead by"]
        about = (
            f"`python -m benchmarks.search --part real`: {options.epochs} epochs of `planted-medium` each, two trials "
            "at once, by turns; test R1@0.5 of the chosen model in percent; means over the seeds with 95 % intervals "
            "(Student's t). Plain Ray Tune is `OptunaSearch` and `ASHAScheduler` as they come, on the same trainings. "
            "Seeds are on record beside this section as they end: the same command goes on."
        )
        publish("search_real", ["## Search: for real", "", about, "", *table(heads, rows)])
    if set(options.part) <= {"simulate", "defaults", "real"}:
        return
    if "start" in options.part:
        lines += [
            "",
            "From the command to the first step of a demo-sized trial, on a Ray that the search starts.",
            "",
            *table(["measured", "median", "longest", "aim"], first_step(9)),
        ]
    found = ["## Search: what it finds", "", "`python -m benchmarks.search --part budget`."]
    with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as name, connected():
        folder = Path(name)
        data = folder / "data"
        plant(data, videos=40, feature_size=64, seed=0)
        demo = load_experiment("demo/small", {"data.root": str(data), "train.epochs": 2})
        if "overhead" in options.part:
            heads = ["sampler", "a trial", "of the first 100", "of the last 100", "ratio", "driver's memory so far"]
            lines += [
                "",
                f"A one-worker trial that reports {EPOCHS} epochs (fewer when pruned) and trains nothing; early "
                "stopping by asha. Aims: 0.15 s a trial, a ratio of 1.2, 1 GB.",
                "",
                *table(heads, overhead(folder, demo, options.trials)),
            ]
        if "start" in options.part:
            lines += [
                "",
                "From the end of a demo-sized trial to the first step of the next one in its place.",
                "",
                *table(["measured", "median", "longest", "aim"], start(folder, demo, 20)),
            ]
        if "groups" in options.part:
            lines += [
                "",
                "Trials of two workers in a row, half of them stopped early, the dashboard off. First report: the "
                "first trial's since the search's start (Ray runs already), a further one's since the end of the trial "
                "before it. Ours train the demo-sized model; those of plain Ray (`TorchTrainer.fit` in a Tune "
                "function) do nothing, and what is timed is from end to end.",
                "",
                *table(
                    ["", "first trial", "a further one, median", "longest", "lost", "left behind", "aim"],
                    groups(folder, demo, 20) + plain_groups(folder, 6),
                ),
            ]
        if "budget" in options.part:
            medium = folder / "medium"
            plant(medium, videos=VIDEOS, feature_size=64, seed=0, **preset("planted-medium"))
            values = {"data.root": str(medium), "data.val_fraction": 0.4, "train.epochs": LENGTH, "model.hidden": 24}
            experiment = load_experiment("demo/small", values)
            rows, reached = budget(folder, experiment, options.seeds, options.epochs)
            found += [
                "",
                f"Best val R1@0.5 on `planted-medium` ({VIDEOS} videos) within so much of {options.epochs} trained "
                f"epochs, mean ± standard deviation over {options.seeds} seeds: TPE with ASHA against random search, "
                f"whose trials all train {LENGTH} epochs.",
                "",
                *table(["search", "25 %", "50 %", "75 %", "100 %"], rows),
                "",
                "Share of the epochs after which TPE with ASHA has found as much as random search has in the end. "
                "Aim: 50 %.",
                "",
                *table(["seed", "random, final", "TPE + ASHA, final", "reached after"], reached),
            ]
    if set(TIMED) <= set(options.part):
        publish("search", lines)
    elif set(options.part) & set(TIMED):
        print("\n".join(lines))
    if "budget" in options.part:
        publish("search_budget", found)


if __name__ == "__main__":
    main()
