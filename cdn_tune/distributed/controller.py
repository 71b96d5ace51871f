"""Ray Train's run of one trial: started with as few processes as it needs, ended from outside at any moment."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from cdn_tune.distributed.nodes import alive_nodes
from cdn_tune.distributed.ray import (
    ControllerMetricsCallback,
    DatasetsCallback,
    GetTimeoutError,
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

_POLL_SECONDS = 0.2  # Ray's own 2 s is what a finished trial would wait for
_ABORT_SECONDS = 2.0
_DEATH_SECONDS = 20.0
_LATE_LOOKS = 6  # for a group that was asked for in the controller's last moments
# What a trial does without: a detached cleaner (outlives the run, several hundred MB a trial, needs the dashboard), a
# manager of Ray datasets (an actor; there are none), and metrics of the dashboard.
_UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback, ControllerMetricsCallback, WorkerMetricsCallback)


class _Controller(TrainController):  # type: ignore[misc]  # Ray ships no types
    """Ray Train's controller, which looks at its workers more often, and for preemption only where there is any."""

    def __init__(self, watch_preemption: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._worker_group_callbacks_to_propagate: list[Any]
        self._health_check_interval_s = _POLL_SECONDS
        if not watch_preemption:
            self._worker_group_callbacks_to_propagate = [
                callback
                for callback in self._worker_group_callbacks_to_propagate
                if not isinstance(callback, PreemptionCallback)
            ]


class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray ships no types
    """A TorchTrainer whose run can be ended from outside."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lock = threading.Lock()
        self._ended = False
        self._controller: Any = None

    def end(self) -> None:
        """Ends the run and frees what it holds, whether it has begun, is under way or over; safe to call twice.

        The controller is asked first, then killed: its workers are its children and end with it. Its placement group
        does not (Ray frees it at the end of the whole job), so it is removed here.
        """
        with self._lock:
            self._ended = True
            controller, self._controller = self._controller, None
        if controller is None:
            return
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
            for group in groups_made_by(identity):
                remove_placement_group(group)
            time.sleep(_POLL_SECONDS if busy else 0.0)

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, _UNUSED)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """As Ray's own, but the controller is ours and, with no environment of its own, takes a process at hand."""
        node = ray.get_runtime_context().get_node_id()
        actor = ray.remote(num_cpus=0, label_selector={ray._raylet.RAY_NODE_ID_KEY: node})(_Controller)
        preemptible = len(alive_nodes()) > 1  # one machine is not taken away in part
        with self._lock:
            if self._ended:
                raise RuntimeError("ended before it began")
            controller = self._controller = actor.remote(watch_preemption=preemptible, **arguments)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())
