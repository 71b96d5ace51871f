"""The evaluation of a run: its best checkpoint on the test split, once, beside what needs no model.

``evaluation.json`` holds what was found and all that it rests on (docs/reference/run-folder.md describes each key);
``looks.jsonl`` has a line for every opening of the test split, written before it is opened.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from cdn_tune.config import DATA_PATHS, override
from cdn_tune.config.tables import metrics_depth
from cdn_tune.data.files import brief, parse_json
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.data.mark import to_mark
from cdn_tune.data.splits import split_annotations
from cdn_tune.data.videos.making import from_plain
from cdn_tune.errors import CheckpointError, ConfigError, RunError
from cdn_tune.evaluation.choose_checkpoint import Choice, choose_best
from cdn_tune.evaluation.evaluation_file import EVALUATION, EVALUATION_PUBLISHED
from cdn_tune.evaluation.literature import published_rows
from cdn_tune.evaluation.predictions import export_predictions
from cdn_tune.evaluation.probe_file import probe_warnings
from cdn_tune.evaluation.queries import (
    PREDICTIONS,
    PREDICTIONS_DIGEST,
    query_results,
    results_text,
    write_query_results,
)
from cdn_tune.evaluation.rejection import Rejection, choose_rejection
from cdn_tune.evaluation.request import Request
from cdn_tune.evaluation.retrain import Mode, Retrained, retrain
from cdn_tune.evaluation.score_maps import SCORE_MAPS
from cdn_tune.evaluation.scoring import NmsChoice, Retrieved, choose_nms, open_split, retrieve
from cdn_tune.evaluation.summary import summarise
from cdn_tune.moments.metrics import mean_measures, measure
from cdn_tune.training.memory.estimate import count_parameters
from cdn_tune.training.object_store.sync import push_run
from cdn_tune.training.object_store.working_copy import place_of
from cdn_tune.training.runs.files import json_text, write_bytes, write_text, write_together
from cdn_tune.training.runs.run_folder import changed_files, locked, read_manifest

SCHEMA = 2
PREDICTIONS_PUBLISHED = "predictions-published.jsonl"
LOOKS = "looks.jsonl"
PUBLISHED = "published protocol: the epoch was chosen on the test split itself, as the published code does"
# Where the data lie and what is reported; anything else would be another model, another choice, or other data.
CHANGEABLE = (*DATA_PATHS, "eval.batch_size", "eval.recalls", "eval.ious")


def evaluate_run(
    run: Path,
    overrides: Mapping[str, Any] | None = None,
    request: Request | None = None,
    on_stage: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Evaluates a run on the test split and writes ``evaluation.json`` and ``predictions.jsonl``.

    Everything that can be wrong is found, and everything chosen, before the test split is opened; that it is opened is
    recorded first. With the published protocol the files are ``evaluation-published.json`` and
    ``predictions-published.jsonl``.

    Args:
        run: Folder of a train or search run.
        overrides: Dotted keys of the experiment, e.g. ``data.root`` where the data have moved. Only `CHANGEABLE` keys.
        request: What is to be evaluated; the best checkpoint if None.
        on_stage: Called with the name of each stage as it begins.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        CdnTuneError: If run, checkpoint, data, training or cluster is at fault.
    """
    request = request or Request()
    request.check()
    run = run.absolute()
    if request.workers.address is not None and place_of(run) is not None:
        raise ConfigError("--address ADDR: a run on an object store is evaluated on one machine; leave it out")
    choice = choose_models(run, request, overrides or {})
    with locked(run):
        return _Evaluation(run, request, choice, dict(overrides or {}), on_stage).run_it()


def choose_models(run: Path, request: Request, overrides: Mapping[str, Any]) -> Choice:
    """Loads the checkpoints that a request names, and checks the overrides.

    Raises:
        CdnTuneError: If the run has none, the best is damaged, or an override would change the model or the choice.
    """
    choice = choose_best(run, request.top, request.checkpoint, request.trials)
    if not choice.is_best:
        raise CheckpointError(
            f"{choice.damaged[0]}; this is of the best trial: put it back, or measure the best that is left: "
            f"--checkpoint {shlex.quote(str(choice.checkpoint.path))}"
        )
    for key, value in overrides.items():
        if key not in CHANGEABLE:
            raise ConfigError(f"override {key}={value}: after training only {', '.join(CHANGEABLE)} can change")
    return choice


