"""The user attributes of a trial that follow from its reports: best epoch, cost, where it ran."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdn_tune.tuning.study.stopping_rules import QUERY_IOUS

if TYPE_CHECKING:
    from cdn_tune.tuning.engine.door import TrialReport


class ReportAttributes:
    """Makes the attributes of each report; keeps the fastest evaluation of each trial and where it ran.

    Args:
        by_query: Whether the stopping rule compares trials query by query, and needs the IoU of each.
    """

    def __init__(self, by_query: bool) -> None:
        self._by_query = by_query
        self._latency: dict[int, float] = {}  # ms per query
        self._segments: dict[int, list[list[Any]]] = {}

    def of(self, number: int, step: int, report: TrialReport) -> dict[str, Any]:
        """Returns the user attributes that a report brings.

        Args:
            number: The trial.
            step: Its progress in the unit of the stopping rule.
            report: The report.
        """
        epoch = report.epoch
        segments = self._segments.setdefault(number, [])
        _extend(segments, report)
        attributes: dict[str, Any] = {
            "best_epoch": epoch.best_epoch,
            "epoch": epoch.epoch,
            "epochs": epoch.epochs,
            "steps": epoch.steps,
            "loss": epoch.loss,
            "seconds": report.seconds,
            "samples_per_second": epoch.samples_per_second,
            "segments": [list(segment) for segment in segments],
        }
        if epoch.val_queries:
            latency = 1000 * epoch.val_seconds / epoch.val_queries
            self._latency[number] = min(self._latency.get(number, latency), latency)
        if number in self._latency:
            attributes["latency_ms"] = self._latency[number]
        if epoch.best_epoch == epoch.epoch:
            attributes["val"] = dict(epoch.val)
        if self._by_query and epoch.query_ious:
            attributes[f"{QUERY_IOUS}:{step}"] = epoch.query_ious
        return attributes

    def forget(self, number: int) -> None:
        """Drops what is kept of a trial that has ended."""
        self._latency.pop(number, None)
        self._segments.pop(number, None)


def _extend(segments: list[list[Any]], report: TrialReport) -> None:
    """Adds a report's time to where a trial ran: node, start and end in seconds since 1970, on that node's clock."""
    if segments and segments[-1][0] == report.node and report.began < segments[-1][2]:  # else a later process
        segments[-1][2] = report.at
    else:
        segments.append([report.node, round(report.began, 1), report.at])
