"""Augmented queries: labels point at the frames they did before, and nothing depends on who assembles the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.config import AugmentConfig, DataConfig, Experiment, override
from cdn_tune.data.annotations import Annotation
from cdn_tune.data.augment import Augmented, cropped, shifted
from cdn_tune.data.dataset import Batch, MomentDataset, load_split
from cdn_tune.errors import ConfigError
from cdn_tune.moments.temporal_map import iou_maps

FRAMES = 40
shares = st.floats(0, 1, exclude_max=True)


class Marked:
    """Stands in for a dataset: frame features say which row they are, and whether the query's moment is there.

    Queries 0 to 39, four of a video; a word of a query is its number. Every fifth has a second moment.
    """

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        ends = np.sort(generator.uniform(0, 30, (40, 2)), axis=1)
        sentences = [f"a person does {number % 7}" for number in range(40)]
        self.annotations = [
            Annotation(f"{n}", f"video {n // 4}", 30.0, *ends[n], sentences[n]) for n in range(len(sentences))
        ]
        self.numbers = np.arange(40) // 4, np.arange(40) % 7
        self.moments = torch.full((40, 2, 2), torch.nan, dtype=torch.float64)
        self.moments[:, 0] = torch.from_numpy(ends)
        self.moments[::5, 1] = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def batch(self, indices: Any) -> Batch:
        at = torch.as_tensor(indices)
        moments = self.moments[at]
        rows = torch.arange(FRAMES).expand(len(at), FRAMES)
        visual = torch.stack([rows, marks(30.0, moments[:, 0])], dim=2).float()
        words, mask = self.words(at)
        durations = torch.full((len(at),), 30.0, dtype=torch.float64)
        return Batch(visual, words, mask, durations, moments[:, 0], moments, at, at // 4)

    def words(self, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return at[:, None, None].float(), torch.ones(len(at), 1, dtype=torch.bool)


def marks(duration: float, moments: torch.Tensor) -> torch.Tensor:
    """Which rows moments [B, 2] reach into [B, FRAMES]."""
    edges = torch.arange(FRAMES + 1, dtype=torch.float64) * duration / FRAMES
    return (edges[:-1] < moments[:, 1:]) & (edges[1:] > moments[:, :1])


def augmented(epoch: int = 1, seed: int = 3, **config: float) -> Augmented:
    return Augmented(cast(MomentDataset, Marked()), AugmentConfig(**config), seed, epoch)


def equal(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(vars(first).values(), vars(second).values()))  # noqa: B905


# ---- labels ----------------------------------------------------------------------------------------------------------


@given(shares, shares, shares)
def test_a_shifted_moment_takes_its_frames_along(start: float, length: float, place: float) -> None:
    end = start + max(length, 1e-3) * (1 - start)
    moments = torch.tensor([[start, end]], dtype=torch.float64) * 30
    rows, moved = shifted(FRAMES, 30.0, moments, place)
    assert sorted(rows) == list(range(FRAMES))
    there = torch.from_numpy(rows)
    assert torch.equal(marks(30.0, moments)[0][there], marks(30.0, moved)[0]) or near_an_edge(moments, moved)
    assert float(moved.diff()) == pytest.approx(float(moments.diff()))
    outside = rows[~marks(30.0, moments)[0][there].numpy()]
    assert list(outside) == sorted(outside)


def near_an_edge(*moments: torch.Tensor) -> bool:
    """Whether an end lies between two rows, but for rounding: then it may reach into either."""
    ends = torch.cat(moments) * FRAMES / 30
    return bool(((ends - ends.round()).abs() < 1e-9).any())


@given(shares, shares, st.floats(0.3, 1), shares, shares)
def test_a_cropped_video_keeps_the_moment(start: float, length: float, keep: float, size: float, place: float) -> None:
    """A row whose middle is in the label shows the moment; one whose middle is a frame away does not."""
    end = start + max(length, 1e-3) * (1 - start)
    moments = torch.tensor([[start, end], [torch.nan, torch.nan]], dtype=torch.float64) * 30
    rows, label, duration = cropped(FRAMES, 30.0, moments, keep, size, place)
    assert list(rows) == sorted(rows)
    assert keep * 30 - 1e-9 <= duration <= 30 + 1e-9
    assert float(label[0].diff()) == pytest.approx(float(moments[0].diff()))
    assert bool(label[1].isnan().all())
    shown = marks(30.0, moments[:1])[0][torch.from_numpy(rows)]
    middles = (torch.arange(FRAMES, dtype=torch.float64) + 0.5) * duration / FRAMES
    away = torch.maximum(label[0, 0] - middles, middles - label[0, 1])  # seconds from the label, negative within
    assert bool(shown[away < -1e-9].all())
    assert not bool(shown[away > 30 / FRAMES + 1e-9].any())


def test_batches_have_what_the_functions_return() -> None:
    """Of all queries the shown frames are those of their labels, and the videos are theirs alone."""
    plain = Marked().batch(range(40))
    batch = augmented(crop=1, crop_keep=0.5, shift=1).batch(range(40))
    middles = (torch.arange(FRAMES) + 0.5) * batch.durations[:, None] / FRAMES
    away = torch.maximum(batch.moments[:, :1] - middles, middles - batch.moments[:, 1:])
    shown = batch.visual[..., 1] > 0
    assert bool(shown[away < -1e-9].all())
    assert not bool(shown[away > 30 / FRAMES + 1e-9].any())
    assert torch.equal(batch.moments, batch.all_moments[:, 0])
    changed = (batch.visual != plain.visual).any(dim=2).any(dim=1)
    assert int(changed.sum()) > 35
    assert len(batch.videos[changed].unique()) == int(changed.sum())
    assert bool((batch.videos[changed] < 0).all())
    assert torch.equal(batch.words, plain.words)


def test_of_several_moments_none_is_shifted() -> None:
    plain, batch = Marked().batch(range(40)), augmented(shift=1).batch(range(40))
    changed = (batch.visual != plain.visual).any(dim=2).any(dim=1)
    assert not bool(changed[::5].any())
    assert int(changed.sum()) > 28
    assert torch.equal(batch.durations, plain.durations)


def test_negatives_are_asked_of_other_videos_and_answered_nowhere() -> None:
    data, batch = Marked(), augmented(negative=1).batch(range(40))
    for index, asked in zip(batch.indices.tolist(), batch.words[:, 0, 0].int().tolist(), strict=True):
        own = data.annotations[index].video
        assert data.annotations[asked].video != own
        assert data.annotations[asked].query not in {each.query for each in data.annotations if each.video == own}
    assert bool((iou_maps(batch.durations, batch.all_moments, 8) == 0).all())
    assert bool((batch.moments == 0).all())
    assert torch.equal(batch.visual, data.batch(range(40)).visual)


def test_what_negatives_need_is_computed_once_and_for_them_alone(planted_config: DataConfig) -> None:
    dataset = load_split(planted_config, "train")
    Augmented(dataset, AugmentConfig(crop=1, shift=1), seed=0, epoch=1).batch([0, 1])
    assert "numbers" not in vars(dataset)
    Augmented(dataset, AugmentConfig(negative=1), seed=0, epoch=1).batch([0, 1])
    assert dataset.numbers is dataset.numbers
    for number, name in zip(dataset.numbers, ("video", "query"), strict=True):
        named = [getattr(item, name) for item in dataset.annotations]
        assert len({*zip(number.tolist(), named, strict=True)}) == len({*number.tolist()}) == len({*named})


# ---- chance ----------------------------------------------------------------------------------------------------------


def test_it_depends_on_seed_epoch_and_query_alone() -> None:
    settings = {"crop": 0.5, "shift": 0.5, "negative": 0.3}
    whole = augmented(**settings).batch(range(40))
    for share in (range(0, 40, 2), [7], [31, 4]):
        part = augmented(**settings).batch(share)
        picked = Batch(**{name: value[list(share)] for name, value in vars(whole).items()})
        assert equal(part, picked)
    assert not equal(augmented(epoch=2, **settings).batch(range(40)), whole)
    assert not equal(augmented(seed=4, **settings).batch(range(40)), whole)


def test_one_change_alters_no_other() -> None:
    both, one = augmented(crop=0.5, shift=0.5).batch(range(40)), augmented(shift=0.5).batch(range(40))
    same = (both.durations == 30.0).nonzero()[:, 0]
    assert 10 < len(same) < 30
    assert torch.equal(both.visual[same], one.visual[same])
    asked = augmented(crop=0.5, shift=0.5, negative=1).batch(range(40))
    assert torch.equal(asked.visual, both.visual)


def test_probabilities() -> None:
    shares = [
        float((augmented(epoch, negative=0.25).batch(range(40)).moments[:, 1] == 0).float().mean())
        for epoch in range(20)
    ]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.05)
    assert equal(augmented().batch(range(40)), Marked().batch(range(40)))


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_a_loss_that_needs_a_moment_refuses_negatives(tiny: Callable[..., Experiment]) -> None:
    plain = {key: value for key, value in tiny().plain().items() if key not in ("model", "loss")}
    mmn = {**plain, "model": {"name": "mmn", "clips": 8, "hidden": 8, "map": {"layers": 1, "kernel_size": 3}}}
    assert override(mmn, {"train.augment.crop": 0.5}, "mmn").train.augment.active
    with pytest.raises(ConfigError, match=r"train\.augment\.negative=0\.1: the loss of model\.name=mmn"):
        override(mmn, {"train.augment.negative": 0.1}, "mmn")
    cdn = tiny(**{"train.augment.negative": 0.1}).plain()
    with pytest.raises(ConfigError, match=r"negative=0\.1: the loss of model\.contrastive=true needs a moment"):
        override(cdn, {"model.contrastive": True}, "cdn")


@pytest.mark.parametrize("key", ["crop", "shift", "negative"])
def test_families_that_read_sequences_refuse_it(tiny: Callable[..., Experiment], key: str) -> None:
    plain = {name: value for name, value in tiny().plain().items() if name not in ("model", "loss")}
    with pytest.raises(ConfigError, match=r"which model\.name=snag does not read; .*data\.sequence\.crop"):
        override({**plain, "model": {"name": "snag"}}, {f"train.augment.{key}": 0.1}, "snag")
