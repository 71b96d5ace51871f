"""leaderboard.csv: every trial with its parameters, state, reason, best epoch, val metrics and cost."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cdn_tune.training.files import write_text
from cdn_tune.tuning.ranking import ranking, value_of

LEADERBOARD = "leaderboard.csv"
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def leaderboard(trials: list[FrozenTrial], parameters: list[str], metrics: list[str]) -> list[dict[str, Any]]:
    """Returns one row per trial: ranked ones first, then running, then failed.

    Args:
        trials: All trials of the study.
        parameters: Dotted keys that are searched.
        metrics: Names of the val metrics.
    """
    ranked = ranking(trials)
    others = sorted(
        (trial for trial in trials if trial not in ranked),
        key=lambda trial: (trial.state == TrialState.FAIL, trial.number),
    )
    rows = []
    for place, trial in enumerate([*ranked, *others], start=1):
        note = trial.user_attrs
        rows.append(
            {
                "rank": place if place <= len(ranked) else "",
                "trial": trial.number,
                "state": STATES[trial.state],
                "value": _shown(value_of(trial)),
                "best_epoch": note.get("best_epoch", ""),
                "epochs": max(trial.intermediate_values, default=0),
                "seconds": _shown(note.get("seconds"), 1),
                **{key: trial.params.get(key, "") for key in parameters},
                **{f"val {name}": _shown(note.get("val", {}).get(name)) for name in metrics},
                "reason": note.get("reason", ""),
            }
        )
    return rows


def write_leaderboard(run: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes ``leaderboard.csv`` into the run folder."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path = run / LEADERBOARD
    write_text(path, text.getvalue())
    return path


def _shown(value: float | None, digits: int = 4) -> float | str:
    return "" if value is None else round(value, digits)
