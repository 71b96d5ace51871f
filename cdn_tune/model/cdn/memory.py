"""How much memory CDN takes for a while, beside what the backward pass keeps.

Letters: C channels (the hidden size), S clips, K kernel size.
"""

import torch

from cdn_tune.model.cdn.config import CDNConfig
from cdn_tune.model.family import Memory
from cdn_tune.model.kernels.sample_conv import samples_at_once
from cdn_tune.model.layers.map_model import switch_floats

_TILED = 1024  # from this product of channels and kernel size on a CPU convolves in tiles (kernels/cell_conv.py)


def working_memory(
    config: CDNConfig, feature_size: int, frames: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Memory:
    """Returns generous counts of the bytes; arguments as those of `MomentModel.memory`."""
    # Per query: sixteen maps a layer, two dozen values per frame, attention step and channel, three mixed kernels.
    maps = sum(clips**2 for clips, _ in config.maps) * config.hidden * 16 * (config.map.layers + 2)
    attention = frames * (4 * feature_size + 24 * config.hidden * (config.attention_steps + 1))
    kernels = 3 * (config.hidden * max(config.map.kernel_sizes, default=1)) ** 2
    bound = 4 * (maps + attention + kernels + switch_floats(config))
    return Memory(bound, _temporary(config, dtype, device), _at_once(config, batch, dtype, device))


def _temporary(config: CDNConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Returns the bytes per query of the dearest layer: a few maps with their gradients.

    On a CPU also tiles under transform (kernels/mixed_conv.py), or kernels mixed per query: thrice, as they are, their
    gradient, and one in another order. On a GPU the kernels of all layers, which the published formulation keeps, and
    others where they are small (kernels/sample_conv.py).
    """
    cells, channels = config.clips**2, config.hidden
    most = 0
    for kernel, dynamic in _layers(config):
        if kernel <= 7 and kernel * channels >= _TILED:
            most = max(most, 3 * (-(-config.clips // 4)) ** 2 * (kernel + 3) ** 2 * channels * 4)
        elif dynamic:
            most = max(most, 3 * kernel**2 * channels**2 * dtype.itemsize)
    kept = sum(kernel**2 for kernel, dynamic in _layers(config) if dynamic) * channels**2 * dtype.itemsize
    return 4 * cells * channels * 4 + (most if device.type == "cpu" else kept * len(config.maps))


def _at_once(config: CDNConfig, batch: int, dtype: torch.dtype, device: torch.device) -> int:
    """Returns the bytes, on a GPU, of the dearest layer with mixed kernels (kernels/sample_conv.py).

    Kernels of a few queries and all that these see of the map, both with their gradients, and a gradient of experts.
    """
    if device.type == "cpu":
        return 0
    most = 0
    for kernel, dynamic in _layers(config):
        if dynamic:
            kernels = kernel**2 * config.hidden**2
            seen = kernel**2 * config.hidden * config.clips**2
            queries = min(batch, samples_at_once(config.hidden, config.clips, kernel))
            most = max(most, 2 * queries * (kernels + seen) + 2 * config.map.experts * kernels)
    return most * dtype.itemsize


def _layers(config: CDNConfig) -> list[tuple[int, bool]]:
    """Returns each map layer's kernel size, and whether it is dynamic."""
    return list(zip(config.map.kernel_sizes, config.map.dynamic, strict=True))
