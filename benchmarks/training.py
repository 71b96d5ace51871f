"""What training a trial costs beyond its arithmetic: against a bare PyTorch loop, on two workers, while it is saved.

``python -m benchmarks.training [--rounds N] [--part overhead|workers|saving ...]`` plants small datasets and measures
`cdn_tune.training.train_trial.train_in` as the command line calls it, with a warm clip cache.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks._measure import publish, table
from cdn_tune.config import Experiment, load_experiment
from cdn_tune.data.dataset import Batch
from cdn_tune.data.planted import plant
from cdn_tune.distributed.launch import train_on_workers
from cdn_tune.model.cdn.loss import attention_loss, moment_loss
from cdn_tune.moments.temporal_map import iou_maps
from cdn_tune.training.loop import seed_everything
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.state import Progress, TrialState, Writer
from cdn_tune.training.step.optimiser import build_optimiser, build_schedule
from cdn_tune.training.step.process_group import World
from cdn_tune.training.step.steps import global_batches
from cdn_tune.training.train_trial import open_data, train_in

DEMO, PUBLISHED = "demo/small", "charades/CDN-16x16-K5L8-pool"
WIDE = "tacos/CDN-128x128-K5L8-pool"
QUERIES = {PUBLISHED: (11_167, 1_241), WIDE: (9_790, 4_436)}  # of the real train and val splits
CPU = torch.device("cpu")
SAME_LOSS = 1e-4  # relative, over the first epoch
PARTS = ("overhead", "workers", "saving", "evaluation")


@dataclass(frozen=True)
class Case:
    """A setting of which two contenders are measured.

    Attributes:
        name: Of the setting.
        experiment: What is trained.
        warm: Epochs that are not counted.
        rounds: How often each contender trains.
    """

    name: str
    experiment: Experiment
    warm: int
    rounds: int


def planted_experiment(name: str, folder: Path, videos: int, **overrides: object) -> Experiment:
    """Returns a shipped experiment on data planted for it, its clips in the cache."""
    settings = load_experiment(name, {"data.root": str(folder)}).data
    plant(folder, videos=videos, feature_size=settings.feature_size, word_size=settings.word_size, frame_rate=2.0)
    vectors = next(folder.glob("glove*.txt")).name
    experiment = load_experiment(name, {"data.root": str(folder), "data.word_vectors": vectors, **overrides})
    open_data(experiment.data)
    return experiment


def ours(experiment: Experiment, folder: Path, threads: int | None = None) -> list[EpochReport]:
    """Trains as `cdn-tune train --threads` does, with torch's number by default; returns the epochs' reports."""
    reports: list[EpochReport] = []
    train_in(experiment, folder, reports.append, threads=threads or torch.get_num_threads())
    return reports


def bare(experiment: Experiment, epochs: list[list[tuple[Batch, Tensor]]]) -> list[tuple[float, float]]:
    """Trains the same model on preassembled batches and targets, in the plainest way.

    Returns:
        Mean loss over queries and queries per second of each epoch.
    """
    seed_everything(experiment.seed)
    model = build_model(experiment).train()
    optimiser = build_optimiser(model, experiment.optim)  # fused
    settings = experiment.loss
    schedule = build_schedule(optimiser, experiment.optim, sum(map(len, epochs)))
    found = []
    for batches in epochs:
        start = time.perf_counter()
        total = 0.0
        for batch, targets in batches:
            output = model(batch.visual, batch.words, batch.word_mask)
            loss = moment_loss(output.logits, targets, output.mask, settings.min_iou, settings.max_iou)
            loss = loss + settings.attention_beta * attention_loss(output.attention, settings.attention_lambda)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), experiment.optim.clip_norm)
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        queries = sum(len(batch) for batch, _ in batches)
        found.append((total / queries, queries / (time.perf_counter() - start)))
    return found


def assembled(experiment: Experiment) -> list[list[tuple[Batch, Tensor]]]:
    """Returns the batches that training sees, epoch by epoch, with their targets [B, S, S]."""
    dataset = open_data(experiment.data)["train"]
    epochs = []
    for epoch in range(1, experiment.train.epochs + 1):
        batches = [dataset.batch(indices) for indices in global_batches(dataset, experiment, epoch, World())]
        clips = experiment.model.clips
        epochs.append([(batch, iou_maps(batch.durations, batch.moments, clips).float()) for batch in batches])
    return epochs


def overhead(folder: Path, rounds: int) -> list[list[str]]:
    """Returns the rows of the table of queries per second against a bare loop."""
    demo = planted_experiment(DEMO, folder / "demo", 300, **{"train.epochs": 5})
    # One epoch a run: the next would share the processor with the writing of a checkpoint, which here, unlike in an
    # epoch of thousands of queries, takes as long as the epoch. First steps are as slow for the bare loop.
    wide = planted_experiment(PUBLISHED, folder / "wide", 17, **{"train.epochs": 1, "train.batch_size": 8})
    rows = []
    for case in (Case("demo-sized", demo, 2, rounds + 2), Case("published-sized", wide, 0, rounds)):
        epochs = assembled(case.experiment)
        steps = len(epochs[0])
        rates: dict[str, list[float]] = {"ours": [], "bare": []}
        for number in count():
            trained = ours(case.experiment, folder / f"{case.name}-{number}")
            gc.collect()
            plain = bare(case.experiment, epochs)
            gc.collect()
            torch.testing.assert_close(trained[0].loss, plain[0][0], rtol=SAME_LOSS, atol=0.0)
            if number == 0 and not case.warm:
                continue  # the process's first steps
            rates["ours"] += [report.samples_per_second for report in trained[case.warm :]]
            rates["bare"] += [rate for _, rate in plain[case.warm :]]
            if number >= case.rounds:
                break
        best = {who: max(values) for who, values in rates.items()}
        middle = {who: statistics.median(values) for who, values in rates.items()}
        rows.append(
            [
                f"{case.name}, {steps} steps of {case.experiment.train.batch_size}",
                f"{best['ours']:.2f}",
                f"{best['bare']:.2f}",
                f"{best['ours'] / best['bare']:.1%}",
                f"{middle['ours'] / middle['bare']:.1%}",
                ">= 95 %",
            ]
        )
    return rows


def workers(folder: Path, rounds: int) -> list[list[str]]:
    """Returns the rows of the table of two workers against one; a core and a thread for each."""
    # Epochs long enough that the writing of a checkpoint, for which one worker has a core to itself, is a small part.
    experiment = planted_experiment(PUBLISHED, folder / "cut", 180, **{"model.hidden": 128, "train.epochs": 2})
    rates: dict[str, list[float]] = {"one worker": [], "two workers": []}
    for number in range(rounds):
        alone = ours(experiment, folder / f"alone-{number}", threads=1)
        together: list[EpochReport] = []
        train_on_workers(experiment, folder / f"together-{number}", 2, together.append)
        torch.testing.assert_close(alone[0].loss, together[0].loss, rtol=1e-2, atol=0.0)  # dropout differs
        rates["one worker"] += [report.samples_per_second for report in alone[1:]]
        rates["two workers"] += [report.samples_per_second for report in together[1:]]
    best = {who: max(values) for who, values in rates.items()}
    ratios = {who: f"{rate / best['one worker']:.2f}x" for who, rate in best.items()}
    aims = {"one worker": "", "two workers": ">= 1.5x"}
    return [[who, f"{rate:.2f}", ratios[who], aims[who]] for who, rate in best.items()]


def saving(folder: Path, rounds: int) -> list[list[str]]:
    """Returns the row of how long training waits for a checkpoint of the published model, and how long it takes."""
    experiment = load_experiment(PUBLISHED, {"data.root": str(folder)})
    model = build_model(experiment)
    optimiser = build_optimiser(model, experiment.optim)
    for weights in model.parameters():
        weights.grad = torch.zeros_like(weights)
    optimiser.step()  # creates the optimiser's state
    model.zero_grad(set_to_none=True)
    schedule, scaler = build_schedule(optimiser, experiment.optim, 1), torch.amp.GradScaler("cpu", enabled=False)
    state = TrialState(experiment, folder / "saved", model, optimiser, schedule, scaler, None, World(), planted=True)
    waits, totals = [], []
    with Writer() as writer:
        for _ in range(rounds + 1):
            start = time.perf_counter()
            writer.submit(state.prepare_save(Progress()))
            waits.append(time.perf_counter() - start)
            writer.wait()
            totals.append(time.perf_counter() - start)
    size = (folder / "saved" / "checkpoints" / "last.pt").stat().st_size
    share = statistics.median(wait / total for wait, total in zip(waits[1:], totals[1:], strict=True))
    wait, total = statistics.median(waits[1:]), statistics.median(totals[1:])
    first = waits[0] / totals[0]
    return [[f"{size / 1e9:.2f} GB", f"{wait:.2f} s", f"{total:.2f} s", f"{share:.1%}", f"{first:.1%}", "<= 10 %"]]


def evaluation(folder: Path) -> list[list[str]]:
    """Returns the rows of what val costs beside an epoch of training, for the queries of the real splits."""
    rows = []
    for name, videos, batch in ((PUBLISHED, 24, 16), (WIDE, 6, 2)):
        overrides = {"train.epochs": 1, "train.batch_size": batch, "train.micro_batch": min(batch, 8)}
        overrides |= {"data.dataset": "charades_sta", "data.val_fraction": 0.3}  # whose layout is planted
        experiment = planted_experiment(name, folder / name.partition("/")[0], videos, **overrides)
        dataset = open_data(experiment.data)["train"]
        report = ours(experiment, folder / f"{experiment.name}-evaluation")[0]
        training, val = report.train_seconds / len(dataset), report.val_seconds / report.val_queries
        queries = QUERIES[name]
        settings = load_experiment(name, {"data.root": str(folder)}).train
        evaluations = {*range(1, settings.epochs + 1, settings.eval_every), settings.epochs}
        share = val * queries[1] / (training * queries[0]) * len(evaluations) / settings.epochs
        rows.append(
            [
                name,
                f"{training:.3f} s",
                f"{val:.3f} s",
                f"{queries[0]} / {queries[1]}",
                f"{len(evaluations)} / {settings.epochs}",
                f"{share:.1%}",
                "<= 10 %",
            ]
        )
        gc.collect()
    return rows


@contextlib.contextmanager
def own_cache() -> Iterator[Path]:
    """Yields a temporary folder for everything, the clip cache included."""
    before = os.environ.get("CDN_TUNE_CACHE")
    with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as folder:
        os.environ["CDN_TUNE_CACHE"] = f"{folder}/cache"
        try:
            yield Path(folder)
        finally:
            open_data.cache_clear()
            if before is None:
                del os.environ["CDN_TUNE_CACHE"]
            else:
                os.environ["CDN_TUNE_CACHE"] = before


def main() -> None:
    """Prints the section of the results and writes it, if all of it was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    rounds = options.rounds
    lines = [
        "## Training",
        "",
        "`python -m benchmarks.training`, on planted data with a warm clip cache, on a CPU; runs alternate in one "
        "process, and the best epoch of each contender counts, for what else a machine does only ever slows.",
    ]
    with own_cache() as folder:
        if "overhead" in options.part:
            lines += [
                "",
                f"Queries per second of `train` on one worker with {torch.get_num_threads()} threads, against a bare "
                "PyTorch loop with the same model, losses, clipping and fused Adam over batches and targets that were "
                "assembled before. First epochs' losses are equal.",
                "",
                *table(["setting", "train", "bare loop", "ratio", "ratio of medians", "aim"], overhead(folder, rounds)),
            ]
        if "workers" in options.part:
            lines += [
                "",
                "Queries per second of the published Charades-STA model cut to `model.hidden=128`, batch 32, a core "
                f"and a thread for each worker ({os.cpu_count()} cores).",
                "",
                *table(["workers", "queries/s", "ratio", "aim"], workers(folder, rounds)),
            ]
        if "saving" in options.part:
            lines += [
                "",
                "How long training waits for a checkpoint (`last.pt`) of the published Charades-STA model, and how "
                "long it takes until the file is on disk.",
                "",
                *table(
                    ["file", "training waits", "until written", "share", "share of the first", "aim"],
                    saving(folder, rounds),
                ),
            ]
        if "evaluation" in options.part:
            lines += [
                "",
                "What val costs beside an epoch of training at the published settings: seconds of a query, measured on "
                "planted data, times the queries of the real splits and the experiment's evaluations.",
                "",
                *table(
                    ["experiment", "a query, train", "val", "queries", "evaluations / epochs", "val / training", "aim"],
                    evaluation(folder),
                ),
            ]
    if set(options.part) == set(PARTS):
        publish("training", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
