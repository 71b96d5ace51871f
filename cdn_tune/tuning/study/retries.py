"""Trials whose worker or node is gone: which are tried again, and which have failed."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

from cdn_tune.distributed.nodes import node_was_lost
from cdn_tune.errors import NodeUnfit, ProcessSpent

NODES_IN_A_ROW = 10  # lost under one trial, without an epoch in between, after which it is the suspect


class Losses:
    """Counts what trials have lost.

    A worker's death is the trial's own until shown otherwise: it is borne `max_failures` times. A process that an
    earlier trial has used up costs nothing, nor does a node that dies, is preempted, out of reach or without the data,
    unless one trial loses node after node without ever reporting an epoch.

    Args:
        max_failures: Deaths of workers that a trial is forgiven.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._workers: Counter[int] = Counter()
        self._nodes: Counter[int] = Counter()
        self._reached: dict[int, int] = {}

    def may_go_on(self, number: int, error: BaseException | None) -> bool:
        """Takes note of a loss; returns whether the trial is taken up again.

        Args:
            number: The trial.
            error: As Ray raised it.
        """
        if isinstance(_cause(error), NodeUnfit | ProcessSpent):
            return True
        if node_was_lost(error):
            self._nodes[number] += 1
            return self._nodes[number] < NODES_IN_A_ROW
        self._workers[number] += 1
        return self._workers[number] <= self._max_failures

    def reported(self, number: int, epoch: int) -> None:
        """Takes note of a trial's epoch; one it had reached before it was lost does not count."""
        if epoch > self._reached.get(number, 0):
            self._reached[number] = epoch
            self._nodes.pop(number, None)


def error_of(trial: Any) -> BaseException | None:
    """Returns what ended a trial of Ray Tune's, as Ray raised it; None if Ray has not written it down.

    Ray's own ``get_pickled_error`` looks where errors are copied to later.
    """
    file = trial.pickled_error_file
    if file is None or not Path(file).exists():
        return None
    error = pickle.loads(Path(file).read_bytes())  # noqa: S301 - written by this process
    return error if isinstance(error, BaseException) else None


def unfit_node(error: BaseException | None) -> NodeUnfit | None:
    """Returns what a trial has told of its node, if that is what ended it."""
    cause = _cause(error)
    return cause if isinstance(cause, NodeUnfit) else None


def _cause(error: BaseException | None) -> BaseException | None:
    """Returns what a trial has raised, out of what Ray has wrapped it in."""
    cause: BaseException | None = getattr(error, "cause", None) or error
    return cause
