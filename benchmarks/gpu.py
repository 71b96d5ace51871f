"""Whole trainings on a GPU: epochs of published models, with and without graphs, and several trials on one card.

``for each in dynamic_conv train_step gpu; do python -m benchmarks.$each; done`` measures all that there is of a GPU, in
some ten minutes; each section is written as it ends. Without a GPU this one says so.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks._measure import publish, table
from benchmarks.training import ours, planted_experiment
from cdn_tune.config import Experiment

# Of each: videos that are planted, and the batch.
TRAINED = {"charades/CDN-16x16-K5L8-pool": (64, 32), "charades/SnAG-256-L6-I3D": (64, 16)}
SHARED = "charades/CDN-16x16-K5L8-pool"
AT_ONCE = (1, 2, 4)
EPOCHS = 3  # the last one counts


def trained(experiment: Experiment) -> float:
    """Trains an experiment; returns the queries a second of its last epoch."""
    with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as folder:
        return ours(experiment, Path(folder))[-1].samples_per_second


def at_once(experiment: Experiment, trials: int) -> float:
    """Returns the queries a second of so many trials together, each in a process of its own."""
    with ProcessPoolExecutor(trials, get_context("spawn")) as pool:
        return sum(pool.map(trained, [experiment] * trials))


def trainings(folder: Path) -> list[str]:
    """Returns the lines of the section."""
    rows = []
    planted = {}
    for name, (videos, batch) in TRAINED.items():
        changes = {"train.epochs": EPOCHS, "train.batch_size": batch, "train.eval_every": EPOCHS}
        planted[name] = planted_experiment(name, folder / name, videos, **changes)
        for graphs in (False, True):
            settings = planted[name].train.model_copy(update={"cuda_graphs": graphs})
            speed = trained(planted[name].model_copy(update={"train": settings}))
            rows.append([name, f"{batch}", "1", "yes" if graphs else "no", f"{speed:.0f}", ""])
    alone = at_once(planted[SHARED], 1)
    for trials in AT_ONCE:
        speed = alone if trials == 1 else at_once(planted[SHARED], trials)
        rows.append([SHARED, f"{TRAINED[SHARED][1]}", f"{trials}", "yes", f"{speed:.0f}", f"{speed / alone:.2f}x"])
    about = (
        f"`python -m benchmarks.gpu`: queries a second of the last of {EPOCHS} epochs on planted data, bf16, all of a "
        "training included; graphs where the model allows them. Several trials at once: of all together."
    )
    heads = ["experiment", "batch", "trials at once", "graphs", "queries a second", "against one"]
    return ["## Trainings", "", about, "", *table(heads, rows)]


def main() -> None:
    """Prints the section of the results and writes it."""
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured.")
        return
    with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as folder:
        publish("trainings", trainings(Path(folder)))


if __name__ == "__main__":
    main()
