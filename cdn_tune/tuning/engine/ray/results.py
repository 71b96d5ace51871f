"""What a trial and Ray Tune exchange: the keys of a trial's configuration and of its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NUMBER, PARAMETERS, AVOID = "number", "parameters", "avoid"  # of a trial's configuration
REPORT, SECONDS = "report", "trial_seconds"  # of a result: an EpochReport (Tune takes dicts apart), and seconds so far
FAILURE, FAILURE_KIND, HALT, STOPPED, LOST = "failure", "failure_kind", "halt", "stopped", "lost"  # the last a Lost


@dataclass(frozen=True)
class Lost:
    """Why a group of workers has lost a trial.

    Attributes:
        kind: ``worker``, ``node`` or ``unfit``, as `engine.door.Loss` has it.
        reason: In one line.
        node: The id of a node that is unfit.
    """

    kind: Literal["worker", "node", "unfit"]
    reason: str
    node: str = ""
