"""What groups of workers hold, as Ray and the machine have it."""

import os
import time

from tests.tuning.processes import descendants, title


def left_behind(expected: int = 0) -> tuple[list[int], int]:
    """Workers of groups, and placement groups; looks again for a while if there are any but so many groups."""
    from cdn_tune.distributed.ray import placement_group_table

    deadline = time.monotonic() + 20
    while True:
        groups = sum(group["state"] != "REMOVED" for group in placement_group_table().values())
        workers = train_workers()
        if (not workers and groups == expected) or time.monotonic() > deadline:
            return workers, groups
        time.sleep(0.1)


def train_workers() -> list[int]:
    """Process ids of the Ray Train workers in the Ray that this process has started."""
    return [pid for pid in descendants(os.getpid()) if "RayTrainWorker" in title(pid)]
