"""What groups of workers hold, as Ray and the machine have it."""

import contextlib
import time
from pathlib import Path


def group_actors() -> list[str]:
    """The classes of the actors that groups have, by name."""
    from cdn_tune.distributed.ray import live_actors

    names = ("_QueueActor", "SynchronizationActor", "RayTrainWorker", "PreemptionWatcher")
    return sorted(actor["ActorClassName"] for actor in live_actors() if actor["ActorClassName"] in names)


def left_behind(expected: int = 0) -> tuple[list[str], int]:
    """Actors of groups, and placement groups; looks again for a while if there are any but so many groups."""
    from cdn_tune.distributed.ray import placement_group_table

    deadline = time.monotonic() + 20
    while True:
        groups = sum(group["state"] != "REMOVED" for group in placement_group_table().values())
        actors = group_actors()
        if (not actors and groups == expected) or time.monotonic() > deadline:
            return actors, groups
        time.sleep(0.1)


def train_workers() -> list[int]:
    """Process ids of the session's Ray Train workers: children of the raylet that this process has started."""
    from cdn_tune.distributed.ray import ray

    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == raylet and "RayTrainWorker" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found
