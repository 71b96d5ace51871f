"""The final word: the best checkpoint on the test split, beside what needs no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdn_tune.config import override
from cdn_tune.config.tables import metrics_depth
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.evaluation.choose_checkpoint import Choices, choose_models
from cdn_tune.evaluation.formats import export_predictions
from cdn_tune.evaluation.nms import NmsChoice, choose_nms
from cdn_tune.evaluation.queries import PREDICTIONS, query_results, write_query_results
from cdn_tune.evaluation.request import Request, check_request
from cdn_tune.evaluation.result import Basis, describe_result
from cdn_tune.evaluation.retrain import Mode, Retrained, retrain
from cdn_tune.evaluation.score_maps import SCORE_MAPS
from cdn_tune.evaluation.scoring import Retrieved, open_split, retrieve
from cdn_tune.evaluation.test_access_log import record_look
from cdn_tune.training.runs.files import write_json
from cdn_tune.training.runs.run_folder import changed_files, locked, read_manifest

EVALUATION = "evaluation.json"
EVALUATION_PUBLISHED = "evaluation-published.json"
PREDICTIONS_PUBLISHED = "predictions-published.jsonl"
# Where the data lie and what is reported; anything else would be another model, another choice, or other data.
CHANGEABLE = ("data.root", "data.features", "data.word_vectors", "eval.batch_size", "eval.recalls", "eval.ious")

OnStage = Callable[[str], None]


def nobody(_: str) -> None:
    """Who is told of no stage."""


def evaluate_run(
    run: Path,
    overrides: Mapping[str, Any] | None = None,
    request: Request | None = None,
    on_stage: OnStage = nobody,
) -> dict[str, Any]:
    """Evaluates a run on the test split and writes ``evaluation.json`` and ``predictions.jsonl``.

    Everything that can be wrong is found, and everything chosen, before the test split is opened; that it is opened is
    recorded first. With the published protocol the files are ``evaluation-published.json`` and
    ``predictions-published.jsonl``.

    Args:
        run: Folder of a train or search run.
        overrides: Dotted keys of the experiment, e.g. ``data.root`` where the data have moved. Only `CHANGEABLE` keys.
        request: What is to be evaluated; the best checkpoint if None.
        on_stage: Told what begins now.

    Returns:
        What ``evaluation.json`` holds; docs/evaluation.md describes it.

    Raises:
        CdnTuneError: If run, checkpoint, data, training or cluster is at fault.
    """
    request = request or Request()
    check_request(request)
    run = run.absolute()
    choices = choose_models(run, request.top, request.checkpoint, request.trials)
    for key, value in (overrides or {}).items():
        if key not in CHANGEABLE:
            raise ConfigError(f"override {key}={value}: after training only {', '.join(CHANGEABLE)} can change")
    with locked(run):
        return _Evaluation(run, request, choices, dict(overrides or {}), on_stage).run_it()


class _Evaluation:
    """One evaluation under way."""

    def __init__(
        self, run: Path, request: Request, choices: Choices, overrides: dict[str, Any], on_stage: OnStage
    ) -> None:
        self.run, self.request, self.choices, self.tell = run, request, choices, on_stage
        self.models = choices.checkpoints
        self.experiments = [override(model.experiment.plain(), overrides, str(model.path)) for model in self.models]
        self.winner, self.experiment = self.models[0], self.experiments[0]
        if request.score_maps and not self.experiment.model.has_score_map:
            raise ConfigError(f"--score-maps: model.name={self.experiment.model.name} has no score maps; drop it")
        self.facts = fingerprint(self.experiment.data)
        self.changed = changed_files(read_manifest(run).get("data", {}), self.facts)

    def run_it(self) -> dict[str, Any]:
        """Chooses, opens the test split, measures, and writes."""
        request, published = self.request, self.request.protocol == "published"
        if self.changed and not request.other_data:
            raise RunError(
                f"{self.run}: its data have changed since the run ({', '.join(self.changed)}); name the old ones with "
                "data.root=DIR, or evaluate on these with --other-data"
            )
        for split in ("val", "test"):  # what is wrong with features or words is said before anything is done
            open_split(self.experiment.data, split)
        retrained = self._retrain()
        nms = self._choose_nms()
        mine = [] if published else list(zip([model.path for model in self.models], self.experiments, strict=True))
        theirs = [(trial.checkpoint, trial.experiment) for trial in retrained]
        looks = record_look(
            self.run,
            {"protocol": request.protocol, "models": [str(path) for path, _ in (*mine, *theirs)]},
        )
        self.tell("evaluating on the test split")
        found = retrieve(
            [*mine, *theirs],
            split="test",
            thresholds=[nms.threshold],
            limit=metrics_depth(self.experiment.eval.test_metrics),
            workers=request.workers,
            maps=self.run / SCORE_MAPS if request.score_maps else None,
        )
        tops = [each[nms.threshold] for each in found]
        self.tell("resampling")
        basis = Basis(self.run, request, self.choices, self.experiment, self.facts, self.changed, nms, retrained, looks)
        result = describe_result(basis, tops[: len(mine)], tops[len(mine) :])
        self._write(result, tops, len(mine), retrained)
        return result

    def _retrain(self) -> list[Retrained]:
        request, seed = self.request, self.experiment.seed
        seeds = [(seed + 1 + number) % 2**32 for number in range(request.seeds)]
        published = request.protocol == "published"
        if published and not seeds:
            seeds = [seed]
        if not seeds:
            return []
        mode: Mode = "published" if published else request.train_on
        if mode == "train+val" and not self.winner.val:
            raise ConfigError(f"--train-on train+val: {self.winner.path} was never measured on val; train it first")
        where = "choosing the epoch on test" if published else f"on {mode}"
        return retrain(
            self.run,
            self.experiment,
            seeds,
            mode,
            self.winner.epoch,
            request.workers,
            lambda done, total: self.tell(f"training the winner again, {where}: {done} of {total} seeds done"),
        )

    def _choose_nms(self) -> NmsChoice:
        if not self.request.choose_nms:
            return NmsChoice(self.experiment.eval.nms_threshold, "the experiment", None, {})
        self.tell("choosing the NMS threshold on val")
        return choose_nms(self.winner.path, self.experiment, self.request.workers)

    def _write(
        self, result: dict[str, Any], tops: Sequence[Retrieved], mine: int, retrained: Sequence[Retrained]
    ) -> None:
        test = open_split(self.experiment.data, "test")
        results = [query_results(test.annotations, each.top, each.scores, "test") for each in tops]
        for trial, each in zip(retrained, results[mine:], strict=True):
            write_query_results(trial.folder / PREDICTIONS, each)
        names = [EVALUATION, PREDICTIONS]
        if self.request.protocol == "published":
            names = [EVALUATION_PUBLISHED, PREDICTIONS_PUBLISHED]
        _put_aside(self.run, names)  # every look is kept; the first is the one to report
        write_query_results(self.run / names[1], results[0])
        for form in self.request.formats:
            export_predictions(results[0], form, self.run)
        write_json(self.run / names[0], result)


def _put_aside(run: Path, names: Sequence[str]) -> None:
    """Renames the files of the evaluation before to ``NAME-look-N``, N counting them."""
    if not (run / names[0]).exists():
        return
    stem, suffix = names[0].split(".")
    number = len(list(run.glob(f"{stem}-look-*.{suffix}"))) + 1
    for name in names:
        stem, suffix = name.split(".")
        if (run / name).exists():
            (run / name).replace(run / f"{stem}-look-{number}.{suffix}")
