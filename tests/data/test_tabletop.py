"""Planted data on which word order, a property and fine boundaries decide: what answers reach that ignore them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cdn_tune.config import DataConfig
from cdn_tune.data.annotations import Annotation
from cdn_tune.data.dataset import MomentDataset, load_splits
from cdn_tune.data.fingerprint import is_planted
from cdn_tune.data.planted import plant
from cdn_tune.data.planted.grammar import STOPWORDS
from cdn_tune.data.planted.planting import GENERATED, preset
from cdn_tune.data.planted.signal import content_words, meaning, projection
from cdn_tune.data.planted.tabletop import ACTIONS, COLOURS, FPS, LENGTH, THINGS, Scene, draw_scene
from cdn_tune.data.tokenizer import words
from cdn_tune.errors import DataError
from cdn_tune.moments.baselines import best_constant, best_constant_list, constant_list_top, constant_top, random_top
from cdn_tune.moments.spans import iou

from .conftest import config_of

VIDEOS = GENERATED["tabletop"].videos
FRAME_RATE = preset("planted-hard")["frame_rate"]
Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`planted-hard` as it is by default. Read only."""
    return plant(tmp_path_factory.mktemp("tabletop") / "root", **preset("planted-hard")).root


@pytest.fixture(scope="module")
def splits(root: Path) -> dict[str, MomentDataset]:
    return dict(load_splits(config(root), ("train", "val", "test")))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """The scenes of the test split."""
    return [draw_scene(f"T{number:04d}", 0) for number in range(VIDEOS - VIDEOS // 5, VIDEOS)]


def config(root: Path) -> DataConfig:
    return config_of(root, dataset="tacos")


def truth(scenes: list[Scene]) -> tuple[Array, Array]:
    """Durations [Q] and moments [Q, 2] of all queries, in seconds."""
    durations = [scene.frames / FPS for scene in scenes for _ in scene.spans]
    return np.array(durations), np.array([span for scene in scenes for span in scene.spans]) / FPS


def overlap(a: Array, b: Array) -> Array:
    return iou(torch.from_numpy(np.asarray(a, np.float64)), torch.from_numpy(np.asarray(b, np.float64))).numpy()


# What is planted: long videos, short moments, the layout of TACoS, labelled.


def test_the_layout_is_that_of_tacos(root: Path, splits: dict[str, MomentDataset]) -> None:
    assert is_planted(config(root))
    marker = json.loads((root / "planted.json").read_text())
    assert (marker["dataset"], marker["features"]) == ("tacos", "tall_c3d_features.hdf5")
    assert "shifted by k places" in marker["model"]
    assert marker["options"]["annotations"] == "tabletop"
    assert {split: len(part) for split, part in splits.items()} == {"train": 1200, "val": 400, "test": 400}
    assert not splits["train"].vocabulary.unknown
    assert not splits["train"].skipped
    entry = json.loads((root / "test.json").read_text())["T0100"]
    assert entry.keys() == {"timestamps", "sentences", "fps", "num_frames"}


def test_videos_are_minutes_long_and_moments_seconds(splits: dict[str, MomentDataset]) -> None:
    items = [item for part in splits.values() for item in part.annotations]
    assert all(200 <= item.duration <= 320 for item in items)
    lengths = np.array([item.end - item.start for item in items])
    assert (lengths.min() >= LENGTH[0] - 0.01, lengths.max() <= LENGTH[1] + 0.01) == (True, True)
    assert np.median(lengths) == pytest.approx(np.sqrt(LENGTH[0] * LENGTH[1]), rel=0.05)
    assert set(Counter(item.video for item in items).values()) == {16}


def test_other_plantings_have_the_bytes_they_always_had(tmp_path: Path) -> None:
    digests = {
        "generated": ("94c51aac0530", "b50e535b3095"),
        "planted-medium": ("f738da9958fc", "de88f8b8e1f9"),
    }
    for name, expected in digests.items():
        options = {} if name == "generated" else preset(name)
        done = plant(tmp_path / name, videos=20, feature_size=8, **options)
        files = (done.root / "vgg_rgb_features.hdf5", done.root / "planted.json")
        assert tuple(hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files) == expected


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = plant(tmp_path / name, videos=3, feature_size=8, seed=seed, **preset("planted-hard"))
        found.append({path.name: path.read_bytes() for path in done.root.iterdir() if path.suffix != ".lock"})
    assert found[0] == found[1]
    assert all(found[0][name] != found[2][name] for name in found[0])


def test_every_split_needs_a_video(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="videos=2: must be at least 3"):
        plant(tmp_path / "out", "tabletop", videos=2)
    with pytest.raises(DataError, match="tabletop annotations have no source"):
        plant(tmp_path / "out", "tabletop", source=tmp_path)


# The words decide, and they alone.


def test_the_words_of_a_query_tell_its_moment(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len(set(scene.events)) == len({tuple(content_words(query)) for query in scene.queries}) == 16
        for event, query in zip(scene.events, scene.queries, strict=True):
            assert content_words(query) == [ACTIONS[event.action][0], event.colour, event.thing, event.landmark]
        assert all(end < start for (_, end), (start, _) in zip(scene.spans, scene.spans[1:], strict=False))
        assert all(0 <= start < end <= scene.frames for start, end in scene.spans)


def test_the_words_that_decide_are_planted_and_the_others_are_not() -> None:
    verbs, relations = zip(*ACTIONS, strict=True)
    assert len({*verbs, *COLOURS, *THINGS}) == len(verbs) + len(COLOURS) + len(THINGS)
    assert not STOPWORDS & {*verbs, *COLOURS, *THINGS}
    assert set(relations) <= STOPWORDS


def test_each_query_has_a_rival_by_order_alone_and_one_by_a_single_word(scenes: list[Scene]) -> None:
    for scene in scenes:
        sentences = [words(query) for query in scene.queries]
        for own in sentences:
            others = [other for other in sentences if other != own]
            assert sum(Counter(other) == Counter(own) for other in others) == 1
            pairs = [list(zip(own, other, strict=True)) for other in others if len(other) == len(own)]
            changed = [[pair for pair in each if pair[0] != pair[1]] for each in pairs]
            single = [each[0] for each in changed if len(each) == 1]
            assert [set(pair) <= set(COLOURS) for pair in single] == [True]


def test_few_events_of_the_test_split_are_those_of_training(scenes: list[Scene]) -> None:
    train = {event for number in range(75) for event in draw_scene(f"T{number:04d}", 0).events}
    assert np.mean([event in train for scene in scenes for event in scene.events]) < 0.25


def test_order_is_planted_only_where_it_decides() -> None:
    one, other = ["puts", "red", "cup", "box"], ["puts", "red", "box", "cup"]
    assert float(meaning(one, 64, 0) @ meaning(other, 64, 0)) == pytest.approx(1)
    likeness = float(meaning(one, 64, 0, ordered=True) @ meaning(other, 64, 0, ordered=True))
    assert likeness == pytest.approx(0.5, abs=0.2)
    assert np.linalg.norm(meaning(one, 64, 0, ordered=True)) == pytest.approx(1)


# What answers can reach that ignore one thing. docs/explanation/planted.md prints these numbers.


def answers_by(scenes: list[Scene], key: Callable[[str], object]) -> tuple[float, float]:
    """R1@0.7 and mIoU of one who knows the scene and draws among the video's queries that the key cannot tell apart."""
    hits, means = [], []
    for scene in scenes:
        spans, keys = np.array(scene.spans), [key(query) for query in scene.queries]
        for span, own in zip(spans, keys, strict=True):
            found = overlap(span[None], spans[[other == own for other in keys]])
            hits.append(float((found > 0.7).mean()))
            means.append(float(found.mean()))
    return float(np.mean(hits)), float(np.mean(means))


def without_colours(query: str) -> tuple[str, ...]:
    return tuple(word for word in words(query) if word not in COLOURS)


@pytest.mark.parametrize(
    ("key", "recall"),
    [
        (lambda query: query, 1.0),
        (lambda query: frozenset(words(query)), 0.5),
        (without_colours, 0.5),
        (lambda query: frozenset(without_colours(query)), 0.25),
        (lambda _: None, 1 / 16),
    ],
    ids=["everything", "no order", "no property", "neither", "no query"],
)
def test_who_ignores_order_or_property_guesses(
    scenes: list[Scene], key: Callable[[str], object], recall: float
) -> None:
    found, mean = answers_by(scenes, key)
    assert found == pytest.approx(recall)
    assert mean == pytest.approx(recall, abs=0.01)


def on_grid(durations: Array, moments: Array, clips: int) -> Array:
    """The IoU of each moment with the best span of whole clips, [Q]."""
    scaled = moments / durations[:, None] * clips
    low, high = np.floor(scaled), np.ceil(scaled)
    starts, ends = (np.stack((low[:, side], high[:, side]), axis=1) for side in (0, 1))
    spans = np.stack(np.broadcast_arrays(starts[:, :, None], ends[:, None]), axis=-1).reshape(len(moments), 4, 2)
    return np.where(spans[..., 1] > spans[..., 0], overlap(spans, scaled[:, None]), 0).max(axis=1)


def test_the_coarser_a_grid_of_clips_the_less_it_can_reach(scenes: list[Scene]) -> None:
    durations, moments = truth(scenes)
    found = [on_grid(durations, moments, clips) for clips in (16, 32, 64, 128, 256)]
    assert [each.mean() for each in found] == pytest.approx([0.332, 0.523, 0.695, 0.825, 0.908], abs=1e-3)
    assert [(each > 0.7).mean() for each in found] == pytest.approx([0.012, 0.188, 0.545, 0.872, 1.0], abs=1e-3)


@pytest.mark.parametrize("clips", [3, 8, 20])
def test_a_grids_best_span_has_ends_next_to_the_moments(clips: int) -> None:
    generator = np.random.default_rng(clips)
    moments = np.sort(generator.uniform(0, 10, (50, 2)), axis=1)
    every = np.array([(a, b) for a in range(clips) for b in range(a + 1, clips + 1)]) * 10 / clips
    best = overlap(moments[:, None], every[None]).max(axis=1)
    assert np.allclose(on_grid(np.full(50, 10.0), moments, clips), best)


def test_boundaries_lie_anywhere_on_frame_and_clip_grids() -> None:
    """Shares of a step at which moments start and end are uniform: no tenth of it holds much more than a tenth."""
    durations, moments = truth([draw_scene(f"T{number:04d}", 0) for number in range(VIDEOS)])
    steps = {f"{rate} frames per second": np.full_like(durations, 1 / rate) for rate in (1.0, FRAME_RATE, 4.0, FPS)}
    steps |= {f"{clips} clips": durations / clips for clips in (16, 32, 64, 128, 256)}
    for name, step in steps.items():
        for side in (0, 1):
            counts, _ = np.histogram(moments[:, side] / step % 1, bins=10, range=(0, 1))
            assert counts.max() < 1.35 * counts.mean(), (name, side, counts)
            assert counts.min() > 0.65 * counts.mean(), (name, side, counts)


def test_without_query_and_video_there_is_next_to_nothing(splits: dict[str, MomentDataset]) -> None:
    def times(items: tuple[Annotation, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([item.duration for item in items]), torch.tensor([(item.start, item.end) for item in items])

    train, (durations, moments) = times(splits["train"].annotations), times(splits["test"].annotations)
    constant = constant_top(durations, best_constant(*train, 0.5))[:, 0]
    listed = constant_list_top(durations, best_constant_list(*train, 0.5, 5))
    chance = random_top(durations, 1, torch.Generator().manual_seed(0))[:, 0]
    assert float((iou(constant, moments.double()) > 0.5).double().mean()) < 0.03
    assert float((iou(listed, moments.double()[:, None]) > 0.5).any(dim=1).double().mean()) < 0.1
    assert float(iou(chance, moments.double()).mean()) < 0.05


# The features tell it too.


def of_features(splits: dict[str, MomentDataset], readings: Callable[[list[str]], list[list[str]]]) -> Array:
    """The IoU of the answers of one who knows what content words plant, but not what other queries ask for, [Q].

    Frames are projected on the mean direction of some readings of the query; of the runs of at least four frames above
    half the signal, the one with the greatest mean.
    """
    matrix, items = projection(50, 64, 0), splits["test"].annotations
    frames = {item.video: splits["test"].features.frames(item.video) for item in items[::16]}
    found = []
    for item in items:
        meanings = [meaning(tokens, 50, 0, ordered=True) for tokens in readings(content_words(item.query))]
        direction = np.mean(meanings, axis=0) @ matrix
        scores = frames[item.video] @ (direction / (direction @ direction))
        edges = np.flatnonzero(np.diff(np.concatenate(([0], (scores > 0.5).astype(int), [0]))))
        runs = [run for run in edges.reshape(-1, 2) if run[1] - run[0] >= 4] or [(0, len(scores))]
        best = max(runs, key=lambda run: float(scores[run[0] : run[1]].mean()))
        found.append(overlap(np.array(best) / FRAME_RATE, np.array([item.start, item.end])))
    return np.array(found)


def test_features_tell_moments_by_order_and_property(splits: dict[str, MomentDataset]) -> None:
    whole = of_features(splits, lambda tokens: [tokens])
    no_order = of_features(splits, lambda tokens: [tokens, [*tokens[:2], *reversed(tokens[2:])]])
    no_property = of_features(splits, lambda tokens: [[tokens[0], colour, *tokens[2:]] for colour in COLOURS])
    assert float((whole > 0.7).mean()) > 0.9
    assert float(whole.mean()) > 0.9
    for ignorant in (no_order, no_property):
        assert 0.3 < float((ignorant > 0.7).mean()) < 0.6
