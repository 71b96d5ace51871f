"""A training step of SnAG's published experiment, against the plain formulation of its local attention.

``python -m benchmarks.sequence_step [--rounds N]`` builds both models with equal weights in one process and measures in
turns: forward, losses, backward, clipping and AdamW. The plain formulation is torch's own attention of all steps to
all, with the window as a mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import MethodType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks._measure import alternate, publish, table
from cdn_tune.config import Experiment, load_experiment
from cdn_tune.data.dataset import SequenceBatch
from cdn_tune.model.family import MomentModel
from cdn_tune.model.layers.attention import Attention
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.step.optimiser import build_optimiser

NAME = "charades/SnAG-256-L6-C3D"
SECONDS, AIM = 30.0, 1.1


def random_batch(experiment: Experiment) -> SequenceBatch:
    """Returns a batch of the experiment's shapes: every video with as many queries as it may have."""
    generator = torch.Generator().manual_seed(0)
    data, videos = experiment.data, experiment.train.batch_size
    queries, words = experiment.batch_queries, experiment.model.text.words
    starts = torch.rand(queries, generator=generator, dtype=torch.float64) * 20
    moments = torch.stack([starts, starts + 8], dim=1)
    rows = torch.arange(queries) % videos
    return SequenceBatch(
        visual=torch.empty(queries, 0, data.feature_size),
        words=torch.randn(queries, words, data.word_size, generator=generator),
        word_mask=torch.ones(queries, words, dtype=torch.bool),
        durations=torch.full((queries,), SECONDS, dtype=torch.float64),
        moments=moments,
        all_moments=moments[:, None],
        indices=torch.arange(queries),
        videos=rows,
        sequence=torch.randn(videos, experiment.steps, data.feature_size, generator=generator),
        sequence_mask=torch.ones(videos, experiment.steps, dtype=torch.bool),
        times=torch.tensor([[0.0, SECONDS / experiment.steps]], dtype=torch.float64).expand(videos, 2),
        rows=rows,
    )


def build(experiment: Experiment, *, plain: bool) -> MomentModel:
    """Returns the experiment's model; equal weights whatever the formulation."""
    torch.manual_seed(0)
    model = build_model(experiment).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # both must compute the same
        if plain and isinstance(module, Attention) and module.window:
            module.forward = MethodType(banded, module)
    return model


def banded(self: Attention, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> Tensor:
    """Returns what `Attention.forward` does within a window, computed from all steps to all."""

    def parts(x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    step = torch.arange(query.shape[1])
    near = (step[:, None] - step).abs() <= self.window // 2
    allowed = near & (key_mask[:, None] | torch.eye(len(step), dtype=torch.bool))
    projected = parts(self.query(query)), parts(self.key(key)), parts(self.value(value))
    mixed = functional.scaled_dot_product_attention(*projected, allowed[:, None])
    return cast(Tensor, self.out(mixed.transpose(1, 2).flatten(2) * key_mask[..., None]))


def losses(model: MomentModel, batch: SequenceBatch) -> Tensor:
    """Returns the training loss."""
    return model.loss(model(*model.inputs_of(batch)), batch).total


def step(model: MomentModel, experiment: Experiment, batch: SequenceBatch) -> Callable[[], float]:
    """Returns what is measured: one optimiser step."""
    optimiser = build_optimiser(model, experiment.optim, model.text_part)

    def run() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = losses(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), experiment.optim.clip_norm)
        optimiser.step()
        return loss.item()

    return run


def main() -> None:
    """Prints the section of the results and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    paths = {"model.text.path_dropout": 0.0, "model.video.path_dropout": 0.0, "model.fusion.path_dropout": 0.0}
    experiment = load_experiment(NAME, paths)
    batch = random_batch(experiment)
    models = {"ours": build(experiment, plain=False), "plain": build(experiment, plain=True)}
    with torch.no_grad():
        first, second = (losses(model, batch) for model in models.values())
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    seconds = alternate({who: step(model, experiment, batch) for who, model in models.items()}, rounds)
    rows = [
        [NAME, who, f"{value:.3f} s", f"{value / seconds['plain']:.2f}x", f"<= {AIM}x" if who == "ours" else ""]
        for who, value in seconds.items()
    ]
    publish(
        "sequence_step",
        [
            "## A training step of SnAG",
            "",
            "`python -m benchmarks.sequence_step`: forward, losses, backward, clipping and AdamW on the CPU, "
            f"{experiment.train.batch_size} videos of {experiment.steps} steps with {batch.rows.numel()} queries, "
            f"random data, medians of {rounds} rounds in turns. Plain is torch's own attention of all steps to all, "
            "with the window as a mask; the rest is the same.",
            "",
            *table(["experiment", "what", "time", "share of the plain", "aim"], rows),
        ],
    )


if __name__ == "__main__":
    main()
