"""The temporal map's batch normalisation.

Shape letters: B batch, C channels, S clips.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

NormOver = Literal["all", "valid"]


class MapNorm(nn.Module):
    """Batch normalisation whose statistics are those of the global batch, over all cells or over valid cells only.

    With statistics over all cells and in one process this computes what `nn.BatchNorm2d` does, whose state names it
    shares. When `torch.distributed` runs several workers, training statistics are those of all workers' samples
    together; workers may hold different numbers of them. All cells are normalised, also by statistics over valid ones.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, over: NormOver = "all", eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.over, self.eps, self.momentum = over, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalises maps [B, C, S, S]; `mask` [S, S] marks the valid cells."""
        if self.training:
            self.num_batches_tracked.add_(1)
            several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
            # On CPUs torch's own loses three digits of the statistics of sparse maps in CDN's memory format.
            if several or self.over == "valid" or (x.device.type == "cpu" and not x.is_contiguous()):
                cells = mask if self.over == "valid" else None
                output, mean, var = _norm(x, cells, self.weight, self.bias, self.eps, several)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
                return output
        mean, var = self.running_mean, self.running_var
        return functional.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)


class _NormOverCells(torch.autograd.Function):
    """Normalisation by the mean and variance over some cells [S, S], or over all (None), on one or several workers.

    Returns the normalised map, the mean and the unbiased variance [C]. Saves no more than `nn.BatchNorm2d` does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cells: Tensor | None, weight: Tensor, bias: Tensor, eps: float, several: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if cells is None:
            count = wide.new_full((1,), x.shape[0] * x.shape[2:].numel())
        else:
            cells = cells.to(wide.dtype)
            count = (cells.sum() * x.shape[0]).reshape(1)
        total = _over_workers(torch.cat([_sum(wide, cells), count]), several)
        count = total[-1:]
        mean = total[:-1] / count  # [C]
        centred = wide - mean[:, None, None]
        var = _over_workers(_sum(centred.square(), cells), several) / count  # [C]
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, cells, weight, mean, scale, count)
        ctx.several = several
        output = torch.addcmul(bias[:, None, None], centred, (scale * weight)[:, None, None]).to(x.dtype)
        unbiased = var * (count / (count - 1).clamp(min=1))
        ctx.mark_non_differentiable(mean, unbiased)
        return output, mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, cells, weight, mean, scale, count = ctx.saved_tensors
        wide = grad.to(mean.dtype)
        normal = (x.to(mean.dtype) - mean[:, None, None]).mul_(scale[:, None, None])
        bias_grad, weight_grad = _sum(wide), _sum(wide * normal)  # [C] each
        sums = _over_workers(torch.cat([bias_grad, weight_grad]), ctx.several) / count
        shift, slope = sums.view(2, -1, 1, 1)  # [C, 1, 1] each
        shared = normal.mul_(slope).add_(shift)  # what every cell of the statistics passes back
        if cells is not None:
            shared.mul_(cells)
        x_grad = (wide - shared).mul_((scale * weight)[:, None, None])
        return x_grad.to(x.dtype), None, weight_grad, bias_grad, None, None


_norm: Callable[..., tuple[Tensor, Tensor, Tensor]] = _NormOverCells.apply


def _sum(values: Tensor, cells: Tensor | None = None) -> Tensor:
    """Returns the sums [C] of maps [B, C, S, S] over some cells [S, S]; over all if None."""
    return (values if cells is None else values * cells).sum(dim=(0, 2, 3))


def _over_workers(values: Tensor, several: bool) -> Tensor:
    if several:
        values = values.clone()
        dist.all_reduce(values)
    return values
