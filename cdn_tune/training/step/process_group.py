"""The workers of a trial: one process, or several that torch.distributed has joined. Independent of Ray."""

from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The workers of one trial, seen from one of them."""

    rank: int = 0  # this worker's number, from 0
    size: int = 1  # number of workers
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where this worker computes

    @property
    def is_main(self) -> bool:
        """Whether this worker writes files and reports."""
        return self.rank == 0

    def gather(self, item: Item) -> list[Item]:
        """Returns every worker's item, in the order of ranks."""
        if self.size == 1:
            return [item]
        items: list[Item | None] = [None] * self.size
        dist.all_gather_object(items, item)
        return items  # type: ignore[return-value]  # filled by all_gather_object

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Returns the element-wise sum of every worker's tensor; same shape."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Waits until every worker is here."""
        if self.size > 1:
            dist.barrier()


def this_world() -> World:
    """Returns the world of this process: torch.distributed's if it is initialised, on a GPU if there is one."""
    joined = dist.is_available() and dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return World(rank, size, device)
