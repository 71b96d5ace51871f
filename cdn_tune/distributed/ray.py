"""The parts of Ray used under `distributed` and `tuning`, imported once, quietly, after the environment is set.

Ray ships no types and warns on import; both are dealt with here so that the rest of the code need not.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the old output can be silenced
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ours has trials save a checkpoint first
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # snapshots of a search, which nobody reads: the study is
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "64")  # that start at once; by default a slow node holds up all

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import grpc  # type: ignore[import-untyped]
    import ray
    from ray import tune
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY as RAY_VERSION_KEY
    from ray._private import ray_constants
    from ray._private import worker as _driver
    from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.runtime_env.packaging import _dir_travel as directory_travel
    from ray._private.runtime_env.packaging import _get_excludes as excluder
    from ray._private.services import canonicalize_bootstrap_address_or_die, resolve_ip_for_localhost
    from ray._private.state import state as gcs
    from ray._private.utils import compute_version_info
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined, unused-ignore]
    from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc
    from ray.exceptions import (
        ActorUnavailableError,
        ActorUnschedulableError,
        AuthenticationError,
        GetTimeoutError,
        RayActorError,
        RayError,
    )
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.metrics import ControllerMetricsCallback, WorkerMetricsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.controller.state import AbortedState
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupState
    from ray.train.v2._internal.execution.worker_group import state as _group_state
    from ray.train.v2._internal.execution.worker_group import worker_group as _worker_group
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
    from ray.util import placement_group, placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = [
    "RAY_VERSION_KEY",
    "AbortedState",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AuthenticationError",
    "AuthenticationTokenLoader",
    "ControllerMetricsCallback",
    "DatasetsCallback",
    "Empty",
    "FIFOScheduler",
    "FailureConfig",
    "GetTimeoutError",
    "NodeAffinitySchedulingStrategy",
    "PlacementGroup",
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
    "WorkerGroup",
    "WorkerGroupState",
    "WorkerMetricsCallback",
    "canonicalize_bootstrap_address_or_die",
    "compute_version_info",
    "directory_travel",
    "excluder",
    "gcs",
    "gcs_service_pb2",
    "gcs_service_pb2_grpc",
    "generate_new_authentication_token",
    "groups_made_by",
    "grpc",
    "init_grpc_channel",
    "live_actors",
    "maybe_enable_token_auth_if_token_available",
    "on_loopback",
    "orphaned_groups",
    "placement_group",
    "placement_group_table",
    "process_of",
    "ray",
    "remove_placement_group",
    "resolve_ip_for_localhost",
    "tune",
    "waiting_groups",
    "waits_for_place",
    "without_barrier",
]


class NoBarrier:
    """Stands for the actor at which Ray Train's workers wait for one another in `ray.train.report`.

    Ours report through a queue and meet in collectives of torch, so they do without it: a process less to start and to
    load for every group. Whoever waits there all the same gets an AttributeError.
    """

    @classmethod
    def options(cls, **_: Any) -> type[NoBarrier]:
        """Stands for the choice of a node."""
        return cls

    @classmethod
    def remote(cls, **_: Any) -> NoBarrier:
        """Stands for the start."""
        return cls()


@contextmanager
def without_barrier() -> Iterator[None]:
    """A group of Ray Train workers that is started meanwhile gets no actor to wait for one another at."""
    before = _worker_group.SynchronizationActor
    _worker_group.SynchronizationActor = NoBarrier
    try:
        yield
    finally:
        _worker_group.SynchronizationActor = before


def _end_barrier(actor: Any, end: Callable[[Any], None] = _group_state._shutdown_sync_actor) -> None:
    if not isinstance(actor, NoBarrier):
        end(actor)


_group_state._shutdown_sync_actor = _end_barrier


def _told_by_ray(data: dict[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001 - Ray's
    """Logs what a cluster reports, such as a process that was killed; Ray would print it, whatever its settings."""
    logging.getLogger("ray").warning("%s", " ".join(data["lines"]))


_driver.print_to_stdstream = _told_by_ray


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started meanwhile takes 127.0.0.1 for its address, and so listens on the loopback interface alone.

    By itself Ray takes the machine's outward address and listens on every interface, also for a cluster of one node;
    an address of 127.0.0.1 that it is given is replaced by the outward one, unless clusters are ruled out.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def live_actors() -> list[dict[str, Any]]:
    """Returns the cluster's actors that are not dead, as the GCS has them (``ray.util.state`` needs the dashboard)."""
    return [actor for actor in gcs.actor_table(None).values() if actor["State"] != "DEAD"]


def process_of(actor: str) -> int:
    """Returns the process id of an actor, by hexadecimal id, on its node; 0 if it has none yet."""
    pid: int = gcs.actor_table(actor).get("Pid", 0)
    return pid


def groups_made_by(actor: str) -> list[PlacementGroup]:
    """Returns the placement groups an actor has made that stand; Ray's public table does not say who made one."""
    return [_group(table) for table in _standing_groups() if table.creator_actor_id.hex() == actor]


def waits_for_place(actor: str) -> bool:
    """Whether a placement group that an actor, by hexadecimal id, has made has found no place yet."""
    pending = gcs_pb2.PlacementGroupTableData.PlacementGroupState.Value("PENDING")
    return any(table.creator_actor_id.hex() == actor and table.state == pending for table in _standing_groups())


def waiting_groups() -> tuple[int, int]:
    """Returns how many placement groups of this job, and how many of others, have no place yet or have lost it."""
    states = gcs_pb2.PlacementGroupTableData.PlacementGroupState
    without = (states.Value("PENDING"), states.Value("RESCHEDULING"))
    job = ray.get_runtime_context().get_job_id()
    own = [table.creator_job_id.hex() == job for table in _standing_groups() if table.state in without]
    return sum(own), len(own) - sum(own)


def orphaned_groups() -> list[PlacementGroup]:
    """Returns this job's placement groups whose maker, an actor, is dead; Ray keeps them until the job ends."""
    job = ray.get_runtime_context().get_job_id()
    actors = gcs.actor_table(None).values()
    dead = {actor["ActorID"] for actor in actors if actor["State"] == "DEAD" and actor["JobID"] == job}
    return [_group(table) for table in _standing_groups() if table.creator_actor_id.hex() in dead]


def _standing_groups() -> list[Any]:
    tables = map(
        gcs_pb2.PlacementGroupTableData.FromString, gcs._connect_and_get_accessor().get_placement_group_table()
    )
    removed = gcs_pb2.PlacementGroupTableData.PlacementGroupState.Value("REMOVED")
    return [table for table in tables if table.state != removed]


def _group(table: Any) -> PlacementGroup:
    return PlacementGroup(ray.PlacementGroupID(table.placement_group_id))
