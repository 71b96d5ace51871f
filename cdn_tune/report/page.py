"""The page: everything assembled into one HTML file that requests nothing from any other place.

Its data are compact JSON, gzipped, in base64, which no text within can break out of.
"""

import base64
import gzip
import hashlib
import json
import shlex
import time
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from cdn_tune import __version__
from cdn_tune.config.yaml import dump
from cdn_tune.errors import RunError
from cdn_tune.report.answers import Answers, base64_of, collect_answers
from cdn_tune.report.course import course, sparkline
from cdn_tune.report.figures import duration, number
from cdn_tune.report.landscape import landscape
from cdn_tune.report.record import RunRecord, read_record, stamp
from cdn_tune.report.results import cards, probe_table, tables
from cdn_tune.report.trials import failures, front, leaderboard, parameters_of, spending
from cdn_tune.training.evaluate.pictures import COLOURS
from cdn_tune.training.runs.run_folder import EXPERIMENT, SPACE
from cdn_tune.tuning.results.leaderboard import short_names, state_of
from cdn_tune.tuning.study.ranking import confirmed, ranking, trained, value_of

REPORT = Path("report") / "index.html"
GENERATOR = '<meta name="generator" content="cdn-tune'
SCRIPTS = ("base.js", "table.js", "figures.js", "queries.js", "live.js")
VIEWS = 60


class Page(NamedTuple):
    """A built report."""

    html: str
    stamp: str  # of the record that it shows; see `record.stamp`
    notices: tuple[str, ...]  # what is missing in it, one line each


class Builder:
    """Builds the report of a run, again and again while it goes on.

    What the model computes is computed again only when predictions or the best checkpoint have changed.

    Args:
        run: Folder of a train or search run.
        views: Queries whose score map and frame attention are shown, at most; with 0 the model is not run.
        seconds: That answering queries may take, and that the views may take; a notice names what is left out.
        live: Whether the page polls its server for changes.
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
        key = "\n".join(line for line in stamp(self._run).splitlines() if line.startswith(("best", "pred", "eval")))
        if self._answers is None or self._answers[0] != key:
            self._answers = key, collect_answers(record, self._views, self._seconds)
        answers = self._answers[1]
        notices = (*record.notices, *answers.notices)
        return Page(_render(record, answers, notices, now, state if self._live else None), state, notices)


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
    figures, parameters = course(record, now), landscape(record)
    scripts = "\n".join(_asset(name) for name in SCRIPTS)
    plotly, source = _plotly() if figures or parameters else ("", "")
    drawn = {
        each.id: {"views": each.views, "height": each.height, "width": each.width} for each in figures + parameters
    }
    data = {"figures": drawn, "palette": base64_of(COLOURS), "queries": answers.plain()}
    counts: dict[str, int] = {}
    for trial in record.trials:
        counts[state_of(trial)] = counts.get(state_of(trial), 0) + 1
    evaluation, published = record.evaluation or {}, record.published or {}
    return _template().render(
        record=record,
        version=__version__,
        built=datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        notices=notices,
        winner=_winner(record),
        spark=sparkline(record),
        running=any(trial.state == TrialState.RUNNING for trial in trained(record.trials)),
        counts=counts,
        cards=cards(evaluation),
        tables=tables(evaluation),
        probe=record.probe and probe_table(record.probe),
        published_tables=tables(published)[:1],
        published_label=published.get("label") or "the epoch was chosen on the test split",
        # Without published results where its own are those of planted data.
        evaluation={
            key: item
            for key, item in evaluation.items()
            if not (evaluation.get("planted") and key.startswith("published"))
        },
        evaluate=f"cdn-tune evaluate {shlex.quote(str(record.run))}",
        board=leaderboard(record),
        front=[trial.number for trial in front(record)],
        spending=spending(record, now),
        failures=failures(record),
        figures=figures,
        parameters=parameters,
        answers=answers,
        experiment=record.experiment and dump(record.experiment),
        space=record.space and dump(record.space),
        experiment_name=EXPERIMENT,
        space_name=SPACE,
        style=Markup(_asset("report.css")),  # noqa: S704  # our own file
        script=Markup(scripts),  # noqa: S704  # our own files
        policy=_policy(scripts, source, live=state is not None),
        data=_packed(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)),
        plotly=plotly,
        state=state and hashlib.sha256(state.encode()).hexdigest(),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("cdn_tune.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration}
    return environment.get_template("report.html.j2")


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


@cache
def _plotly() -> tuple[str, str]:
    """Returns plotly.js packed, and as it is (its hash goes into the page's policy)."""
    source: str = get_plotlyjs()
    return _packed(source), source


def _policy(*scripts: str, live: bool) -> str:
    """Returns the page's content security policy: its own scripts, by their hashes, and no request to other places."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts if text]
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def _winner(record: RunRecord) -> dict[str, Any] | None:
    """Returns what the best trial, or the train run, has reached on val; None before the first val metric."""
    if not record.is_search:
        measured = [entry for entry in record.curves.get(None, []) if entry.get("val")]
        if not measured:
            return None
        last = measured[-1]
        best = next((entry for entry in measured if entry["epoch"] == last["best_epoch"]), last)
        return {
            "title": "",
            "value": last["best_value"],
            "epoch": last["best_epoch"],
            "val": best["val"],
            "values": [],
            "confirmed": None,
        }
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
        "confirmed": confirmed(record.trials).get(trial.number),
    }


def _asset(name: str) -> str:
    return resources.files("cdn_tune.report").joinpath("assets", name).read_text(encoding="utf-8")
