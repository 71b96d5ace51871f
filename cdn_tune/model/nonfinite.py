"""Where a NaN or an infinity comes from, by name.

Shape letters: B batch, T frames, D feature size, L words, W word size.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_SHOWN = 5


def nonfinite_weights(model: nn.Module) -> list[str]:
    """Returns the names of parameters that hold a NaN or an infinity, in the order of the model; then of buffers.

    Buffers of a model in training are left out: a forward pass carries other faults into their statistics.
    """
    return _names([*model.named_parameters(), *(() if model.training else model.named_buffers())])


def nonfinite_gradients(model: nn.Module) -> list[str]:
    """Returns the names of parameters whose gradient holds a NaN or an infinity, in the order of the model."""
    return _names([(name, weight.grad) for name, weight in model.named_parameters() if weight.grad is not None])


def nonfinite_rows(batch: Tensor) -> list[int]:
    """Returns the samples of a batch [B, ...] that hold a NaN or an infinity."""
    rows: list[int] = (~batch.isfinite().flatten(1).all(dim=1)).nonzero()[:, 0].tolist()
    return rows


def explain_nonfinite(model: nn.Module, visual: Tensor, words: Tensor, names: Sequence[str]) -> str | None:
    """Returns one line that names what is not finite: samples of the input, else weights, else gradients.

    Args:
        model: The model that yielded something not finite.
        visual: Its frame features [B, T, D].
        words: Its word vectors [B, L, W].
        names: Names of the samples, e.g. the videos' ids [B].

    Returns:
        A line such as ``frame features of AO8RW are not finite (NaN or infinite)``, or None if all are finite.
    """
    faults = (
        ("frame features of", [names[row] for row in nonfinite_rows(visual)]),
        ("word vectors of", [names[row] for row in nonfinite_rows(words)]),
        ("weights of", nonfinite_weights(model)),
        ("gradients of", nonfinite_gradients(model)),
    )
    for what, where in faults:
        if where:
            more = f" and {len(where) - _SHOWN} more" if len(where) > _SHOWN else ""
            return f"{what} {', '.join(where[:_SHOWN])}{more} are not finite (NaN or infinite)"
    return None


def _names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, tensor in tensors if not bool(torch.isfinite(tensor).all())]
