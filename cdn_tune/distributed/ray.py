"""The parts of Ray used under `distributed` and `tuning`, imported once, without warnings, in a fitting environment.

All are public, or for developers, by Ray's documentation; `cdn_tune.compat` has what is not.
"""

import os
import tempfile
import warnings
from collections.abc import Sequence

from cdn_tune.distributed import address as _address


def short_folder(given: str, others: Sequence[str] = ("/tmp", "/var/tmp", "/dev/shm")) -> str:  # noqa: S108
    """Returns a folder in which Ray's sockets fit: the given one, or else the first of the others that takes files.

    A socket's path takes 107 bytes at most, and Ray puts up to 72 behind the folder.
    """
    if len(os.fsencode(given)) <= 107 - 72:
        return given
    return next((other for other in others if os.access(other, os.W_OK | os.X_OK)), given)


os.environ.setdefault("RAY_TMPDIR", short_folder(tempfile.gettempdir()))

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old output can be silenced
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # what Ray prints goes to a file
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours has trials save a checkpoint first
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # snapshots of a search, which nothing reads: the study is
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "64")  # that start at once; by default a slow node holds up all
_address.prepare(None)  # for a Ray started here, unless a command has prepared to join one
ON_LOOPBACK = os.environ.get(_address.LOOPBACK) == "0"  # whether Ray takes 127.0.0.1 for this machine's address

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    from ray import tune
    from ray.exceptions import (
        ActorUnavailableError,
        ActorUnschedulableError,
        AuthenticationError,
        GetTimeoutError,
        RayActorError,
        RayError,
    )
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
    from ray.util import placement_group, placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["ON_LOOPBACK", "ActorUnavailableError", "ActorUnschedulableError", "AuthenticationError", "FIFOScheduler"]
__all__ += ["FailureConfig", "GetTimeoutError", "NodeAffinitySchedulingStrategy", "PlacementGroup", "RayActorError"]
__all__ += ["RayError", "RunConfig", "ScalingConfig", "Searcher", "TrialScheduler", "UserCallback", "placement_group"]
__all__ += ["placement_group_table", "ray", "remove_placement_group", "tune"]
