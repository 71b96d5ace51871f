"""Learning curves for simulated searches: records tables of them, each trial trained whole, and lists those there are.

``python -m benchmarks.curves`` lists the tables of `benchmarks/curves/`. ``python -m benchmarks.curves record --preset
planted-medium [--configurations N] [--seeds N] [--workers N]`` records one: configurations drawn at random, every one
trained to its last epoch under each seed, the test metric taken of every epoch's model. (A search never does that; a
record of what searches would find has to.) Trials are on disk as they end: the same command goes on, also
with a table that holds some of what it is to hold.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks._measure import publish, table
from cdn_tune.config import DataConfig, Experiment, SearchSpace, build, load_experiment, override
from cdn_tune.data.dataset import load_splits
from cdn_tune.data.planted import plant
from cdn_tune.data.planted.planting import preset
from cdn_tune.errors import RunError, TrainingError
from cdn_tune.training.evaluate.evaluation import evaluate_split
from cdn_tune.training.loop import train
from cdn_tune.training.reports import EpochReport
from cdn_tune.training.runs.checkpoint import LAST, build_model, read_checkpoint
from cdn_tune.training.step.threads import torch_threads
from cdn_tune.tuning.planning.random_points import draw
from cdn_tune.tuning.simulation.curves import Header, Recorded, line_of, read_table, write_table
from cdn_tune.tuning.simulation.landscape import Landscape
from cdn_tune.tuning.study.candidates import Candidates

TABLES = Path(__file__).resolve().parent / "curves"
PARAMETERS: dict[str, Any] = {
    "model.hidden": {"type": "categorical", "choices": [12, 20, 32]},
    "model.map.kernel_size": {"type": "categorical", "choices": [3, 5]},
    "model.map.layers": {"type": "int", "low": 1, "high": 3},
    "model.proposals": {"type": "categorical", "choices": ["pool", "conv"]},
    "optim.lr": {"type": "float", "low": 1e-3, "high": 3e-2, "log": True},
    "train.batch_size": {"type": "categorical", "choices": [8, 16]},
    "loss.min_iou": {"type": "float", "low": 0.1, "high": 0.5},
}
EPOCHS = 14


@dataclass(frozen=True)
class Preset:
    """What is recorded: how the data are planted, and which base experiment is trained on them.

    Signals that are strong, and large features, tell moments from noise: small models on few videos then learn in
    seconds, and differ.

    Attributes:
        planted: Options of `plant`.
        experiment: The base experiment.
        fixed: What is different in it.
        parameters: What is drawn otherwise than in `PARAMETERS`.
    """

    planted: dict[str, Any]
    experiment: str
    fixed: dict[str, Any]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> dict[str, Any]:
        """Dotted keys of the base experiment."""
        size, words = self.planted["feature_size"], self.planted["word_size"]
        data = {"data.feature_size": size, "data.word_size": words, "data.word_vectors": f"glove.planted.{words}d.txt"}
        train = {"train.epochs": EPOCHS, "train.eval_every": 1}
        return {**data, **train, "model.clips": 16, "model.attention_size": 16, **self.fixed}


PRESETS = {
    "planted-medium": Preset(
        {"videos": 180, "feature_size": 128, "word_size": 25, **preset("planted-medium")},
        "demo/small",
        {"data.frames": 32, "data.val_fraction": 0.4},
    ),
    "planted-hard": Preset(
        {"videos": 40, "feature_size": 128, "word_size": 25, "snr": 6.0, **preset("planted-hard")},
        "demo/planted-hard",
        {"data.frames": 32, "eval.metric": "R1@0.3", "model.contrastive": True, "model.joint": 32},
        {"train.batch_size": {"type": "categorical", "choices": [16, 32]}},  # a video has some twenty queries
    ),
}


@lru_cache(maxsize=1)
def opened(config: DataConfig, sequences: bool) -> Any:
    """Returns the three splits; the trials that follow in this process share them."""
    return load_splits(config, ("train", "val", "test"), sequences=sequences)


def parameters_of(name: str) -> dict[str, Any]:
    """Returns what varies in a preset."""
    return {**PARAMETERS, **PRESETS[name].parameters}


def space_of(name: str) -> SearchSpace:
    """Returns what is drawn from."""
    values = {"name": name, "experiment": PRESETS[name].experiment, "parameters": parameters_of(name), "start_with": []}
    return SearchSpace.model_validate(values, strict=False)


def record_curve(plain: dict[str, Any], parameters: dict[str, Any]) -> str:
    """Trains an experiment whole; returns its line of a table."""
    experiment = build(Experiment, plain, "curve")
    splits = opened(experiment.data, experiment.model.inputs.sequences)
    reports: list[EpochReport] = []
    weights: list[dict[str, Any]] = []
    first: list[float] = []
    with torch_threads(1), tempfile.TemporaryDirectory(prefix="cdn-tune-curve-") as name:
        folder, began = Path(name), time.perf_counter()
        worked = time.process_time()

        def on_step(_: object) -> None:
            if not first:
                first.append(time.perf_counter() - began)

        def report(done: EpochReport) -> None:
            reports.append(done)
            weights.append(read_checkpoint(folder / LAST)["model"])  # measured on test once training is over

        train(experiment, folder, report, {key: splits[key] for key in ("train", "val")}, on_step, planted=True)
        # Of one thread, so that whatever else runs on this machine does not count.
        share = min((time.process_time() - worked) / (time.perf_counter() - began), 1.0)
        model = build_model(experiment)
        tested = []
        for each in weights:
            model.load_state_dict(each)
            tested.append(evaluate_split(model, splits["test"], experiment.eval).metrics)
    seconds = [share * (done.train_seconds + done.val_seconds) for done in reports]
    values = {
        "parameters": parameters,
        "seed": experiment.seed,
        "val": {key: [round(done.val[key], 5) for done in reports] for key in reports[0].val},
        "test": {key: [round(metrics[key], 5) for metrics in tested] for key in tested[0]},
        "loss": [round(done.loss, 5) for done in reports],
        "seconds": [round(sum(seconds[: end + 1]), 4) for end in range(len(seconds))],
        "steps": reports[0].steps,
        "start_seconds": round(share * first[0], 4),
        "evaluation_seconds": round(share * sum(done.val_seconds for done in reports) / len(reports), 4),
    }
    return line_of(build(Recorded, values, "curve"))


def die_with_parent(parent: int) -> None:
    """Has this process end once the one that started it is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def jobs(name: str, root: Path, configurations: int, seeds: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields experiments and their parameters; with more configurations, the first ones stay the same."""
    base = load_experiment(PRESETS[name].experiment, {**PRESETS[name].overrides, "data.root": str(root)})
    for point in draw(Candidates(space_of(name), base), configurations):
        if point.experiment is not None:
            for seed in range(seeds):
                yield override(point.experiment.plain(), {"seed": seed}, name).plain(), dict(point.params)


def header_of(name: str, folder: Path) -> Header:
    """Returns the first line of a table."""
    base = load_experiment(PRESETS[name].experiment, PRESETS[name].overrides)
    about = f"python -m benchmarks.curves record --preset {name}, {PRESETS[name].planted['videos']} videos"
    plain = {
        "about": about,
        "planted": True,
        "metric": base.eval.metric,
        "epochs": EPOCHS,
        "parameters": parameters_of(name),
    }
    return build(Header, json.loads(json.dumps(plain)), str(folder))


def recorded(path: Path, header: Header, held: Sequence[Recorded] = ()) -> list[Recorded]:
    """Returns the curves that are on record, after cutting off the part of a line that a killed writer has left.

    A new record begins with those that are `held` already.

    Raises:
        RunError: If the file is of another recording.
    """
    if not path.exists():
        path.write_text("\n".join([line_of(header), *map(line_of, held)]) + "\n", encoding="utf-8")
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or lines[0] != line_of(header):
        raise RunError(f"{path}: is of another recording; name another --folder, or delete it")
    return list(read_table(path).records) if len(lines) > 1 else []


def record(name: str, configurations: int, seeds: int, workers: int, folder: Path) -> Path:
    """Records a table, or goes on with it; returns its path in `benchmarks/curves/`."""
    folder.mkdir(parents=True, exist_ok=True)
    data, path, header = folder / "data", folder / "record.jsonl", header_of(name, folder)
    plant(data, seed=0, **PRESETS[name].planted)
    table_path = TABLES / f"{name}.jsonl.gz"
    known = read_table(table_path) if table_path.exists() else None
    before = known.records if known is not None and known.header == header else ()
    held = {(json.dumps(each.parameters, sort_keys=True), each.seed) for each in recorded(path, header, before)}
    wanted = list(jobs(name, data, configurations, seeds))
    keys = [(json.dumps(parameters, sort_keys=True), plain["seed"]) for plain, parameters in wanted]
    left = [job for job, key in zip(wanted, keys, strict=True) if key not in held]
    print(f"{len(wanted) - len(left)} of {len(wanted)} curves are on record in {path}", flush=True)
    began, context = time.monotonic(), get_context("spawn")
    with ProcessPoolExecutor(workers, context, die_with_parent, (os.getpid(),)) as pool, path.open("a") as file:
        waiting = {pool.submit(record_curve, *job): job for job in left}
        for done, future in enumerate(as_completed(waiting), start=1):
            try:
                line = future.result()
            except TrainingError as error:  # such as a loss that is not finite: the configuration has no curve
                print(f"left out: {error}", flush=True)
                continue
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
            each = (time.monotonic() - began) / done
            print(
                f"{done} of {len(left)}, {each:.2f} s each, {each * (len(left) - done) / 60:.0f} min left", flush=True
            )
    places = {key: place for place, key in enumerate(keys)}
    found = [
        (places.get((json.dumps(each.parameters, sort_keys=True), each.seed)), each) for each in recorded(path, header)
    ]
    chosen = sorted((pair for pair in found if pair[0] is not None), key=lambda pair: pair[0] or 0)
    TABLES.mkdir(exist_ok=True)
    write_table(table_path, header, [each for _, each in chosen])
    return table_path


def listed() -> list[list[str]]:
    """Returns a row for each table there is."""
    rows = []
    for path in sorted(TABLES.glob("*.jsonl.gz")):
        curves = read_table(path)
        landscape = Landscape(curves, [curves.header.metric])
        rows.append(
            [
                path.name.partition(".")[0],
                str(landscape.configurations),
                str(len(curves.records)),
                str(curves.header.epochs),
                f"{path.stat().st_size / 1e6:.2f} MB",
                f"{sum(each.seconds[-1] for each in curves.records) / len(curves.records):.1f} s",
                f"{landscape.best_truth:.3f}",
                f"{landscape.rank_correlation():.2f}",
            ]
        )
    return rows


def main() -> None:
    """Records a table, or lists those there are and writes the section of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    recording = commands.add_parser("record", help="record a table, or go on with it")
    recording.add_argument("--preset", choices=sorted(PRESETS), default="planted-medium")
    recording.add_argument("--configurations", type=int, default=400)
    recording.add_argument("--seeds", type=int, default=2)
    recording.add_argument("--workers", type=int, default=2)
    recording.add_argument("--folder", type=Path, help="holds the data and the record; default: runs/curves/PRESET")
    options = parser.parse_args()
    if options.command == "record":
        folder = options.folder or Path("runs/curves") / options.preset
        path = record(options.preset, options.configurations, options.seeds, options.workers, folder)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
        return
    heads = ["table", "configurations", "curves", "epochs", "size", "a curve takes", "best on test", "rank correlation"]
    if rows := listed():
        about = "Rank correlation: of configurations left out with what the others predict of them."
        publish(
            "curves",
            ["## Recorded learning curves", "", f"`python -m benchmarks.curves`. {about}", "", *table(heads, rows)],
        )


if __name__ == "__main__":
    main()
