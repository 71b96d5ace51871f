"""What a run has recorded so far, read without changing anything."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config.yaml import read_mapping
from cdn_tune.data.files import brief, read_json
from cdn_tune.errors import CdnTuneError, RunError
from cdn_tune.evaluation.evaluation_file import EVALUATION, EVALUATION_PUBLISHED
from cdn_tune.evaluation.probe_file import PROBE, ProbeFile, read_probe
from cdn_tune.evaluation.queries import PREDICTIONS
from cdn_tune.report import shapes
from cdn_tune.training.runs.masking import masked_urls
from cdn_tune.training.runs.records import METRICS, read_metrics
from cdn_tune.training.runs.run_folder import EXPERIMENT, MANIFEST, SPACE, read_manifest
from cdn_tune.tuning.layout import DATABASE, JOURNAL, TRIALS
from cdn_tune.tuning.results.record import Record
from cdn_tune.tuning.results.record import read_record as read_search


@dataclass(frozen=True)
class RunRecord:
    """A run as it stands."""

    run: Path  # the run folder
    manifest: dict[str, Any]
    experiment: dict[str, Any]  # the (base) experiment, plain
    space: dict[str, Any]  # the search space, plain; empty for a train run
    search: Record | None  # of the study, without trials that wait; None for a train run
    curves: dict[int | None, list[dict[str, Any]]]  # epochs: by trial number, or under None those of a train run
    evaluation: dict[str, Any] | None  # content of ``evaluation.json``; None before the first evaluation
    published: dict[str, Any] | None  # the same of ``evaluation-published.json``, whose epoch was chosen on test
    probe: ProbeFile | None  # content of ``probe.json``; None before the first probe
    notices: tuple[str, ...]  # what could not be read, one line each

    @property
    def is_search(self) -> bool:
        """Whether the run is a search."""
        return self.search is not None

    @property
    def trials(self) -> list[FrozenTrial]:
        """Entries of the study by number; none for a train run."""
        return self.search.entries if self.search else []

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The study's own facts (budget, metric, dataset)."""
        return self.search.attributes if self.search else {}

    @property
    def name(self) -> str:
        """Name of the search space, or of the experiment."""
        return str(self.space.get("name") or self.experiment.get("name") or self.run.name)

    @property
    def metric(self) -> str:
        """The val metric that chooses epochs and trials."""
        if self.search:
            return self.search.metric
        return str(self.experiment.get("eval", {}).get("metric") or "val metric")

    @property
    def objectives(self) -> dict[str, StudyDirection]:
        """What is optimised, the val metric first."""
        return self.search.objectives if self.search else {}

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.attributes.get("dataset") or self.experiment.get("data", {}).get("dataset") or "unknown data")

    @property
    def planted(self) -> bool:
        """Whether any number of this run comes from planted data."""
        sources = (self.attributes, self.manifest.get("data", {}), self.evaluation or {})
        return any(bool(facts.get("planted")) for facts in sources)


def read_record(run: Path) -> RunRecord:
    """Reads a run folder; what is damaged becomes a notice, so that the rest can still be seen.

    Raises:
        RunError: If the folder is no run folder, or its study cannot be opened.
    """
    manifest = read_manifest(run)
    notices: list[str] = []
    search = None
    if manifest["kind"] == "search":
        search = read_search(run)
        notices += [] if search.notice is None else [search.notice]
        search = replace(search, entries=[each for each in search.entries if each.state != TrialState.WAITING])
    curves: dict[int | None, list[dict[str, Any]]] = {None: _epochs(run, notices)}
    if search:
        curves = {trial.number: _epochs(run / TRIALS / f"{trial.number:04d}", notices) for trial in search.entries}
    experiment = _mapping(run / EXPERIMENT, notices) or manifest.get("experiment", {})
    if wrong := shapes.misfit(shapes.Experiment, experiment):
        notices.append(f"{run / EXPERIMENT}: {wrong}; it is not shown")
        experiment = {}
    return RunRecord(
        run=run,
        manifest=hide_passwords(manifest),
        experiment=experiment,
        space=hide_passwords(_mapping(run / SPACE, notices)) if search else {},
        search=search,
        curves=curves,
        evaluation=_evaluation(run / EVALUATION, notices),
        published=_evaluation(run / EVALUATION_PUBLISHED, notices),
        probe=_probe(run, notices),
        notices=tuple(notices),
    )


def stamp(run: Path) -> str:
    """Returns a text that differs once anything that the report shows has changed on disk."""
    names = (MANIFEST, JOURNAL, DATABASE, f"{DATABASE}-wal", EVALUATION, PREDICTIONS, METRICS, EVALUATION_PUBLISHED)
    names += (PROBE,)
    paths = [run / name for name in names]
    paths += sorted(run.glob(f"{TRIALS}/*/{METRICS}")) + sorted(run.glob("best/*/checkpoint.pt"))
    found = []
    for path in paths:
        try:
            facts = path.stat()
        except OSError:  # not written yet, or just replaced: the next call will differ
            continue
        found.append(f"{path.relative_to(run)}:{facts.st_size}:{facts.st_mtime_ns}")
    return "\n".join(found)


def hide_passwords(value: Any) -> Any:
    """Returns a plain value in which the passwords of URLs are starred out: a report is sent around."""
    if isinstance(value, dict):
        return {key: hide_passwords(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_passwords(item) for item in value]
    return masked_urls(value) if isinstance(value, str) else value


def _mapping(path: Path, notices: list[str]) -> dict[str, Any]:
    try:
        return dict(read_mapping(path))
    except CdnTuneError as error:
        notices.append(str(error))
        return {}


def _epochs(folder: Path, notices: list[str]) -> list[dict[str, Any]]:
    """Returns a trial's epochs up to the first that is damaged."""
    try:
        entries = read_metrics(folder)
        lines = (folder / METRICS).read_bytes().split(b"\n") if entries else []
    except OSError as error:
        notices.append(f"{folder / METRICS}: cannot be read ({brief(error)})")
        return []
    if len(lines) > len(entries) + 1:  # the last has no line feed yet
        notices.append(f"{folder / METRICS}: line {len(entries) + 1} is no epoch's; what follows is not shown")
    for at, entry in enumerate(entries):
        if wrong := shapes.misfit(shapes.Epoch, entry):
            notices.append(f"{folder / METRICS}: line {at + 1}: {wrong}; epochs from there on are not shown")
            return entries[:at]
    return entries


def _evaluation(path: Path, notices: list[str]) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        notices.append(f"{path}: cannot be read ({error})")
        return None
    if wrong := shapes.misfit(shapes.Evaluation, found):
        notices.append(f"{path}: is not shown ({wrong}); cdn-tune evaluate writes it anew")
        return None
    return dict(hide_passwords(found))


def _probe(run: Path, notices: list[str]) -> ProbeFile | None:
    try:
        return read_probe(run)
    except RunError as error:
        notices.append(str(error))
        return None
