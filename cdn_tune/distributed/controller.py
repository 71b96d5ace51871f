"""Ray Train's run of one trial: started with as few processes as it needs, ended from outside at any moment."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdn_tune.distributed.nodes import alive_nodes
from cdn_tune.distributed.ray import (
    AbortedState,
    ControllerMetricsCallback,
    DatasetsCallback,
    GetTimeoutError,
    PlacementGroup,
    PlacementGroupCleanerCallback,
    PreemptionCallback,
    RayActorError,
    TorchTrainer,
    TrainController,
    WorkerMetricsCallback,
    groups_made_by,
    process_of,
    ray,
    remove_placement_group,
)
from cdn_tune.distributed.warm_workers import Spares, Workers
from cdn_tune.training.loop import never

_POLL_SECONDS = 0.2  # Ray's own 2 s is what a finished trial would wait for
_ABORT_SECONDS = 2.0
_DEATH_SECONDS = 20.0
_LATE_LOOKS = 6  # for a group that was asked for in the controller's last moments
# What a trial does without: a detached cleaner (outlives the run, several hundred MB a trial, needs the dashboard), a
# manager of Ray datasets (an actor; there are none), and metrics of the dashboard.
_UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback, ControllerMetricsCallback, WorkerMetricsCallback)
_log = logging.getLogger(__name__)


class _Controller(TrainController):  # type: ignore[misc]  # Ray ships no types
    """Ray Train's controller, which looks at its workers more often, and for preemption only where there is any.

    Args:
        watch_preemption: Whether nodes may be taken away.
        given_up: Asked at every look at the workers; once it says yes they are killed, and the run is over.
        spares: Where workers come from, and stay, if any may.
        arguments: Ray Train's.
    """

    def __init__(
        self,
        watch_preemption: bool,
        given_up: Callable[[], bool] = never,
        spares: Spares | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.worker_group_cls = Workers.over(spares)
        self._worker_group_callbacks_to_propagate: list[Any]
        self._worker_group: Any
        self._health_check_interval_s = _POLL_SECONDS
        self._left, self._given_up = threading.Event(), given_up
        if not watch_preemption:
            self._worker_group_callbacks_to_propagate = [
                callback
                for callback in self._worker_group_callbacks_to_propagate
                if not isinstance(callback, PreemptionCallback)
            ]

    def run_here(self) -> Any:
        """Runs to the end in this thread, in an actor that is the workers' parent then; returns Ray Train's result."""
        try:
            asyncio.run(self.run())
        finally:
            for callback in self._worker_group_callbacks_to_propagate:
                if isinstance(callback, PreemptionCallback):  # a start that failed has left its watcher
                    callback.before_worker_group_shutdown(self._worker_group)
        return self.get_result()

    def leave(self) -> None:
        """Asks a run in another thread to end, its workers with it; it does at its next look at them."""
        self._left.set()

    async def _run_control_loop_iteration(self) -> None:
        if not (self._left.is_set() or self._given_up()):
            await super()._run_control_loop_iteration()
            return
        self._controller_callback_manager.invoke_best_effort("before_controller_abort")  # no more asking for nodes
        try:
            if self._worker_group is not None:
                self._worker_group.abort()
        except Exception:  # a group that has not started, or whose actors are gone: nothing is left to end
            _log.debug("the workers ended by themselves", exc_info=True)
        self._set_state(AbortedState())


class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray ships no types
    """A TorchTrainer whose run can be ended from outside.

    In an actor the controller runs in this very process, in the thread that calls `fit`: a process less to start and
    to load. Elsewhere it gets an actor, since workers are told their controller's.

    Args:
        given_up: In an actor, asked all the time; once it says yes the run ends by itself, as if ended from outside.
        spares: In an actor, where workers come from, and stay after a run that ended well; None starts and ends them.
        arguments: Ray Train's.
        options: Ray Train's.
    """

    def __init__(
        self,
        *arguments: Any,
        given_up: Callable[[], bool] = never,
        spares: Spares | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._given_up, self._spares = given_up, spares
        self._lock = threading.Lock()
        self._ended, self._over = False, threading.Event()
        self._controller: Any = None

    def end(self) -> None:
        """Ends the run and frees what it holds, whether it has begun, is under way or over; safe to call twice."""
        with self._lock:
            self._ended = True
            controller, self._controller = self._controller, None
        if isinstance(controller, _Controller):
            self._end_here(controller)
        elif controller is not None:
            _end_actor(controller)

    def _end_here(self, controller: _Controller) -> None:
        """Ends a controller in this process: asked first, then its workers are taken from it until it gives up."""
        identity = ray.get_runtime_context().get_actor_id()
        controller.leave()
        deadline = time.monotonic() + _DEATH_SECONDS
        over = self._over.wait(_ABORT_SECONDS)
        while not over and time.monotonic() < deadline:  # it does not listen while it starts workers
            _remove_groups(identity)
            over = self._over.wait(_POLL_SECONDS)
        _remove_groups(identity, kept=None if self._spares is None else self._spares.place)

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, _UNUSED)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """As Ray's own, but the controller is ours, and has a process to itself only where it must."""
        context = ray.get_runtime_context()
        preemptible = len(alive_nodes()) > 1  # one machine is not taken away in part
        if context.get_actor_id() is not None:
            return self._run_here(
                watch_preemption=preemptible, given_up=self._given_up, spares=self._spares, **arguments
            )
        node = {ray._raylet.RAY_NODE_ID_KEY: context.get_node_id()}
        actor = ray.remote(num_cpus=0, label_selector=node)(_Controller)  # no environment: takes a process at hand
        with self._lock:
            if self._ended:
                raise RuntimeError("ended before it began")
            controller = self._controller = actor.remote(watch_preemption=preemptible, **arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())

    def _run_here(self, **arguments: Any) -> Any:
        try:
            controller = _Controller(**arguments)  # looks at the storage, which may take its time: not under the lock
            with self._lock:
                self._controller = controller
                if self._ended:
                    controller.leave()
            return controller.run_here()
        finally:
            self._over.set()


def _end_actor(controller: Any) -> None:
    """Ends a controller that is an actor: asked first, then killed; its workers are its children and end with it.

    Its placement group does not (Ray frees it at the end of the whole job), so it is removed here.
    """
    identity = controller._actor_id.hex()
    try:
        ray.get(controller.abort.remote(), timeout=_ABORT_SECONDS)
        busy = False
    except RayActorError:  # it ends by leaving
        busy = False
    except GetTimeoutError:  # it does not listen while it starts workers
        busy = True
    process = process_of(identity)
    ray.kill(controller)
    deadline = time.monotonic() + _DEATH_SECONDS
    # For Ray it is dead at once; a process that lives on for a moment may still be asking for a placement group.
    while busy and Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for _ in range(_LATE_LOOKS if busy else 1):
        _remove_groups(identity)
        time.sleep(_POLL_SECONDS if busy else 0.0)


def _remove_groups(maker: str, kept: PlacementGroup | None = None) -> None:
    """Removes the placement groups an actor has made, but for one, and so whatever runs in them."""
    for group in groups_made_by(maker):
        if group != kept:
            remove_placement_group(group)
