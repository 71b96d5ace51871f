"""What the checkpoints of a search's trials ask of a file system: simulated, by the second; nothing is trained.

``python -m benchmarks.checkpoints [--slots N] [--trials N] [--seconds S] [--weights G] [--rate R]``: epochs of S
seconds on a virtual clock; weights of G GB, whose training's state is three times as large, written at R GB a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import product
from typing import Any, Literal

from optuna.storages import InMemoryStorage

from benchmarks._measure import publish, table
from benchmarks.scale import SECONDS, rising
from benchmarks.search import EPOCHS, make_space
from cdn_tune.config import load_experiment
from cdn_tune.config.load_search import with_min_resource
from cdn_tune.training.memory.estimate import state_bytes
from cdn_tune.tuning.checkpoints.retention import Retention
from cdn_tune.tuning.driver import Driver
from cdn_tune.tuning.engine.virtual.engine import CurvePoint, VirtualEngine, World
from cdn_tune.tuning.engine.virtual.files import Flag, MemoryFiles
from cdn_tune.tuning.results.record import quiet
from cdn_tune.tuning.study.study import Study

HALVING = {"name": "asha", "min_resource": None, "reduction_factor": 3}
RULES: dict[str, dict[str, Any]] = {
    "ASHA": HALVING,
    "ASHA, promote": {**HALVING, "mode": "promote"},
    "none": {"name": "none"},
}
PACES: tuple[Literal["epoch"], Literal["auto"]] = ("epoch", "auto")
STATE = state_bytes(1, 1, ema=False)  # so many times the weights


def measure(rule: str, checkpoint: Literal["auto", "epoch"], options: argparse.Namespace) -> list[str]:
    """Returns the row of a search whose trials write checkpoints at a pace."""
    base = load_experiment("demo/small", {"train.epochs": EPOCHS})
    space = make_space("checkpoints", options.trials, sampler={"name": "random"}, early_stopping=RULES[rule])
    space = with_min_resource(space, EPOCHS)
    metrics = [base.eval.metric, *(name for name in base.eval.metrics if name != base.eval.metric)]
    world = World(nodes={0: options.slots})

    def curve(number: int, parameters: Mapping[str, Any]) -> list[CurvePoint]:
        points = rising(number, parameters, metrics)
        return [CurvePoint(point.val, point.seconds * options.seconds / SECONDS, point.loss) for point in points]

    with quiet():
        study = Study(InMemoryStorage(), space, base, clock=world.clock)
        study.begin()
        driver = Driver(study, options.trials, Retention(MemoryFiles(world), space.keep), world.clock, Flag())
        driver.start()
        size = (STATE + 1) * options.weights
        seconds = size / options.rate
        engine = VirtualEngine(curve, world, checkpoint=checkpoint, checkpoint_bytes=1e9 * size, write_seconds=seconds)
        engine.run(driver)
        driver.close()
    epochs, written = world.trained.total(), options.weights * (STATE * world.writes["state"] + world.writes["best"])
    return [
        rule,
        checkpoint,
        f"{options.trials}, {epochs}",
        f"{world.writes['state'] / epochs:.2f}, {world.writes['best'] / epochs:.2f}",
        f"{written / world.clock.now:.2f} GB/s",
    ]


def main() -> None:
    """Prints the section of the results, and writes it if all of it was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=100)
    parser.add_argument("--trials", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=60.0, help="an epoch")
    parser.add_argument("--weights", type=float, default=1.0, help="GB")
    parser.add_argument("--rate", type=float, default=0.26, help="GB a second of one trial's write")
    options = parser.parse_args()
    rows = [measure(rule, checkpoint, options) for rule, checkpoint in product(RULES, PACES)]
    about = (
        f"{options.slots} virtual slots, trials of {EPOCHS} epochs of about {options.seconds:g} s; weights of "
        f"{options.weights:g} GB, and a state of {STATE} times as much, written at {options.rate:g} GB/s by each "
        f"trial. ASHA compares from where it does if nothing is set. Aim: 0.5 GB/s with ASHA."
    )
    heads = [
        "early stopping",
        "`train.checkpoint`",
        "trials, epochs",
        "states, best models written an epoch",
        "written",
    ]
    lines = ["## Checkpoints of a hundred GPUs: simulated", "", "`python -m benchmarks.checkpoints`", "", about, ""]
    lines += table(heads, rows)
    if options == parser.parse_args([]):
        publish("checkpoints", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
