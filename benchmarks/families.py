"""A search among all families and CDN's switches against one over CDN alone, and one switch at a time.

``python -m benchmarks.families [--part search|switches ...] [--preset NAME ...] [--seeds N] [--seconds S]``. Both
searches take as many seconds, on planted data; models are chosen on val and measured on test. By default 100 minutes of
searching, and 120 CDNs of 12 epochs besides. With `--folder` the same command goes on where it was killed, with the
search that was under way anew.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._measure import mean, publish, table
from cdn_tune.config import Experiment, SearchSpace, load_space
from cdn_tune.data.planted import plant
from cdn_tune.data.planted.planting import preset
from cdn_tune.distributed.cluster import connected
from cdn_tune.evaluation.choose_checkpoint import choose_best
from cdn_tune.evaluation.evaluate import evaluate_run
from cdn_tune.evaluation.evaluation_file import EVALUATION
from cdn_tune.evaluation.request import Request
from cdn_tune.model.layers.map_config import FusedMapConfig
from cdn_tune.tuning.results.leaderboard import HOUR
from cdn_tune.tuning.results.record import read_record
from cdn_tune.tuning.search import search

PARTS = ("search", "switches")
# The layout in which a preset is written, and the IoU window of the published experiments on the data it is like.
SETTINGS: dict[str, dict[str, Any]] = {
    "planted-medium": {"data.dataset": "charades_sta", "loss.min_iou": 0.5, "loss.max_iou": 0.9},
    "planted-hard": {"data.dataset": "tacos", "loss.min_iou": 0.3, "loss.max_iou": 0.7},
}
VIDEOS = {"planted-medium": 120, "planted-hard": 125}
METRICS = ("mIoU", "R1@0.7")
SPACE = "wide-quick"
# One at a time over a plain CDN: the first point of the space, of 32 clips.
PLAIN = {"model.clips": 32, "eval.nms": "hard"}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain CDN": {},
    "offsets": {"model.offsets": "diou"},
    "cross-attention": {"model.cross_attention.layers": 2},
    "two map scales": {"model.map_scales": 2},
    "gates": {"model.gates": True},
    "contrastive": {"model.contrastive": True},
    "ends": {"model.ends": "concat"},
    "averaged weights": {"train.ema": 0.99},
    "crops": {"train.augment.crop": 0.5},
    "shifted moments": {"train.augment.shift": 0.5},
    "negative queries": {"train.augment.negative": 0.2},
    "soft NMS": {"eval.nms": "soft"},
}
SWITCH_KEYS = {key for changes in SWITCHES.values() for key in changes} - {"train.ema"}
FAMILY = "model.name"
Values = dict[str, list[float]]  # of each metric, by seed


def only_cdn(space: SearchSpace, leave_out: set[str]) -> dict[str, Any]:
    """Returns the plain values of a space as far as they concern CDN, without some keys."""
    values = space.plain()
    parameters, fixed = {}, {FAMILY, *leave_out}
    for key, parameter in values["parameters"].items():
        if key not in fixed and "cdn" in parameter["when"].get(FAMILY, ["cdn"]):
            when = {other: held for other, held in parameter["when"].items() if other != FAMILY}
            parameters[key] = {**parameter, "when": when}
    points = [point for point in values["start_with"] if point[FAMILY] == "cdn"]
    start = [{key: value for key, value in point.items() if key in parameters} for point in points]
    return {**values, "name": "cdn-alone", "family_overrides": {}, "parameters": parameters, "start_with": start}


def searched(run: Path, space: SearchSpace, experiment: Experiment, seed: int, seconds: float) -> tuple[Values, str]:
    """Returns the test metrics, in percent, of what a search of so many seconds chose, and what that is.

    What runs at the end counts with what it has reached. A search that was evaluated is not made again.
    """
    if not (run / EVALUATION).exists():
        shutil.rmtree(run, ignore_errors=True)
        sampler = space.sampler.model_copy(update={"seed": seed})
        budget = space.budget.model_copy(update={"hours": seconds / HOUR})
        timed = space.model_copy(update={"trials": 1000, "sampler": sampler, "budget": budget})
        search(timed, experiment.model_copy(update={"seed": seed}), run, lambda _: None)
    model = choose_best(run).checkpoint.experiment.model
    switches = list(model.switched_on) if isinstance(model, FusedMapConfig) else []
    chosen = " + ".join([model.label, *(key.removeprefix("model.") for key in switches)])
    metrics = evaluate_run(run, request=Request(resamples=2))["metrics"]
    trials = len(read_record(run).entries)
    print(f"{run.name}: {chosen} of {trials} trials, test {[round(metrics[name], 4) for name in METRICS]}", flush=True)
    return {name: [100 * metrics[name]] for name in METRICS}, chosen


def compared(folder: Path, experiment: Experiment, space: SearchSpace, seeds: int, seconds: float) -> list[list[str]]:
    """Returns a row per seed of both searches, and one of the means."""
    alone = SearchSpace.model_validate(only_cdn(space, SWITCH_KEYS), strict=False)
    rows: list[list[str]] = []
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in METRICS}
    for seed in range(seeds):
        mine, chosen = searched(folder / f"wide-{seed}", space, experiment, seed, seconds)
        theirs, _ = searched(folder / f"cdn-{seed}", alone, experiment, seed, seconds)
        cells = [str(seed), chosen]
        for name in METRICS:
            found[name][0].extend(mine[name])
            found[name][1].extend(theirs[name])
            cells += [f"{mine[name][0]:.1f}", f"{theirs[name][0]:.1f}", f"{mine[name][0] - theirs[name][0]:+.1f}"]
        rows.append(cells)
    means = ["mean", ""]
    for wide, plain in found.values():
        means += [mean(wide), mean(plain), mean([one - other for one, other in zip(wide, plain, strict=True)], "+")]
    return [*rows, means]


def switched(folder: Path, experiment: Experiment, space: SearchSpace, seeds: int) -> list[list[str]]:
    """Returns a row per switch: test metrics of CDNs with it alone, trained to their end, against those without."""
    values = only_cdn(space, set())
    numbers = {"type": "int", "low": 0, "high": max(seeds - 1, 1)}
    plain = {**values["start_with"][0], **PLAIN}
    varied = {**values["parameters"], "seed": numbers}
    for key, value in ((key, value) for changes in SWITCHES.values() for key, value in changes.items()):
        varied.setdefault(key, {"type": "categorical", "choices": [plain[key], value]})
    points = [{**plain, **changes, "seed": seed} for seed in range(seeds) for changes in SWITCHES.values()]
    values |= {
        "name": "switches", "parameters": varied, "start_with": points,
        "trials": len(points), "keep": len(points), "early_stopping": {"name": "none"}, "sampler": {"name": "random"},
    }  # fmt: skip
    run = folder / "switches"
    search(SearchSpace.model_validate(values, strict=False), experiment, run, lambda _: None)
    result = evaluate_run(run, request=Request(top=len(points), resamples=2))
    trials = {
        int(Path(each["checkpoint"]).parent.name.rpartition("-")[2]): each["metrics"] for each in result["models"]
    }
    found: dict[str, Values] = {}
    for place, name in enumerate(SWITCHES):
        mine = [trials[place + seed * len(SWITCHES)] for seed in range(seeds)]  # points are tried in their order
        found[name] = {metric: [100 * each[metric] for each in mine] for metric in METRICS}
    rows = []
    for name, measures in found.items():
        cells = [name]
        for metric in METRICS:
            pairs = zip(measures[metric], found["plain CDN"][metric], strict=True)
            cells += [mean(measures[metric]), mean([one - other for one, other in pairs], "+")]
        rows.append(cells)
    return rows


def main() -> None:
    """Measures what is asked for; each part on each preset is a section of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--preset", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--videos", type=int, help="of every preset; by default enough for a stable result")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="holds data and runs, and stays; by default a temporary one")
    options = parser.parse_args()
    for name in options.preset:
        videos = options.videos or VIDEOS[name]
        with tempfile.TemporaryDirectory(prefix="cdn-tune-bench-") as temporary, connected():
            folder = Path(temporary) if options.folder is None else options.folder.absolute() / name
            plant(folder / "data", videos=videos, feature_size=64, seed=0, **preset(name))
            fixed = {
                **SETTINGS[name],
                "data.root": str(folder / "data"),
                "data.val_fraction": 0.4,
                "eval.metric": "mIoU",
                "train.epochs": options.epochs,
            }
            space, experiment = load_space(SPACE, fixed)
            if "search" in options.part:
                heads = [f"{metric}{of}" for metric in METRICS for of in (", wide", ", CDN", ", difference")]
                rows = compared(folder, experiment, space, options.seeds, options.seconds)
                lines = [
                    f"## Families on {name}",
                    "",
                    f"`python -m benchmarks.families --part search --preset {name} --seconds {options.seconds:g}`, "
                    f"test metrics in percent, {videos} videos: `{SPACE}`, among families and switches, against the "
                    f"same search over CDN alone, two trials at a time on two cores, {options.seconds:g} seconds each; "
                    f"what runs then counts with what it has reached. A trial has {options.epochs} epochs. Models are "
                    "chosen by val mIoU; means over seeds with 95 % intervals (Student's t). Aim: wide ahead by 5 "
                    "points of mIoU on `planted-hard`, not behind on `planted-medium`.",
                    "",
                    *table(["seed", "wide chose", *heads], rows),
                ]
                publish(f"families_search_{name}", lines)
            if "switches" in options.part:
                heads = [each for metric in METRICS for each in (metric, f"{metric}, against plain")]
                lines = [
                    f"## Switches on {name}",
                    "",
                    f"`python -m benchmarks.families --part switches --preset {name}`, test metrics in percent, "
                    f"{videos} videos: one switch at a time, {options.epochs} epochs, means over {options.seeds} "
                    "seeds with 95 % intervals.",
                    "",
                    *table(["", *heads], switched(folder, experiment, space, options.seeds)),
                ]
                publish(f"families_switches_{name}", lines)


if __name__ == "__main__":
    main()
