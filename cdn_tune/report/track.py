"""A search's report where the search is logged."""

from pathlib import Path

from cdn_tune.config import Experiment
from cdn_tune.report.page import REPORT, Builder
from cdn_tune.training.runs.run_folder import read_manifest
from cdn_tune.training.tracking.tracker import add_files
from cdn_tune.tuning.tracking import SEARCH


def track_report(experiment: Experiment, run: Path) -> str | None:
    """Uploads the report, without pictures of the model's answers, to MLflow; returns a line if that fails."""
    page = {str(REPORT): Builder(run, 0).build().html}
    return add_files(experiment.tracking, str(read_manifest(run).get("run_id")), SEARCH, page)
