"""The errors users see: one line that names the file, the key, the value and the remedy.

A command prints the message of a `CdnTuneError` without a traceback and exits with its `exit_code`:
2 when the user can mend it (configuration, data, files), 1 when we have to.
"""

from __future__ import annotations


class CdnTuneError(Exception):
    """Base of every error meant to be read by a user."""

    exit_code = 1


class ConfigError(CdnTuneError):
    """An experiment, a search space or an override is wrong."""

    exit_code = 2


class DataError(CdnTuneError):
    """Annotations, features or word vectors are missing or wrong."""

    exit_code = 2


class RunError(CdnTuneError):
    """A run folder is in use, holds something else, or lacks what was asked of it."""

    exit_code = 2


class FolderHeld(RunError):  # noqa: N818
    """Another process trains in a trial's folder, and has not ended in time."""


class CheckpointError(CdnTuneError):
    """A checkpoint is missing, damaged, or belongs to another model."""

    exit_code = 2


class TrainingError(CdnTuneError):
    """Training cannot go on, for example because the loss is not finite."""

    exit_code = 1


class MemoryShortage(TrainingError):  # noqa: N818 - as researchers say it
    """Memory does not suffice: for one query at once, or in the middle of training."""


class NotFinite(TrainingError):  # noqa: N818
    """A loss, a gradient or a score is infinite or not a number."""


class WorkerLost(TrainingError):  # noqa: N818
    """A training worker or its node died, more often than is borne."""


class NodeUnfit(CdnTuneError):  # noqa: N818
    """A node cannot take trials, for example because the data are not there.

    Args:
        node: Its id.
        reason: In one line.
    """

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(node, reason)  # all arguments, so that it can be sent to another process
        self.node, self.reason = node, reason

    def __str__(self) -> str:
        return self.reason


class ClusterError(CdnTuneError):
    """No Ray cluster answers at the address, or a trial does not fit into it."""

    exit_code = 2


class SearchError(CdnTuneError):
    """A search cannot start or ended without a usable trial."""

    exit_code = 1
