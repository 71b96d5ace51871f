"""When a trial's next checkpoint is due: once its cost is paid for."""

import math
from collections.abc import Sequence
from typing import Literal

from cdn_tune.training.reports import Decisions, EpochReport

_SHARE = 20  # the next write begins no sooner than so many times the last one's duration after it: 5 % of the time
_WITHIN_SECONDS = 30 * 60.0  # and within an epoch no sooner than this, for every epoch's end is a better place
_BYTES_A_SECOND = 1e8  # that a disk is taken to write before a write was timed: a slow one that many share


class Pace:
    """Tells when a checkpoint is due by the clock; one that is needed for another reason is written besides.

    Args:
        setting: As `train.checkpoint`: ``auto``, ``epoch``, or minutes between two writes.
        size: Bytes of a write, by which the first one's duration is guessed.
        now: When the training begins; seconds since any moment.
    """

    def __init__(self, setting: Literal["auto", "epoch"] | float, size: float, now: float) -> None:
        self._setting = setting
        # Seconds of the last write, and when it ended; both at once, as writes end in another thread.
        self._last = (size / _BYTES_A_SECOND, now)

    @staticmethod
    def rate(setting: Literal["auto", "epoch"] | float, size: float, seconds: float, epoch: float) -> float:
        """Returns the most bytes a second that a trial writes in the long run.

        Args:
            setting: As of the class.
            size: Bytes of a write.
            seconds: How long a write takes.
            epoch: Seconds of an epoch.
        """
        if setting == "auto":
            return size / max(epoch, (_SHARE + 1) * seconds)
        return size / (epoch if setting == "epoch" else 60 * setting)

    def begins(self) -> None:
        """Records that a write begins: none is due until it has ended."""
        self._last = (0.0, math.inf)

    def wrote(self, seconds: float, now: float) -> None:
        """Records that a write has ended, after so many seconds."""
        self._last = (seconds, now)

    def is_due(self, now: float, within: bool = False) -> bool:
        """Returns whether a write is due: after an epoch, or `within` one."""
        if self._setting == "epoch":
            return not within
        seconds, ended = self._last
        if self._setting != "auto":
            return now - ended >= 60 * self._setting
        return now - ended >= max(_SHARE * seconds, _WITHIN_SECONDS if within else 0.0)

    def due_before_report(
        self, now: float, history: Sequence[EpochReport], decisions: Decisions | None, is_best_saved: bool
    ) -> tuple[bool, bool]:
        """Returns whether a checkpoint is written before an epoch's report, and if not, whether the best model is.

        Args:
            now: When the epoch has ended.
            history: The reports of all epochs so far.
            decisions: With which reports a search may stop or pause the trial; none if None.
            is_best_saved: Whether the best weights are on disk.
        """
        is_due = history[-1].is_last or self.is_due(now)
        if decisions is None:
            return is_due, False
        needs = decisions.need(history, is_best_saved)
        return is_due or (needs and decisions.pauses), needs
