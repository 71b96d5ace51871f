"""A run folder from Python: `cdn_tune.open_run` and what it returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cdn_tune.api.arguments import Count, CountOrNone, PathLike, checked, path_of
from cdn_tune.config import Experiment, SearchSpace, build
from cdn_tune.config.load import checked_overrides
from cdn_tune.config.yaml import read_mapping
from cdn_tune.errors import ConfigError, RunError
from cdn_tune.training.object_store.sync import fetched
from cdn_tune.training.object_store.working_copy import shown
from cdn_tune.training.reports import ignore
from cdn_tune.training.runs.records import read_metrics
from cdn_tune.training.runs.run_folder import EXPERIMENT, SPACE, read_manifest

if TYPE_CHECKING:
    import optuna

    from cdn_tune.tuning.results.record import Record

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The best of a run by its val metric.

    Attributes:
        metric: Name of the val metric that chooses, such as ``R1@0.5``.
        value: Its best value, in [0, 1].
        epoch: The epoch of that; None if it is not on record.
        checkpoint: The checkpoint that stands for it, which `cdn_tune.load` opens: of a confirmed trial, that of its
            best confirmation.
        experiment: What trained it.
        trial: Number of the trial; None of a train run.
        params: The sampled values by dotted key; empty of a train run.
        mean: Mean of the metric over the trial's confirmations; None without any.
    """

    metric: str
    value: float
    epoch: int | None
    checkpoint: Path
    experiment: Experiment
    trial: int | None = None
    params: Mapping[str, Any] | None = None
    mean: float | None = None


