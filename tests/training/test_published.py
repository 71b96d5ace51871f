"""The published experiments of map families, at full size, on planted features of theirs: planned, and trained."""

import json
import math
from pathlib import Path

import pytest

from cdn_tune.config import Experiment, load_experiment
from cdn_tune.data.planted import plant
from cdn_tune.training.plan import make_plan
from cdn_tune.training.reports import EpochReport, StepReport
from cdn_tune.training.train_trial import open_data, train_in

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted(path for name in ("charades", "tacos") for path in (ROOT / "experiments" / name).glob("*x*.yaml"))
STEPS = 2
FPS, FRAMES = 30.0, 3000


def annotations(folder: Path) -> None:
    """Writes TACoS annotations: a video in each split; four queries to train on, two to choose by."""
    folder.mkdir()
    sentences = ("the person takes a knife", "the person cuts the carrot", "she washes a plate", "he opens the drawer")
    for split, queries in (("train", 4), ("val", 2), ("test", 2)):
        entry = {
            "timestamps": [[300 * n, 300 * n + 900] for n in range(queries)],
            "sentences": list(sentences[:queries]),
            "fps": FPS,
            "num_frames": FRAMES,
        }
        (folder / f"{split}.json").write_text(json.dumps({f"{split}.avi": entry}))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Planted datasets by name, with features of 4096 and words of 300."""
    folder = tmp_path_factory.mktemp("published")
    annotations(folder / "source")
    plant(folder / "charades_sta", videos=5, feature_size=4096, word_size=300, frame_rate=2.0)
    plant(
        folder / "tacos",
        annotations="tacos",
        source=folder / "source",
        feature_size=4096,
        word_size=300,
        frame_rate=2.0,
    )
    return {"charades_sta": folder / "charades_sta", "tacos": folder / "tacos"}


def cut(path: Path, roots: dict[str, Path]) -> Experiment:
    """Returns the experiment on planted data, with its own model and fewer queries a step."""
    root = roots[load_experiment(path).data.dataset]
    # A fraction that holds out one of so few videos; TACoS has a val of its own.
    data = {"data.root": str(root), "data.word_vectors": next(root.glob("glove*.txt")).name, "data.val_fraction": 0.5}
    queries = len(open_data(load_experiment(path, data).data)["train"])
    return load_experiment(
        path,
        {
            **data,
            "train.epochs": 1,
            "train.eval_queries": 1,
            "train.batch_size": -(-queries // STEPS),
            "train.batch_of": "queries",
        },
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_takes_steps_and_is_planned(path: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    experiment, full = cut(path, roots), load_experiment(path)
    assert (experiment.model, experiment.data.feature_size, experiment.optim) == (full.model, 4096, full.optim)
    steps: list[StepReport] = []
    reports: list[EpochReport] = []
    train_in(experiment, tmp_path, reports.append, steps.append)
    assert len(steps) == reports[0].steps == STEPS
    assert all(math.isfinite(step.loss) for step in steps)
    assert math.isfinite(reports[0].gradient_norm)
    assert reports[0].gradient_norm > 0
    plan = make_plan(experiment, open_data(experiment.data))
    assert plan.parameters > (2e8 if experiment.model.name == "cdn" else 5e7)
    assert plan.steps_per_epoch == STEPS
    assert plan.memory.total(plan.micro_batch) > 4 * 4 * plan.parameters  # weights, gradients, Adam's two moments
