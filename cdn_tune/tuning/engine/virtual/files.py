"""What a search has on disk, in memory: its checkpoints, and its request to stop."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cdn_tune.errors import CheckpointError
from cdn_tune.training.runs.kept import KeptRecord
from cdn_tune.tuning.engine.virtual.engine import World


@dataclass
class MemoryFiles:
    """Checkpoints in memory, as `checkpoints.retention.Files`: of each trial in the world that has saved an epoch.

    Attributes:
        world: Knows which epochs are saved.
        bytes: Size of a trial's checkpoints.
        kept: Values of the kept ones by trial.
        gone: Trials whose checkpoints were deleted.
    """

    world: World
    bytes: int = 1
    kept: dict[int, float] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def begin(self, number: int) -> None:
        """Prepares a new trial."""
        self.world.saved.pop(number, None)
        self.world.best.pop(number, None)
        self.gone.discard(number)

    def secure(self, number: int, value: float, epoch: int | None) -> KeptRecord:
        """Keeps a trial's checkpoint.

        Raises:
            CheckpointError: If it has none, or that of an earlier epoch than its best one.
        """
        if number not in self.kept and (number in self.gone or self.world.best.get(number, 0) < (epoch or 1)):
            raise CheckpointError(f"trial {number} has no checkpoint")
        self.kept[number] = value
        return KeptRecord(number, value, epoch, epoch or 1, value)

    def publish(self) -> None:
        """No-op, as there is no object store."""

    def drop(self, number: int) -> None:
        """Deletes a kept checkpoint."""
        self.kept.pop(number, None)

    def clear(self, number: int, damaged: bool) -> None:
        """Deletes a trial's own checkpoints."""
        if not damaged:
            self.gone.add(number)

    def clear_remote(self, numbers: Iterable[int]) -> None:
        """No-op but for going through the numbers, as there is no object store."""
        list(numbers)

    def collect(self, kept: set[int], damaged: set[int], ended: set[int]) -> None:  # noqa: ARG002
        """Deletes kept checkpoints of trials that are not among the best."""
        for number in self.kept.keys() - kept - damaged:
            del self.kept[number]

    def size(self, number: int) -> int:
        """Returns the bytes of a trial's best checkpoint."""
        return self.bytes if number in self.kept or (number in self.world.best and number not in self.gone) else 0

    def taken(self, number: int) -> int:
        """Returns the bytes that a running trial takes."""
        return self.size(number)

    def unreadable(self, numbers: Iterable[int]) -> int:
        """Returns the bytes of checkpoints that cannot be read."""
        return self.bytes * len(list(numbers))

    def path(self, number: int) -> Path:
        """Returns where a kept checkpoint would lie."""
        return Path(f"trial-{number:04d}")


class Flag:
    """A request to stop, in memory, as `driver.StopFlag`."""

    def __init__(self) -> None:
        self.raised = False

    def __call__(self) -> bool:
        """Returns whether it is raised."""
        return self.raised

    def raise_it(self) -> None:
        """Raises it."""
        self.raised = True
