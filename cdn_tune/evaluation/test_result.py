"""What a run's evaluation found and chose for one checkpoint, read for an export or a retriever."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdn_tune.config import Nms
from cdn_tune.errors import RunError
from cdn_tune.evaluation.evaluation_file import EVALUATION, plain_metrics, read_evaluation
from cdn_tune.evaluation.probe_file import ProbeFile, read_probe
from cdn_tune.training.runs.checkpoint import Checkpoint
from cdn_tune.training.runs.run_folder import MANIFEST


def read_test_result(run: Path, checkpoint: Checkpoint) -> tuple[dict[str, Any] | None, str]:
    """Reads the test metrics of a checkpoint from ``evaluation.json``, whichever version wrote it.

    Metrics of another checkpoint are not taken for its own; a `run` that is a checkpoint file has no evaluation.

    Returns:
        ``metrics`` by name, ``queries``, ``looks``, ``created``, ``baselines`` and ``parts`` (name to metrics) and
        ``auroc`` (of rejection) as far as they are recorded, or None; and why there are none.
    """
    try:
        content = read_evaluation(run)
    except RunError:
        return None, f"{EVALUATION} cannot be read"
    if content is None:
        return None, "the test split has not been evaluated"
    models = content.get("models")
    own = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else content
    metrics = plain_metrics(own.get("metrics"))  # over seeds, `metrics` are their mean
    if not metrics:
        return None, f"{EVALUATION} holds no metrics"
    measured = content.get("checkpoint")
    if not isinstance(measured, str):
        return None, f"{EVALUATION} does not say which checkpoint it measured"
    if measured != str(checkpoint.path.relative_to(run)):
        return None, f"{EVALUATION} measured another checkpoint, {measured}"
    kept = {key: content[key] for key in ("queries", "looks", "created") if isinstance(content.get(key), int | str)}
    baselines = content.get("baselines")
    beside = {
        name: found
        for name, value in (baselines.items() if isinstance(baselines, Mapping) else ())
        if isinstance(value, Mapping) and (found := plain_metrics(value.get("metrics")))
    }
    return {**kept, "metrics": metrics, "baselines": beside, **_parts_and_rejection(content)}, ""


def _parts_and_rejection(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics of each part of the split, and the AUROC of rejection, as far as they are a checkpoint's."""
    parts, rejection = content.get("parts"), content.get("rejection")
    listed = parts if isinstance(parts, list) and not content.get("seeds") else []  # over seeds, they are of the mean
    found = {
        part["label"]: metrics
        for part in listed
        if isinstance(part, Mapping)
        and isinstance(part.get("label"), str)
        and (metrics := plain_metrics(part.get("metrics")))
    }
    auroc = plain_metrics(rejection.get("metrics")).get("auroc") if isinstance(rejection, Mapping) else None
    return {"parts": found, **({} if auroc is None else {"auroc": auroc})}


def chosen_nms(checkpoint: Checkpoint) -> Nms | None:
    """Returns the suppression chosen on val with which the run's last evaluation measured a checkpoint, if one did.

    A checkpoint that was not read from its place in the run folder has no evaluation.
    """
    try:
        content, name = _evaluation_of(checkpoint)
        if content is None:
            return None
        nms, seeds = content["nms"], content["seeds"] or {"runs": []}
        measured = [each["checkpoint"] for each in (*content["models"], *seeds["runs"])]
        if nms["chosen_on"] != "val" or name not in measured:
            return None
        own = checkpoint.model.complete(checkpoint.experiment.eval.suppression)
        # An earlier version chose the threshold alone.
        chosen = own._replace(**{name: nms[name] for name in Nms._fields if name == "threshold" or name in nms})
        return checkpoint.experiment.eval.with_suppression(chosen).suppression
    except (RunError, ValueError, KeyError, TypeError):  # damaged, or by an earlier version
        return None


def chosen_threshold(checkpoint: Checkpoint) -> float | None:
    """Returns the score below which a sentence is probably not in the video, as chosen on val for a checkpoint.

    None unless the run's last evaluation chose one for it (``evaluate --reject``).
    """
    try:
        content, name = _evaluation_of(checkpoint)
        found = (content or {}).get("rejection")
        if not isinstance(found, dict) or (content or {}).get("checkpoint") != name:
            return None
        threshold = found.get("threshold")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            return None
        return float(threshold) if math.isfinite(threshold) else None
    except (RunError, OverflowError):  # damaged
        return None


def _evaluation_of(checkpoint: Checkpoint) -> tuple[dict[str, Any] | None, str]:
    """Returns the evaluation of a checkpoint's run, None if there is none, and what it calls the checkpoint.

    Raises:
        RunError: If it is damaged.
    """
    path = checkpoint.path.absolute()
    run = next((folder for folder in path.parents if (folder / MANIFEST).is_file()), None)
    return (None, "") if run is None else (read_evaluation(run), str(path.relative_to(run)))


def probe_of(run: Path, checkpoint: Checkpoint) -> ProbeFile | None:
    """Returns the last probe of a run if it was of this checkpoint, by the metric that chose it; None if it was not."""
    try:
        found = read_probe(run)
    except RunError:
        return None
    own = str(checkpoint.path.relative_to(run)) if checkpoint.path.is_relative_to(run) else str(checkpoint.path)
    known = (own, checkpoint.epoch, checkpoint.experiment.eval.metric)
    return found if found is not None and (found.checkpoint, found.epoch, found.metric) == known else None
