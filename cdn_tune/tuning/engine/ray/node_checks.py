"""Which nodes have the data: each is checked once, and builds its clip cache, before it takes its first trial."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cdn_tune.config import DataConfig
from cdn_tune.data.dataset import load_readings
from cdn_tune.data.fingerprint import fingerprint
from cdn_tune.distributed.nodes import Node, OnNodes, host_name, reason_of, this_node
from cdn_tune.errors import CdnTuneError, NodeUnfit
from cdn_tune.training.runs.run_folder import changed_files

_AGAIN_SECONDS = 60.0  # after which a node without the data is checked again
_SOON_SECONDS = 5.0  # and one whose check died
_DEATHS = 3  # of its check, that a node is forgiven


class NodeChecks:
    """The state of the nodes' data.

    The driver's own node is ready from the start: it has opened the data. Others are prepared while the ready ones
    work.

    Args:
        data: Where the data are and how they are read.
        held: Fingerprint of the driver's data.
        home: The driver's node.
        reads: Whether trials read videos as clips (false), as sequences, or both.
    """

    def __init__(self, data: DataConfig, held: dict[str, Any], home: str, reads: tuple[bool, ...] = (False,)) -> None:
        self._checks = OnNodes(prepare, data.model_dump(), held, reads)
        self._ready = {home}
        self._unfit: dict[str, str] = {}  # why, by node
        self._asked: dict[str, float] = {}
        self._deaths: Counter[str] = Counter()
        self._names: dict[str, str] = {}

    def update(self, nodes: Sequence[Node]) -> None:
        """Records what nodes have answered, and starts the checks of those that were not checked.

        Args:
            nodes: Those that are alive.
        """
        alive = {node.id for node in nodes}
        self._names |= {node.id: node.name for node in nodes}
        for node, answer in self._checks.finished().items():
            if answer is None:
                self._ready.add(node)
                self._unfit.pop(node, None)
            elif isinstance(answer, BaseException) and self._deaths[node] < _DEATHS:
                self._deaths[node] += 1  # as a rule its node dies, which Ray notices later
                self._asked[node] = time.monotonic() - _AGAIN_SECONDS + _SOON_SECONDS
            elif node in alive:
                died = isinstance(answer, BaseException)
                self.refuse(node, f"its check keeps dying ({reason_of(answer)[:160]})" if died else answer)
        for gone in (self._ready | self._unfit.keys()) - alive:
            self._ready.discard(gone)
            self._unfit.pop(gone, None)
        now = time.monotonic()
        for node in alive - self._ready:
            if now - self._asked.get(node, -_AGAIN_SECONDS) >= _AGAIN_SECONDS:
                self._asked[node] = now
                self._checks.start(node)

    def is_ready(self, node: str) -> bool:
        """Whether a node may take trials."""
        return node in self._ready

    def is_unfit(self, node: str) -> bool:
        """Whether a node cannot take trials."""
        return node in self._unfit

    def refuse(self, node: str, reason: str) -> None:
        """Keeps trials off a node, until it is checked again."""
        self._ready.discard(node)
        self._unfit[node] = reason
        self._asked[node] = time.monotonic()

    def lines(self) -> tuple[str, ...]:
        """Returns a line for each node without the data, with the reason."""
        return tuple(
            sorted(
                f"node {self._names.get(node, node[:8])} takes no trials: {why}" for node, why in self._unfit.items()
            )
        )

    def close(self) -> None:
        """Ends the checks that still run."""
        self._checks.cancel()


def prepare(data: dict[str, Any], held: dict[str, Any], reads: tuple[bool, ...] = (False,)) -> str | None:
    """Checks the data of the node that this runs on, and builds its clip cache; returns what is wrong, or None."""
    found = lacking(data, held)
    if found is None:
        try:
            load_readings(DataConfig.model_validate(data, strict=False), ("train", "val"), reads)
        except (CdnTuneError, OSError) as error:
            found = " ".join(str(error).split())
    return found


def lacking(data: dict[str, Any], held: dict[str, Any]) -> str | None:
    """Returns in what this machine's data fall short of the driver's; None if they are the same."""
    try:
        changed = changed_files(held, fingerprint(DataConfig.model_validate(data, strict=False)))
    except (CdnTuneError, OSError) as error:
        return " ".join(str(error).split())
    return f"its {', '.join(changed)} differ from the driver's; copy the data again" if changed else None


def check_here(data: dict[str, Any], held: dict[str, Any], home: str, again: bool = False) -> None:
    """Checks the node that a trial has come to, once per process: it may be younger than the trial's placement.

    Args:
        data: Plain configuration of the data.
        held: Fingerprint of the driver's data.
        home: The driver's node, which needs no check.
        again: Whether to check what was checked before.

    Raises:
        NodeUnfit: If the data are not here.
    """
    node = this_node()
    if node == home:
        return
    if again:
        _here.cache_clear()
    reason = _here(_Frozen(data), _Frozen(held))
    if reason is not None:
        _here.cache_clear()
        raise NodeUnfit(node, f"{host_name()}: {reason}")


class _Frozen:
    """A plain value as a cache's key: equal if its content is."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self.value == other.value

    def __hash__(self) -> int:
        return hash(str(self.value))


@lru_cache(maxsize=2)
def _here(data: _Frozen, held: _Frozen) -> str | None:
    return lacking(data.value, held.value)
