"""How many trials the cluster can run, and where: nodes without the data left out; and the demand for more."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from cdn_tune.config import ResourcesConfig
from cdn_tune.distributed.cluster import capacity
from cdn_tune.distributed.group_pool import DEMAND
from cdn_tune.distributed.nodes import Node, alive_nodes
from cdn_tune.distributed.ray import placement_group, placement_group_table, remove_placement_group
from cdn_tune.tuning.engine.door import Room
from cdn_tune.tuning.engine.ray.node_checks import NodeChecks

_CHECK_SECONDS = 1.0
_CALM_SECONDS = 600.0  # without a new node, after which the cluster is not expected to grow


class Slots:
    """The cluster's slots for trials; the cluster is asked once a second.

    Args:
        resources: What one trial occupies.
        checks: Which nodes have the data.
        may_grow: Whether the cluster is one that was joined: an autoscaler adds nodes for what waits.
    """

    def __init__(self, resources: ResourcesConfig, checks: NodeChecks, may_grow: bool) -> None:
        self._resources, self._checks = resources, checks
        self._demand = Demand(resources) if may_grow else None
        self._checked = float("-inf")
        self._ever = False
        self._room = Room(0)

    def room(self, wants_more: bool) -> Room:
        """Returns what the cluster can take now.

        Args:
            wants_more: Whether an autoscaler is to be shown that more slots than there are would be used.
        """
        now = time.monotonic()
        if now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            self._room, size = self._check()
            if self._demand is not None:
                self._demand.update(size if wants_more else None)
        return self._room

    def refuse(self, node: str, reason: str) -> None:
        """Keeps trials off a node that one of them found unfit."""
        self._checks.refuse(node, reason)
        self._checked = float("-inf")

    def close(self) -> None:
        """Ends what still runs on the cluster."""
        self._checks.close()
        if self._demand is not None:
            self._demand.update(None)

    def _check(self) -> tuple[Room, int]:
        """Returns the room, and the slots on nodes that are ready or still checked."""
        nodes = alive_nodes()
        self._checks.update(nodes)
        ready = [node for node in nodes if self._checks.is_ready(node.id)]
        slots = self._fit(ready)
        self._ever = self._ever or slots > 0
        size = self._fit([node for node in nodes if not self._checks.is_unfit(node.id)])
        lines = self._checks.lines()
        why_none = None
        if not self._ever and not size and self._fit(nodes):
            why_none = f"no node of the cluster has the data: {'; '.join(lines)}"
        avoid = tuple(sorted(node.id for node in nodes if not self._checks.is_ready(node.id)))
        return Room(slots, avoid, lines, why_none), size

    def _fit(self, nodes: Sequence[Node]) -> int:
        return capacity(self._resources, [node.resources for node in nodes])


class Demand:
    """Placement groups that wait beyond the cluster's slots, so that an autoscaler sees that more are wanted.

    One at first; once the cluster grows, as many as it has gained, so that it doubles; one again when it has not grown
    for a while. One that finds its place is removed: the slot is then free for a trial. They belong to this job and end
    with it, even if it is killed.

    Args:
        resources: What one trial occupies.
    """

    def __init__(self, resources: ResourcesConfig) -> None:
        bundle = {"CPU": float(resources.cpus_per_worker)}
        if resources.gpus_per_worker:
            bundle["GPU"] = resources.gpus_per_worker
        self._bundles = [bundle] * resources.workers
        self._waiting: list[object] = []
        self._first: int | None = None
        self._most, self._grown = 0, 0.0

    def update(self, slots: int | None) -> None:
        """Brings what waits in line.

        Args:
            slots: Slots there are, on nodes that are still checked too; None if no more are wanted.
        """
        for group in list(self._waiting):
            if placement_group_table(group).get("state") != "PENDING":
                self._remove(group)
        wanted = 0 if slots is None else self.count(slots)
        while len(self._waiting) > wanted:
            self._remove(self._waiting[-1])
        while len(self._waiting) < wanted:
            self._waiting.append(placement_group(self._bundles, "PACK", DEMAND + uuid.uuid4().hex))

    def count(self, slots: int) -> int:
        """Returns how many groups should wait."""
        if self._first is None:
            self._first = self._most = slots
        now = time.monotonic()
        if slots > self._most:
            self._most, self._grown = slots, now
        calm = self._most == self._first or now - self._grown > _CALM_SECONDS
        return 1 if calm else max(1, self._most - self._first)

    def _remove(self, group: object) -> None:
        self._waiting.remove(group)
        remove_placement_group(group)
