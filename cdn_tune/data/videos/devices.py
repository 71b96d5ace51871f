"""Where features are extracted: the devices of processes, and the threads that read videos for them."""

from collections.abc import Sequence

import torch

from cdn_tune.data.files import available_cpus
from cdn_tune.errors import ConfigError

_READERS = 8  # threads that decode for a GPU, at most


def devices_of(device: str | None, workers: int | None, videos: int) -> list[torch.device]:
    """Returns the device of each process: one per GPU, or one per core, and no more than there are videos.

    Raises:
        ConfigError: If there is no such device.
    """
    try:
        asked = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        asked = torch.device("meta")
    if asked.type not in ("cpu", "cuda") or (asked.type == "cpu" and asked.index):
        raise ConfigError(f"--device {device}: no such device; name cpu, cuda or cuda:0")
    if asked.type == "cuda" and (asked.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: there are {torch.cuda.device_count()} GPUs here; name another device")
    if str(asked) == "cuda":
        cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    else:
        cards = [asked]
    usual = len(cards) if asked.type == "cuda" else available_cpus()
    count = max(1, min(workers or usual, videos))
    return [cards[number % len(cards)] for number in range(count)]


def reading_threads(devices: Sequence[torch.device]) -> tuple[int, int | None]:
    """Returns how many threads of each process read videos, and how many threads each of their decoders has."""
    if devices[0].type == "cuda":  # a GPU computes faster than one decoder reads
        return min(_READERS, max(1, available_cpus() // len(devices))), 1
    return 1, None if len(devices) == 1 else 1
