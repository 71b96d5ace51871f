"""What this machine convolves its dynamic layers with, and why not with something else."""

from typing import Any

from cdn_tune.model.kernels.mixing import triton_fault
from cdn_tune.training.kernels.card import this_card, triton_version
from cdn_tune.training.kernels.store import read_choices
from cdn_tune.training.step.process_group import this_world


def diagnose() -> dict[str, Any]:
    """Returns plain values: ``card`` (None without a GPU), ``triton`` (version, fault), ``choices`` measured so far."""
    device = this_world().device
    triton = {"version": triton_version(), "fault": triton_fault(device)}
    if device.type != "cuda":
        return {"card": None, "triton": triton, "choices": {}}
    card = this_card(device)
    choices = {case: choice.model_dump() for case, choice in sorted(read_choices(card).items())}
    return {"card": card.model_dump(), "triton": triton, "choices": choices}
