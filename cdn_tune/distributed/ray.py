"""The parts of Ray used under `distributed` and `tuning`, imported once, quietly, after the environment is set.

Ray ships no types and warns on import; both are dealt with here so that the rest of the code need not.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
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
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
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

__all__ = [
    "RAY_VERSION_KEY",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AuthenticationError",
    "AuthenticationTokenLoader",
    "FIFOScheduler",
    "FailureConfig",
    "GetTimeoutError",
    "NodeAffinitySchedulingStrategy",
    "PlacementGroup",
    "RayActorError",
    "RayError",
    "RunConfig",
    "ScalingConfig",
    "Searcher",
    "TrialScheduler",
    "UserCallback",
    "canonicalize_bootstrap_address_or_die",
    "compute_version_info",
    "directory_travel",
    "excluder",
    "gcs",
    "gcs_service_pb2",
    "gcs_service_pb2_grpc",
    "generate_new_authentication_token",
    "grpc",
    "init_grpc_channel",
    "live_actors",
    "maybe_enable_token_auth_if_token_available",
    "on_loopback",
    "placement_group",
    "placement_group_table",
    "ray",
    "remove_placement_group",
    "resolve_ip_for_localhost",
    "tune",
]


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
