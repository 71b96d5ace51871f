"""Ray Tune and Ray Train, imported without warnings, after Ray's core in its environment."""

import warnings

from cdn_tune.distributed import ray as _core  # noqa: F401 - sets the environment

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ray import tune
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

__all__ = ["FIFOScheduler", "FailureConfig", "RunConfig", "ScalingConfig", "Searcher", "TrialScheduler"]
__all__ += ["UserCallback", "tune"]
