"""The parts of Ray used under `distributed` and `tuning`, imported once, quietly, after the environment is set.

Ray ships no types and warns on import; both are dealt with here so that the rest of the code need not.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old output can be silenced
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours has trials save a checkpoint first
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    from ray import tune
    from ray._private.state import state as gcs
    from ray.core.generated import gcs_pb2
    from ray.exceptions import GetTimeoutError, RayActorError, RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.metrics import ControllerMetricsCallback, WorkerMetricsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = [
    "ControllerMetricsCallback",
    "DatasetsCallback",
    "Empty",
    "FIFOScheduler",
    "FailureConfig",
    "GetTimeoutError",
    "NodeAffinitySchedulingStrategy",
    "PlacementGroupCleanerCallback",
    "PreemptionCallback",
    "Queue",
    "RayActorError",
    "RayError",
    "RunConfig",
    "ScalingConfig",
    "Searcher",
    "TorchTrainer",
    "TrainController",
    "TrialScheduler",
    "WorkerMetricsCallback",
    "groups_made_by",
    "live_actors",
    "placement_group_table",
    "process_of",
    "ray",
    "remove_placement_group",
    "tune",
]


def live_actors() -> list[dict[str, Any]]:
    """Returns the cluster's actors that are not dead, as the GCS has them (``ray.util.state`` needs the dashboard)."""
    return [actor for actor in gcs.actor_table(None).values() if actor["State"] != "DEAD"]


def process_of(actor: str) -> int:
    """Returns the process id of an actor, by hexadecimal id, on its node; 0 if it has none yet."""
    pid: int = gcs.actor_table(actor).get("Pid", 0)
    return pid


def groups_made_by(actor: str) -> list[PlacementGroup]:
    """Returns the placement groups an actor has made that stand; Ray's public table does not say who made one."""
    tables = map(
        gcs_pb2.PlacementGroupTableData.FromString, gcs._connect_and_get_accessor().get_placement_group_table()
    )
    removed = gcs_pb2.PlacementGroupTableData.PlacementGroupState.Value("REMOVED")
    return [
        PlacementGroup(ray.PlacementGroupID(table.placement_group_id))
        for table in tables
        if table.creator_actor_id.hex() == actor and table.state != removed
    ]
