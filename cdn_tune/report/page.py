"""The page: everything assembled into one HTML file that asks nothing of anybody else."""

from __future__ import annotations

import base64
import hashlib
import shlex
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cdn_tune import __version__
from cdn_tune.config.yaml import dump
from cdn_tune.errors import RunError
from cdn_tune.report.answers import Answers, answers_of
from cdn_tune.report.curves import train_curves, trial_curves
from cdn_tune.report.figures import Figure
from cdn_tune.report.gantt import gantt
from cdn_tune.report.history import history
from cdn_tune.report.landscape import landscape
from cdn_tune.report.pack import base64_of, figure_data, pack, packed_plotly, query_data
from cdn_tune.report.record import RunRecord, read_record, stamp
from cdn_tune.report.results import cards, tables
from cdn_tune.report.sparkline import sparkline
from cdn_tune.report.trials import counted, failures, front, leaderboard, parameters_of, spending, unfinished
from cdn_tune.report.wording import duration, number
from cdn_tune.training.evaluate.pictures import COLOURS
from cdn_tune.training.runs.run_folder import EXPERIMENT, SPACE
from cdn_tune.tuning.results.leaderboard import short_names
from cdn_tune.tuning.study.ranking import ranking, value_of

REPORT = Path("report") / "index.html"
GENERATOR = '<meta name="generator" content="cdn-tune'
SCRIPTS = ("base.js", "table.js", "figures.js", "queries.js", "live.js")
VIEWS = 60


@dataclass(frozen=True)
class Page:
    """A built report.

    Attributes:
        html: The whole page.
        stamp: Of the record that it shows; see `record.stamp`.
        notices: What is missing in it, one line each.
    """

    html: str
    stamp: str
    notices: tuple[str, ...]


class Builder:
    """Builds the report of a run, again and again while it goes on.

    What the model sees is computed again only when predictions or the best checkpoint have changed.

    Args:
        run: Folder of a train or search run.
        views: Queries whose score map and frame attention are shown, at most; 0 leaves the model alone.
        seconds: That answering queries may take, and that looking at some may take; what is left out is told.
        live: Whether the page asks its server for changes.
    """

    def __init__(self, run: Path, views: int = VIEWS, seconds: float = 30.0, live: bool = False) -> None:
        self._run, self._views, self._seconds, self._live = run, views, seconds, live
        self._answers: tuple[str, Answers] | None = None

    def build(self, now: float | None = None) -> Page:
        """Builds the page.

        Args:
            now: Epoch seconds up to which running trials have run.

        Raises:
            CdnTuneError: If the folder is no run, or its study cannot be opened.
        """
        now = time.time() if now is None else now
        state = stamp(self._run)
        record = read_record(self._run)
        answers = self._answered(record)
        notices = (*record.notices, *answers.notices)
        return Page(_render(record, answers, notices, now, state if self._live else None), state, notices)

    def _answered(self, record: RunRecord) -> Answers:
        key = "\n".join(line for line in stamp(self._run).splitlines() if line.startswith(("best", "pred", "eval")))
        if self._answers is None or self._answers[0] != key:
            self._answers = key, answers_of(record, self._views, self._seconds)
        return self._answers[1]


def check_target(path: Path) -> None:
    """Refuses to write a report over anything but a report.

    Raises:
        RunError: If there is a folder or another file.
    """
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name the file, e.g. --out {shlex.quote(str(path / 'index.html'))}")
    if path.exists():
        with path.open("rb") as file:
            if GENERATOR.encode() not in file.read(1000):
                raise RunError(f"{path}: exists and is no report of cdn-tune; choose another --out FILE")


def _render(record: RunRecord, answers: Answers, notices: tuple[str, ...], now: float, state: str | None) -> str:
    figures, parameters = _course(record, now), landscape(record)
    scripts = "\n".join(_asset(name) for name in SCRIPTS)
    plotly, source = packed_plotly() if figures or parameters else ("", "")
    data = {
        "figures": figure_data([*figures, *parameters]),
        "palette": base64_of(COLOURS),
        "queries": answers.predictions and query_data(answers.predictions, answers.cases, answers.views),
    }
    environment = Environment(
        loader=PackageLoader("cdn_tune.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration}
    return environment.get_template("report.html.j2").render(
        record=record,
        version=__version__,
        built=datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        notices=notices,
        winner=_winner(record),
        spark=sparkline(record),
        running=unfinished(record),
        counts=counted(record.trials),
        cards=cards(record.evaluation or {}),
        tables=tables(record.evaluation or {}),
        published_tables=tables(record.published or {})[:1],
        published_label=(record.published or {}).get("label") or "the epoch was chosen on the test split",
        evaluation=_shown_evaluation(record.evaluation),
        evaluate=f"cdn-tune evaluate {shlex.quote(str(record.run))}",
        board=leaderboard(record),
        front=[trial.number for trial in front(record)],
        spending=spending(record, now),
        failures=failures(record),
        figures=figures,
        parameters=parameters,
        answers=answers,
        experiment=_yaml(record.experiment),
        space=_yaml(record.space),
        experiment_name=EXPERIMENT,
        space_name=SPACE,
        style=Markup(_asset("report.css")),  # noqa: S704  # our own file
        script=Markup(scripts),  # noqa: S704  # our own files
        policy=_policy(scripts, source, live=state is not None),
        data=pack(data),
        plotly=plotly,
        state=state and hashlib.sha256(state.encode()).hexdigest(),
    )


def _course(record: RunRecord, now: float) -> list[Figure]:
    """The figures of a search's or a train run's course, those that have something to show."""
    if record.is_search:
        found = [history(record, now), trial_curves(record), gantt(record, now)]
    else:
        found = [train_curves(record)]
    return [figure for figure in found if figure]


def _shown_evaluation(evaluation: dict[str, Any] | None) -> dict[str, Any]:
    """The evaluation in full, but without published results where its own are those of planted data."""
    facts = evaluation or {}
    return {key: item for key, item in facts.items() if not (facts.get("planted") and key.startswith("published"))}


def _policy(*scripts: str, live: bool) -> str:
    """Returns the page's content security policy: its own scripts, by their hashes, and no request to anybody."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts if text]
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    asks = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {asks}; base-uri 'none'; form-action 'none'"
    )


def _winner(record: RunRecord) -> dict[str, Any] | None:
    """What the best trial, or the train run, has reached on val."""
    if not record.is_search:
        measured = [entry for entry in record.curves.get(None, []) if entry.get("val")]
        if not measured:
            return None
        last = measured[-1]
        best = next((entry for entry in measured if entry["epoch"] == last["best_epoch"]), last)
        return {"title": "", "value": last["best_value"], "epoch": last["best_epoch"], "val": best["val"], "values": []}
    ranked = ranking(record.trials)
    if not ranked:
        return None
    trial = ranked[0]
    short = short_names(parameters_of(record))
    return {
        "title": f"trial {trial.number}",
        "value": value_of(trial),
        "epoch": trial.user_attrs.get("best_epoch"),
        "val": trial.user_attrs.get("val", {}),
        "values": [(short[key], key, number(value)) for key, value in trial.params.items()],
    }


def _yaml(value: dict[str, Any]) -> str:
    return dump(value) if value else ""


def _asset(name: str) -> str:
    return resources.files("cdn_tune.report").joinpath("assets", name).read_text(encoding="utf-8")