def find_changes(run: Path, facts: dict[str, Any], other_data: bool) -> list[str]:
    """Returns the names of the data files that have changed since the run, given the fingerprint of those of now.

    Raises:
        RunError: If there are any, unless `other_data`; or if features were made otherwise than those of the run.
    """
    held = read_manifest(run).get("data", {})
    then, now = (each.get("making") for each in (held, facts))
    if then and now and (differs := from_plain(then).differences(from_plain(now))):
        raise RunError(
            f"{run}: was trained on features that were made otherwise than these ({differs} here); extract the videos "
            "as then, or name features that were"
        )
    changed = changed_files(held, facts)
    if changed and not other_data:
        raise RunError(
            f"{run}: its data have changed since the run ({', '.join(changed)}); name the old ones with "
            "data.root=DIR, or evaluate on these with --other-data"
        )
    return changed


class _Evaluation:
    """One evaluation under way."""

    def __init__(
        self, run: Path, request: Request, choice: Choice, overrides: dict[str, Any], on_stage: Callable[[str], object]
    ) -> None:
        self.run, self.request, self.choice, self.on_stage = run, request, choice, on_stage
        self.published = request.protocol == "published"
        self.models, self.winner = choice.checkpoints, choice.checkpoint
        self.experiments = [override(model.experiment.plain(), overrides, str(model.path)) for model in self.models]
        self.experiment = self.experiments[0]
        if request.score_maps and not self.experiment.model.has_score_map:
            raise ConfigError(f"--score-maps: model.name={self.experiment.model.name} has no score maps; drop it")
        self.facts = fingerprint(self.experiment.data)
        self.changed = find_changes(run, self.facts, request.other_data)

    def run_it(self) -> dict[str, Any]:
        """Chooses, opens the test split, measures, and writes."""
        request = self.request
        read_looks(self.run)
        for split in ("val", "test"):  # faults of features or words are raised before anything is done
            open_split(self.experiment.data, split, self.experiment.model.inputs.sequences)
        retrained = self._retrain()
        nms = self._choose_nms()
        rejection = self._choose_rejection(nms)
        mine = [] if self.published else list(zip([model.path for model in self.models], self.experiments, strict=True))
        models = [*mine, *((trial.checkpoint, trial.experiment) for trial in retrained)]
        facts = {"protocol": request.protocol, "models": [str(path) for path, _ in models]}
        looks = record_test_access(self.run, facts)
        self.on_stage("evaluating on the test split")
        limit = metrics_depth(self.experiment.eval.test_metrics())
        maps = self.run / SCORE_MAPS if request.score_maps else None
        found = retrieve(models, "test", [nms.nms], limit, request.workers, maps)
        tops = [each[nms.nms] for each in found]
        rejected = None
        if rejection is not None:
            self.on_stage("asking for what is not in the videos of the test split")
            rejected = rejection.measure(tops[0], request.resamples)
        self.on_stage("resampling")
        result = self._result(nms, retrained, looks, tops) | {"rejection": rejected}
        self._write(result, retrained, tops)
        return result

    def _retrain(self) -> list[Retrained]:
        request, seed = self.request, self.experiment.seed
        confirmed = (self.choice.confirmed or {}).get("seeds", ())  # they took part in the choice
        seeds = self.experiment.further_seeds(request.seeds, confirmed)
        if not seeds and not self.published:
            return []
        mode: Mode = "published" if self.published else request.train_on
        if mode == "train+val" and not self.winner.val:
            raise ConfigError(f"--train-on train+val: {self.winner.path} was never measured on val; train it first")
        where = "choosing the epoch on test" if self.published else f"on {mode}"
        return retrain(
            self.run,
            self.experiment,
            self.facts,
            seeds or [seed],
            mode,
            self.winner.epoch,
            request.workers,
            lambda done, total: self.on_stage(f"training the winner again, {where}: {done} of {total} seeds done"),
        )

    def _choose_nms(self) -> NmsChoice:
        request, own = self.request, self.winner.model.complete(self.experiment.eval.suppression)
        if not request.choose_nms and not request.choose_nms_kind:
            return NmsChoice(own, "the experiment", None, {})
        self.on_stage("choosing the suppression of overlaps on val")
        return choose_nms(self.winner.path, self.experiment, own, request.choose_nms_kind, request.workers)

    def _choose_rejection(self, nms: NmsChoice) -> Rejection | None:
        if not self.request.reject:
            return None
        self.on_stage("choosing on val the score below which a sentence is rejected")
        return choose_rejection(self.winner.path, self.experiment, nms.nms, self.request.workers)

    def _name(self, path: Path) -> str:
        """Returns a path as the result names it: relative to the run folder, if it is in it."""
        return str(path.relative_to(self.run)) if path.is_relative_to(self.run) else str(path)

    def _result(
        self, nms: NmsChoice, retrained: Sequence[Retrained], looks: int, tops: Sequence[Retrieved]
    ) -> dict[str, Any]:
        """Returns the content of ``evaluation.json``; `tops` are of the chosen checkpoints, then of the retrained."""
        experiment, winner, published = self.experiment, self.winner, self.published
        settings = experiment.eval
        test = open_split(experiment.data, "test", experiment.model.inputs.sequences)
        chosen = () if published else self.models
        answers = [each.answers(test, settings.closed) for each in tops]
        measures = [measure(each, settings.test_metrics(each.several)) for each in answers]
        models = dict(zip([self._name(model.path) for model in chosen], measures, strict=False))
        seeds = dict(zip([f"seed {trial.seed}" for trial in retrained], measures[len(chosen) :], strict=True))
        every = {"mean": mean_measures(list(seeds.values())), **models, **seeds} if seeds else models
        train = split_annotations(experiment.data, "train").annotations
        seed, resamples = experiment.seed, self.request.resamples
        summary = summarise(every, test.annotations, train, settings.ious, seed, resamples, settings.closed)
        each_one = summary.pop("models")
        means = [each.means for each in seeds.values()]
        return {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "protocol": self.request.protocol,
            "label": PUBLISHED if published else None,
            "dataset": experiment.data.dataset,
            "planted": to_mark(self.facts["planted"]) or winner.planted,
            "split": "test",
            "looks": looks,
            "queries": len(test),
            "without_moment": [{"id": item.id, "reason": item.reason} for item in test.skipped],
            "videos": summary["bootstrap"]["clusters"],
            "recalls": list(settings.recalls),
            "ious": list(settings.ious),
            "nms_threshold": nms.nms.threshold,
            "nms": nms.plain(),
            "reported": f"mean over {len(seeds)} seeds" if len(seeds) > 1 else "one seed" if seeds else "checkpoint",
            "metrics": summary.pop("metrics"),
            "intervals": summary.pop("intervals"),
            # Standard deviations over seeds, n - 1 in the denominator.
            "std": {name: float(np.std([each[name] for each in means], ddof=1)) for name in means[0]}
            if len(means) > 1
            else None,
            "models": [
                {
                    "checkpoint": self._name(model.path),
                    "seed": model.experiment.seed,
                    "epoch": model.epoch,
                    "parameters": count_parameters(model.experiment),
                    "val": model.val,
                    **each_one[self._name(model.path)],
                }
                for model in chosen
            ],
            "seeds": {
                "trained_on": retrained[0].trained_on,
                "epoch_chosen_on": "test" if published else "val",
                "runs": [
                    {
                        "seed": trial.seed,
                        "checkpoint": self._name(trial.checkpoint),
                        "predictions": self._name(trial.folder / PREDICTIONS),
                        **each_one[f"seed {trial.seed}"],
                    }
                    for trial in retrained
                ],
            }
            if retrained
            else None,
            **summary,
            "published": published_rows(experiment.data, self.facts),
            "chosen_by": {
                "split": "test" if published else "val",
                "metric": winner.experiment.eval.metric,
                "value": None if published else winner.value,
                "confirmed": None if published else self.choice.confirmed,
            },
            "val": winner.val,
            "epoch": winner.epoch,
            "checkpoint": self._name(winner.path),
            "data_changed": self.changed,
            "damaged_checkpoints": list(self.choice.damaged),
            "experiment": experiment.plain(),
            "data": self.facts,
        }

    def _write(self, result: dict[str, Any], retrained: Sequence[Retrained], tops: Sequence[Retrieved]) -> None:
        test = open_split(self.experiment.data, "test", self.experiment.model.inputs.sequences)
        results = [query_results(test.annotations, each.top, each.scores, "test") for each in tops]
        for trial, each in zip(retrained, results[len(results) - len(retrained) :], strict=True):
            write_query_results(trial.folder / PREDICTIONS, each)
        for form in self.request.formats:
            export_predictions(results[0], form, self.run)
        names = (EVALUATION_PUBLISHED, PREDICTIONS_PUBLISHED) if self.published else (EVALUATION, PREDICTIONS)
        _keep_before(self.run, *names)  # the files of every test access are kept; the first is the one to report
        text = results_text(results[0])
        result |= {PREDICTIONS_DIGEST: hashlib.sha256(text.encode()).hexdigest()}
        write_together({self.run / names[1]: text, self.run / names[0]: json_text(result)})


