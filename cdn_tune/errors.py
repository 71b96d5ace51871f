"""The errors users read: one line that names the file, the key, the value and the remedy.

::

    CdnTuneError              exit code
    ├── ConfigError           2   an experiment, a search space or an option is wrong
    │   └── WindowError       2   (data.videos.backbones) a backbone does not take so many frames
    ├── DataError             2   annotations, features or word vectors
    ├── RunError              2   a run folder is in use, is another run's, or lacks a file
    │   ├── FolderHeld        2   another process trains in a trial's folder
    │   ├── UnusableStudy     2   (tuning.storage.check) a study is damaged, or the file holds something else
    │   └── Superseded        2   (training.object_store.trial_sync) another process has taken the trial over
    ├── CheckpointError       2   missing, damaged, or of another model
    ├── ClusterError          2   no Ray cluster answers, or it is too small
    ├── TrainingError         1   training cannot go on
    │   ├── MemoryShortage    1   out of memory
    │   ├── NotFinite         1   a loss, a gradient or a score
    │   └── WorkerLost        1   a worker or its node died
    ├── SearchError           1   a search cannot start, or ended without a usable trial
    └── NodeUnfit             1   a node cannot take trials

A command prints the message of a `CdnTuneError` without a traceback and exits with its `exit_code`: 2 when the user can
mend it, 1 when we have to (`cdn_tune.cli.show.output.one_line_errors`).
"""


class CdnTuneError(Exception):
    """Base of every error meant to be read by a user."""

    exit_code = 1


class ConfigError(CdnTuneError):
    """An experiment, a search space, an override or an option is wrong."""

    exit_code = 2


class DataError(CdnTuneError):
    """Annotations, features or word vectors are missing or wrong."""

    exit_code = 2


class RunError(CdnTuneError):
    """A run folder is in use, holds another run, or lacks a file that is needed."""

    exit_code = 2


class FolderHeld(RunError):  # noqa: N818
    """Another process trains in a trial's folder, and has not ended in time."""


class CheckpointError(CdnTuneError):
    """A checkpoint is missing, damaged, or belongs to another model."""

    exit_code = 2


class ClusterError(CdnTuneError):
    """No Ray cluster answers at the address, or a trial does not fit into it."""

    exit_code = 2


class TrainingError(CdnTuneError):
    """Training cannot go on, for example because the loss is not finite."""


class MemoryShortage(TrainingError):  # noqa: N818
    """Memory does not suffice: for one query at once, or in the middle of training."""


class NotFinite(TrainingError):  # noqa: N818
    """A loss, a gradient or a score is infinite or not a number."""


class WorkerLost(TrainingError):  # noqa: N818
    """A training worker or its node died, more often than `max_failures` allows."""


class SearchError(CdnTuneError):
    """A search cannot start or ended without a usable trial."""


class NodeUnfit(CdnTuneError):  # noqa: N818
    """A node cannot take trials, for example because the data are missing there.

    Args:
        node: Its id.
        reason: In one line.
    """

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(node, reason)  # all arguments, so that it can be sent to another process
        self.node, self.reason = node, reason

    def __str__(self) -> str:
        return self.reason
