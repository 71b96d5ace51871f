"""How many trials may run, and where: the cluster as it is now, nodes without the data left out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cdn_tune.config import ResourcesConfig
from cdn_tune.distributed.cluster import capacity
from cdn_tune.distributed.nodes import Node, alive_nodes
from cdn_tune.tuning.engine.ray.node_checks import Readiness

_LOOK_SECONDS = 1.0
_CALM_SECONDS = 600.0  # without a new node, after which the cluster is not expected to grow


class Places:
    """The cluster's places for trials; looked at once a second.

    Args:
        resources: What one trial occupies.
        readiness: Which nodes have the data.
        may_grow: Whether the cluster is one that was joined: an autoscaler adds nodes when something waits for them.
    """

    def __init__(self, resources: ResourcesConfig, readiness: Readiness, may_grow: bool) -> None:
        self._resources, self._readiness, self._demand = resources, readiness, Demand(may_grow)
        self._looked = -_LOOK_SECONDS
        self._ever = False
        self._size = 0  # trials the cluster has room for, on nodes that are still being asked too
        self.slots = 0  # trials that may run at once
        self.avoid: tuple[str, ...] = ()  # ids of the nodes alive that take no trials now
        self.why_none: str | None = None  # why no trial will ever run, as far as one can tell

    def look(self) -> None:
        """Looks at the cluster, if the last look is a second old."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        nodes = alive_nodes()
        self._readiness.look(nodes)
        ready = [node for node in nodes if self._readiness.is_ready(node.id)]
        self.slots = self._room(ready)
        self.avoid = tuple(sorted(node.id for node in nodes if not self._readiness.is_ready(node.id)))
        self._ever = self._ever or self.slots > 0
        self._size = self._room([node for node in nodes if not self._readiness.is_unfit(node.id)])
        self.why_none = None
        if not self._ever and not self._size and self._room(nodes):
            self.why_none = f"no node of the cluster has the data: {'; '.join(self.lines())}"

    @property
    def asked(self) -> int:
        """Trials that may be with Ray at once: those that run, and those that wait for the cluster to grow."""
        return self.slots + self._demand.waiting(self._size)

    def lines(self) -> tuple[str, ...]:
        """Returns what the user should know of the nodes."""
        return self._readiness.lines()

    def refuse(self, node: str, reason: str) -> None:
        """Keeps trials off a node that one of them found unfit."""
        self._readiness.refuse(node, reason)
        self._looked = -_LOOK_SECONDS

    def close(self) -> None:
        """Ends what still looks at nodes."""
        self._readiness.close()

    def _room(self, nodes: Sequence[Node]) -> int:
        return capacity(self._resources, [node.resources for node in nodes])


class Demand:
    """How many trials wait beyond the cluster's places, so that an autoscaler sees that more are wanted.

    One, on a cluster that was joined: its proposal is made a trial early, which costs nothing. Once the cluster grows,
    as many as it has gained, so that it doubles; one again when it has not grown for a while. What waits is a pending
    request of this job, so it ends with the job, even a killed one.

    Args:
        may_grow: Whether anything waits at all.
    """

    def __init__(self, may_grow: bool) -> None:
        self._may_grow = may_grow
        self._first: int | None = None
        self._most, self._grown = 0, 0.0

    def waiting(self, slots: int) -> int:
        """Returns how many.

        Args:
            slots: Places there are, ready or not yet.
        """
        if not self._may_grow:
            return 0
        if self._first is None:
            self._first = self._most = slots
        now = time.monotonic()
        if slots > self._most:
            self._most, self._grown = slots, now
        calm = self._most == self._first or now - self._grown > _CALM_SECONDS
        return 1 if calm else max(1, self._most - self._first)
