"""Trials that lost their worker or node: which are assigned again, and which have failed."""

from __future__ import annotations

from collections import Counter

NODES_IN_A_ROW = 10  # lost under one trial, without an epoch in between, after which the trial is the suspect


class Retries:
    """Counts what trials have lost.

    A worker's death is the trial's own until shown otherwise: `max_failures` of them are forgiven. Everything else
    costs nothing: a trial the engine takes back, a node without the data, one that dies, is preempted or out of reach;
    unless one trial loses node after node without ever reporting an epoch.

    Args:
        max_failures: Deaths of workers that a trial is forgiven.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._workers: Counter[int] = Counter()
        self._nodes: Counter[int] = Counter()
        self._reached: dict[int, int] = {}

    def may_go_on(self, number: int, kind: str) -> bool:
        """Records a loss; returns whether the trial is assigned again.

        Args:
            number: The trial.
            kind: ``worker``, ``node``, or one that costs nothing (see `engine.door.Loss`).
        """
        if kind == "node":
            self._nodes[number] += 1
            return self._nodes[number] < NODES_IN_A_ROW
        if kind == "worker":
            self._workers[number] += 1
            return self._workers[number] <= self._max_failures
        return True

    def reported(self, number: int, epoch: int) -> None:
        """Records a trial's epoch; one it had reached before it was lost does not count."""
        if epoch > self._reached.get(number, 0):
            self._reached[number] = epoch
            self._nodes.pop(number, None)
