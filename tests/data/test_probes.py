"""Probes change one thing of a split, of whatever form its videos and sentences have, and nothing else."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from cdn_tune.config import SequenceConfig
from cdn_tune.data.dataset import Batch, MomentDataset, SequenceBatch, load_split
from cdn_tune.data.probes import PROBES, Probed
from cdn_tune.data.tokens import LanguageModel, write_tokens
from cdn_tune.errors import DataError

from .conftest import Small, config_of

CHANGED = {  # names of what each probe changes
    "frames_shuffled": {"frames"},
    "frames_mean": {"frames"},
    "other_sentences": {"words", "word_mask"},
    "words_shuffled": {"words"},
    "time_shifted": {"frames", "moments", "all_moments"},
}


@pytest.fixture(params=["clips", "whole sequences", "resized sequences", "token features"])
def split(request: pytest.FixtureRequest, planted_root: Path, tmp_path: Path) -> MomentDataset:
    """A val split as families read it."""
    if request.param == "token features":
        random, queries = np.random.default_rng(0), load_split(config_of(planted_root), "val").annotations
        texts = [(item.query, random.standard_normal((2 + len(item.query.split()), 5))) for item in queries]
        write_tokens(tmp_path / "tokens.hdf5", LanguageModel("toy", "0" * 64, 5), dict(texts).items())
        return load_split(
            config_of(planted_root, text="tokens", tokens=str(tmp_path / "tokens.hdf5"), word_size=5), "val"
        )
    config = config_of(planted_root)
    if request.param == "clips":
        return load_split(config, "val")
    whole = request.param == "whole sequences"
    sequence = SequenceConfig(form="variable") if whole else SequenceConfig(length=20)
    return load_split(config.model_copy(update={"sequence": sequence}), "val", sequences=True)


def videos_of(batch: Batch) -> list[torch.Tensor]:
    """The frames of each query's video, without padding."""
    if not isinstance(batch, SequenceBatch):
        return list(batch.visual)
    assert not batch.sequence[~batch.sequence_mask].any()
    return [batch.sequence[row][batch.sequence_mask[row]] for row in batch.rows.tolist()]


@pytest.mark.parametrize("probe", PROBES)
def test_one_thing_is_changed_and_the_same_in_any_batch(split: MomentDataset, probe: str) -> None:
    everything = np.arange(len(split))
    plain, changed = split.batch(everything), Probed(split, probe, 3).batch(everything)
    for field in fields(plain):
        name = {"visual": "frames", "sequence": "frames"}.get(field.name, field.name)
        before, after = getattr(plain, field.name), getattr(changed, field.name)
        if field.name == "visual" and isinstance(plain, SequenceBatch):
            continue
        assert (before.shape != after.shape or not before.equal(after)) == (name in CHANGED[probe]), field.name
    again = Probed(split, probe, 3)
    for at in (5, 0, len(split) - 1):
        alone = again.batch([at])
        assert videos_of(alone)[0].equal(videos_of(changed)[at])
        assert alone.words[0].equal(changed.words[at][: alone.words.shape[1]])
        assert alone.moments.nan_to_num(-1).equal(changed.moments[at : at + 1].nan_to_num(-1))
    other = Probed(split, probe, 4).batch(everything)
    same = videos_of(other)[0].equal(videos_of(changed)[0]) and other.words.shape == changed.words.shape
    assert (same and other.words.equal(changed.words)) == (probe == "frames_mean")
    assert split.batch(everything).words.equal(plain.words)  # the dataset itself is as before


def test_frames_are_all_there_in_another_order(split: MomentDataset) -> None:
    everything = np.arange(len(split))
    plain, changed = split.batch(everything), Probed(split, "frames_shuffled", 0).batch(everything)
    for before, after in zip(videos_of(plain), videos_of(changed), strict=True):
        assert sorted(before[:, 0].tolist()) == sorted(after[:, 0].tolist())
        assert not before.equal(after)


def test_frames_are_their_mean(split: MomentDataset) -> None:
    everything = np.arange(len(split))
    plain, changed = split.batch(everything), Probed(split, "frames_mean", 0).batch(everything)
    for before, after in zip(videos_of(plain), videos_of(changed), strict=True):
        torch.testing.assert_close(after, before.mean(dim=0).expand_as(after))


def test_words_are_all_there_in_another_order(split: MomentDataset) -> None:
    everything = np.arange(len(split))
    plain, changed = split.batch(everything), Probed(split, "words_shuffled", 0).batch(everything)
    assert changed.words.sum(dim=1).allclose(plain.words.sum(dim=1), atol=1e-4)
    assert not changed.words[~changed.word_mask].any()
    moved = (changed.words != plain.words).any(dim=2).any(dim=1)
    assert moved.double().mean() > 0.8


def test_sentences_are_of_other_videos(split: MomentDataset) -> None:
    everything = np.arange(len(split))
    plain, changed = split.batch(everything), Probed(split, "other_sentences", 0).batch(everything)
    for at in range(len(split)):
        words = changed.words[at][changed.word_mask[at]]
        askers = {
            item.video
            for item, own, mask in zip(split.annotations, plain.words, plain.word_mask, strict=True)
            if own[mask].shape == words.shape and own[mask].equal(words)
        }
        assert askers - {split.annotations[at].video}
        own = plain.words[at][plain.word_mask[at]]
        assert own.shape != words.shape or not own.equal(words)


def test_moments_move_with_what_they_show(split: MomentDataset) -> None:
    everything = np.arange(len(split))
    plain, changed = split.batch(everything), Probed(split, "time_shifted", 0).batch(everything)
    told, ends = 0, 0
    for at, (before, after) in enumerate(zip(videos_of(plain), videos_of(changed), strict=True)):
        steps = len(before)
        shift = next(shift for shift in range(steps) if before.roll(-shift, dims=0).equal(after))
        assert min(shift, steps - shift) >= steps // 4
        moment = changed.moments[at]
        kept = (moment > 0) & (moment < changed.durations[at])  # what passes an end of the video is clamped
        if moment.isnan().any() or not kept.any():
            continue
        told += 1
        assert 0 <= float(moment[0]) < float(moment[1]) <= float(changed.durations[at])
        step = float(plain.durations[at]) / steps
        if isinstance(plain, SequenceBatch):
            step = float(plain.times[plain.rows[at], 1])
        moved = (moment - plain.moments[at]) / step
        ends += int(kept.sum())
        assert min((moved - by)[kept].abs().amax() for by in (-shift, steps - shift)) < 1e-6
    assert told > 0.6 * len(split)
    assert ends > told  # most of the two of each


def test_a_video_is_cut_where_it_cuts_least(small: Small) -> None:
    small.train = [f"AAAA{n} {start} {start + 5}##a person opens the door." for n in range(6) for start in (2, 8, 14)]
    small.save()
    split = load_split(small.config(val_fraction=0.5), "val")
    moments = Probed(split, "time_shifted", 0).batch(np.arange(len(split))).moments
    # at 7.5 s: no other end of a row in the middle half cuts none
    assert {tuple(each) for each in moments.tolist()} == {(14.5, 19.5), (0.5, 5.5), (6.5, 11.5)}


def test_a_sentence_of_one_video_has_no_other(small: Small) -> None:
    split = load_split(small.config(), "train")
    with pytest.raises(DataError, match="no other video of the split has another sentence to ask"):
        Probed(split, "other_sentences", 0)
