"""The CPU threads of a worker: few for a small model, whose operations are too short to be shared out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cdn_tune.config import Experiment
from cdn_tune.data.files import available_cpus
from cdn_tune.training.memory.estimate import count_parameters

# Of a model for each thread, as measured with one and two threads on two cores. With 0.1 and 1 million a second thread
# gains 3 to 23 % on a quiet machine; beside two busy loops, where threads wait for each other at every operation, a
# step takes 1.25 to 4 times as long. With 9 and 35 million it makes a step 1.5 to 1.75 times faster on a quiet machine;
# beside busy loops a step takes a tenth to a third longer with 9 million.
PARAMETERS = 1_000_000


def threads_for(experiment: Experiment, cpus: int | None = None) -> int:
    """Returns with how many CPU threads a worker trains an experiment: one per million parameters, at least one.

    Args:
        experiment: What is trained.
        cpus: The most threads; as many as torch uses in this process, within the cores that it may use, if None.
    """
    most = min(torch.get_num_threads(), available_cpus()) if cpus is None else cpus
    if most <= 1:  # the default of a search, whose trials need not size their models for it
        return 1
    return max(1, min(most, count_parameters(experiment) // PARAMETERS))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Has torch compute with so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
