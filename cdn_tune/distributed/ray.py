"""The parts of Ray used under `distributed` and `tuning`, imported once, quietly, after the environment is set.

Ray ships no types and warns on import; both are dealt with here so that the rest of the code need not.
"""

from __future__ import annotations

import os
import warnings

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old output can be silenced
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    from ray import tune
    from ray.exceptions import GetTimeoutError, RayActorError, RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
    from ray.util import placement_group_table
    from ray.util.queue import Empty, Queue

__all__ = [
    "ControllerCallback",
    "Empty",
    "FIFOScheduler",
    "FailureConfig",
    "GetTimeoutError",
    "PlacementGroupCleanerCallback",
    "Queue",
    "RayActorError",
    "RayError",
    "RunConfig",
    "ScalingConfig",
    "Searcher",
    "TorchTrainer",
    "TrialScheduler",
    "placement_group_table",
    "ray",
    "tune",
]