class Run:
    """A run folder of `train` or `search`, finished or under way.

    Everything is read anew when it is asked for. Nothing is written to the folder but by `evaluate` and `probe`.

    Args:
        path: The folder, or its URL on an object store.
        storage: URL of the study's storage, where that needs what the folder does not hold, such as a password.

    Attributes:
        path: The folder on this machine.
        kind: ``train`` or ``search``.

    Raises:
        CdnTuneError: If it is no run folder.
    """

    @checked
    def __init__(self, path: PathLike, storage: str | None = None) -> None:
        given = path_of(path, "path")
        self._given, self._storage = given, storage
        folder = fetched(given)
        self.kind: Literal["train", "search"] = read_manifest(folder)["kind"]
        self.path = given if folder == given.absolute() else folder

    def __repr__(self) -> str:
        return f"Run({shown(self.path)!r})"

    @property
    def experiment(self) -> Experiment:
        """The experiment: of a search, the base of its trials."""
        path = fetched(self._given) / EXPERIMENT
        return build(Experiment, read_mapping(path), str(path))

    @property
    def space(self) -> SearchSpace:
        """What is searched; a train run has none, which is a `RunError`."""
        self._require("search", "has no search space")
        path = fetched(self._given) / SPACE
        return build(SearchSpace, read_mapping(path), str(path))

    @property
    def study(self) -> optuna.Study:
        """The Optuna study of a search as it stands now, for Optuna's analyses and plots.

        It holds everything on record, in memory: refused proposals and confirmations too (user attribute ``role``).
        Writing to it (``ask``, ``optimize``) is a `RunError`; `cdn_tune.search` goes on with a search.
        """
        from cdn_tune.tuning.results.recorded_study import recorded_study

        return recorded_study(self._record())

    @property
    def best(self) -> Best:
        """The best trial of a search, or the best epoch of a train run, by the val metric.

        Raises:
            RunError: If nothing has been measured on val yet.
        """
        if self.kind == "train":
            return self._best_epoch()
        from cdn_tune.training.runs.kept import CHECKPOINT, kept_folder
        from cdn_tune.tuning.study.ranking import confirmed, models, ranking, value_of

        record = self._record()
        ranked = ranking(record.entries)
        if not ranked:
            raise RunError(f"{shown(self.path)}: no trial has ended with a value yet; let the search run on")
        trial, found = ranked[0], confirmed(record.entries).get(ranked[0].number)
        return Best(
            metric=record.metric,
            value=value_of(trial) or 0.0,
            epoch=trial.user_attrs.get("best_epoch"),
            checkpoint=kept_folder(fetched(self._given, models=True), models(record.entries)[0].number) / CHECKPOINT,
            experiment=record.experiment(trial.number),
            trial=trial.number,
            params=dict(trial.params),
            mean=None if found is None else found.mean,
        )

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What the last `evaluate` found, the content of ``evaluation.json``; None before the first."""
        from cdn_tune.evaluation.evaluation_file import read_evaluation

        return read_evaluation(fetched(self._given))

    def leaderboard(self) -> Any:
        """Returns a search's trials, best first: the rows and columns of ``leaderboard.json``.

        Returns:
            A `pandas.DataFrame`, with NaN where an entry has no value, if pandas is installed; else a list of dicts.

        Raises:
            RunError: If this is a train run, or the study cannot be read.
        """
        from cdn_tune.tuning.results.leaderboard import filled

        rows = self._record().rows()
        return _table([filled(row) for row in rows], list(rows[0]) if rows else [])

    @checked
    def epochs(self, trial: CountOrNone | None = None) -> Any:
        """Returns what was recorded of each epoch, in order: losses, rates, seconds, ``val METRIC``.

        Args:
            trial: Number of a search's trial; of a train run None.

        Returns:
            A `pandas.DataFrame` if pandas is installed, else a list of dicts.

        Raises:
            RunError: If a search is asked without a trial, or for one that it has not.
        """
        folder = fetched(self._given, trials=True)
        if self.kind == "search":
            from cdn_tune.tuning.layout import trial_folder

            if trial is None:
                raise ConfigError(f"{shown(self.path)}: is a search; name one of its trials, as epochs(trial=0)")
            self._record().entry(trial)  # raises if there is none
            folder = trial_folder(folder, trial)
        elif trial is not None:
            raise ConfigError(f"trial={trial}: {shown(self.path)} is a train run; leave it out")
        rows = []
        for epoch in read_metrics(folder):
            plain = {key: value for key, value in epoch.items() if key not in ("val", "query_ious")}
            rows.append(plain | {f"val {name}": value for name, value in epoch["val"].items()})
        return _table(rows, list(dict.fromkeys(name for row in rows for name in row)))

    @checked
    def evaluate(
        self,
        overrides: Mapping[str, Any] | None = None,
        *,
        top: Count = 1,
        checkpoint: PathLike | None = None,
        front: bool = False,
        seeds: CountOrNone = 0,
        train_on: Literal["train", "train+val"] = "train",
        choose_nms: bool = False,
        choose_nms_kind: bool = False,
        protocol: Literal["honest", "published"] = "honest",
        workers: Count = 1,
        address: str | None = None,
        score_maps: bool = False,
        reject: bool = False,
        formats: Sequence[Literal["qvhighlights", "charades_sta"]] = (),
        other_data: bool = False,
        on_stage: Callable[[str], object] | None = None,
    ) -> dict[str, Any]:
        """Measures the run on the test split, as `cdn-tune evaluate` does.

        Every call opens the test split and is counted (``looks``), also when a notebook's cell is run again; what the
        last one found is in `evaluation`. It writes ``evaluation.json`` and ``predictions.jsonl`` into the folder.
        After an interruption the same call does what is left.

        Args:
            overrides: Where the data are now, such as ``{"data.root": "elsewhere"}``; nothing that changes the model.
            top: How many of a search's best models are measured.
            checkpoint: This one instead.
            front: The models of a search's Pareto front instead.
            seeds: Under how many other seeds the winner is trained again, and measured.
            train_on: What these train on; ``train+val`` for the winner's number of epochs.
            choose_nms: Whether the NMS threshold (of soft NMS: sigma) is chosen on val.
            choose_nms_kind: Whether hard or soft NMS and voting are chosen with it.
            protocol: ``published`` trains again and chooses the epoch on test, as the published code does.
            workers: Ray tasks at a time; the numbers stay the same.
            address: Ray cluster to join for these.
            score_maps: Whether ``score_maps.hdf5`` is written.
            reject: Whether it is measured how the winner rejects sentences that are not in the video.
            formats: Further formats of the predictions: ``qvhighlights``, ``charades_sta``.
            other_data: Whether data that have changed since the run may be used.
            on_stage: Called with the name of each stage as it begins.

        Returns:
            The content of ``evaluation.json``: ``metrics``, ``intervals``, ``baselines`` and the rest.

        Raises:
            CdnTuneError: If run, checkpoint, data, training or cluster are at fault.
        """
        given = checked_overrides(overrides or {})
        if address is not None:
            from cdn_tune.distributed.address import prepare

            prepare(address)
        from cdn_tune.evaluation.evaluate import cautions, evaluate_run, remarks
        from cdn_tune.evaluation.request import Request
        from cdn_tune.evaluation.scoring import Workers
        from cdn_tune.training.object_store.sync import fetched_file
        from cdn_tune.tuning.results.record import front_trials

        folder = fetched(self._given, models=True)
        request = Request(
            top=top,
            checkpoint=None if checkpoint is None else fetched_file(path_of(checkpoint, "checkpoint")),
            trials=tuple(front_trials(folder)) if front else None,
            seeds=seeds,
            train_on=train_on,
            choose_nms=choose_nms,
            choose_nms_kind=choose_nms_kind,
            protocol=protocol,
            workers=Workers(workers, address),
            score_maps=score_maps,
            reject=reject,
            formats=tuple(formats),
            other_data=other_data,
        )
        for line in cautions(request):
            _LOG.warning("%s", line)
        result = evaluate_run(folder, given, request, on_stage or ignore)
        for line in remarks(folder, result):
            _LOG.warning("%s", line)
        return result

    @checked
    def probe(
        self,
        overrides: Mapping[str, Any] | None = None,
        *,
        checkpoint: PathLike | None = None,
        other_data: bool = False,
        on_stage: Callable[[str], object] | None = None,
    ) -> dict[str, Any]:
        """Probes the best model on val with its inputs changed, as `cdn-tune evaluate --probe` does; test stays closed.

        Args:
            overrides: As of `evaluate`.
            checkpoint: This one instead of the best.
            other_data: Whether data that have changed since the run may be used.
            on_stage: Called with the name of each stage as it begins.

        Returns:
            The content of ``probe.json``, which is written into the folder.

        Raises:
            CdnTuneError: If run, checkpoint or data are at fault.
        """
        from cdn_tune.evaluation.probe import probe_run
        from cdn_tune.evaluation.probe_file import ProbeFile
        from cdn_tune.evaluation.request import Request
        from cdn_tune.training.object_store.sync import fetched_file

        given = checked_overrides(overrides or {})
        file = None if checkpoint is None else fetched_file(path_of(checkpoint, "checkpoint"))
        request = Request(checkpoint=file, other_data=other_data)
        result = probe_run(fetched(self._given, models=True), given, request, on_stage or ignore)
        for line in (*result["damaged_checkpoints"], *ProbeFile.model_validate(result).warnings()):
            _LOG.warning("%s", line)
        return result

    def predictions(self) -> Any:
        """Returns what the last `evaluate` retrieved, a row per query of the test split.

        Columns: ``id``, ``video``, ``query``, ``duration``, ``truth`` (start, end), ``moments`` (start, end, score;
        best first), ``iou`` (of the first with the truth), ``split``, ``others``, ``qid``. Times are in seconds.

        Returns:
            A `pandas.DataFrame` if pandas is installed, else a list of dicts.

        Raises:
            DataError: If the run has not been evaluated, or the file is damaged.
        """
        from cdn_tune.evaluation.queries import PREDICTIONS, read_query_results

        found = read_query_results(fetched(self._given) / PREDICTIONS, self.evaluation)
        return _table([dict(vars(each)) for each in found], list(vars(found[0])))

    def _best_epoch(self) -> Best:
        from cdn_tune.training.runs.checkpoint import BEST

        folder, experiment = fetched(self._given, models=True), self.experiment
        epochs = read_metrics(folder)
        if not epochs:
            raise RunError(f"{shown(self.path)}: has no finished epoch yet; let its training run on")
        last = epochs[-1]
        return Best(experiment.eval.metric, last["best_value"], last["best_epoch"], folder / BEST, experiment)

    @checked
    def _record(self) -> Record:
        from cdn_tune.tuning.results.record import read_record

        self._require("search", "has no trials")
        record = read_record(self._given, self._storage)
        if record.notice is not None:
            _LOG.warning("%s", record.notice)
        return record

    def _require(self, kind: str, why: str) -> None:
        if self.kind != kind:
            raise RunError(f"{shown(self.path)}: is a {self.kind} run, which {why}; open a {kind} run's folder")


def open_run(path: PathLike, *, storage: str | None = None) -> Run:
    """Opens the run folder of a training or a search, also while it runs.

    Args:
        path: The folder, or its URL on an object store.
        storage: URL of the study's storage, where that needs what the folder does not hold, such as a password.

    Raises:
        CdnTuneError: If it is no run folder.
    """
    return Run(path, storage)


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> Any:
    """Returns rows as a data frame, if pandas is installed; else as they are."""
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows, columns=list(columns))