def cautions(request: Request) -> Iterator[str]:
    """Yields what to beware of before a request is carried out, which may take hours and opens the test split."""
    if request.protocol == "published":
        yield "protocol published: the epoch is chosen on the test split; its numbers are no estimate of new queries"


def remarks(run: Path, result: Mapping[str, Any]) -> Iterator[str]:
    """Yields what limits the meaning of a result, a line each."""
    yield from result["damaged_checkpoints"]
    if result["data_changed"]:
        yield f"these are not the data of the run: {', '.join(result['data_changed'])} changed since"
    if result["looks"] > 1:
        first = run / "evaluation-look-1.json"
        hint = f"; report the first look, {first}" if first.exists() and result["protocol"] == "honest" else ""
        yield f"the test split was opened {result['looks']} times for this run{hint}"
    if (many := len(result["models"])) > 1:
        yield f"{many} models were measured; report the first, the best on val: to pick one here is to tune on test"
    yield from probe_warnings(run.absolute(), result["checkpoint"], result["epoch"])


def _keep_before(run: Path, evaluation: str, predictions: str) -> None:
    """Copies the files of the evaluation before to ``NAME-look-N``, N counting them, unless they are there already.

    They are there if this was done before and the process was killed before it wrote new files.
    """
    if not (run / evaluation).exists():
        return
    (stem, suffix), (other, ending) = evaluation.split("."), predictions.split(".")
    number = len(list(run.glob(f"{stem}-look-*.{suffix}")))
    before = (run / evaluation).read_bytes()
    last = run / f"{stem}-look-{number}.{suffix}"
    if last.exists() and last.read_bytes() == before:
        return
    if (run / predictions).exists():
        write_bytes(run / f"{other}-look-{number + 1}.{ending}", (run / predictions).read_bytes())
    write_bytes(run / f"{stem}-look-{number + 1}.{suffix}", before)


