"""Optimisers without torch's compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from cdn_tune.training.step.uncompiled import without_compiler

STEPS = """
import sys, torch
from torch import nn
from torch.optim import Adam
from cdn_tune.training.step.uncompiled import without_compiler
layer = nn.Linear(3, 2)
optimiser = without_compiler(Adam)([{"params": [layer.weight]}], lr=0.1, fused=True)
optimiser.add_param_group({"params": [layer.bias]})
for _ in range(2):
    optimiser.zero_grad()
    layer(torch.ones(1, 3)).sum().backward()
    nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    optimiser.step()
optimiser.load_state_dict(optimiser.state_dict())
print("torch._dynamo" in sys.modules)
"""


def trained(kind: type[Adam | AdamW], moves: type[Adam | AdamW]) -> tuple[list[torch.Tensor], Optimizer]:
    """The weights after three steps, of which the last is made by another kind from the state of the first."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(8, 4)
    optimiser: Optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.01, fused=True)
    for step in range(3):
        if step == 2:
            state = optimiser.state_dict()
            optimiser = moves(layer.parameters(), lr=0.5, fused=True)
            optimiser.load_state_dict(state)
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()
    return [each.detach() for each in layer.parameters()], optimiser


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_it_computes_the_same_to_the_bit_and_reads_the_others_state(kind: type[Adam | AdamW]) -> None:
    expected, theirs = trained(kind, kind)
    for given in ((without_compiler(kind), kind), (kind, without_compiler(kind))):
        found, ours = trained(*given)
        assert all(torch.equal(*each) for each in zip(found, expected, strict=True))
        assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]


def test_no_gradient_flows_through_a_step() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimiser = without_compiler(Adam)([weight], lr=0.1)
    weight.grad = torch.ones(2)
    optimiser.step()
    assert weight.grad_fn is None
    assert weight.tolist() != [1.0, 1.0]


def test_steps_do_not_load_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