def record_test_access(run: Path, facts: dict[str, Any]) -> int:
    """Records in ``looks.jsonl`` of a locked run that its test split is about to be opened; returns how often it was.

    This time is included; evaluations of earlier versions, which kept no log, count by their files.

    Raises:
        RunError: If it cannot be read or written; then nothing may be opened.
    """
    path = run / LOOKS
    before = read_looks(run)
    looks = max(len(before), len(list(run.glob("evaluation*.json")))) + 1
    entry = {"look": looks, "opened": datetime.now(timezone.utc).isoformat(timespec="seconds"), **facts}
    lines = (*before, json.dumps(entry, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in lines))
    push_run(path)  # a run on an object store has the record there before anything is opened
    return looks


def read_looks(run: Path) -> list[str]:
    """Returns the lines of ``looks.jsonl``, one for each time that the test split was opened.

    A last line without its end is left out: it was being written, and nothing had been opened.

    Raises:
        RunError: Naming a line that is none of ours.
    """
    path = run / LOOKS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path}: cannot be read ({brief(error)}); mend it: it counts how often test was opened"
        ) from None
    *lines, rest = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip() and not _is_look(line):
            raise RunError(f'{path}:{number}: is no look at the test split; correct the line to {{"look": {number}}}')
    return [line for line in (*lines, *([rest] if _is_look(rest) else ())) if line.strip()]


def _is_look(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False
