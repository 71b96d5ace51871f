from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.config import DataConfig
from cdn_tune.data.annotations import Annotation
from cdn_tune.data.charades import COLUMNS
from cdn_tune.data.dataset import load_splits
from cdn_tune.data.fingerprint import is_planted
from cdn_tune.data.planted import plant
from cdn_tune.data.planted.grammar import ACTIONS, STOPWORDS, THINGS, draw_event, sentence
from cdn_tune.data.planted.planting import PRESETS, apportion, preset
from cdn_tune.data.planted.scenes import draw_scene
from cdn_tune.data.planted.signal import (
    Difficulty,
    content_words,
    frame_span,
    generator_for,
    meaning,
    projection,
    signals_of,
)
from cdn_tune.data.splits import split_annotations
from cdn_tune.data.videos_json import TACOS
from cdn_tune.errors import DataError

from .conftest import config_of

Real = Callable[[str], Path]
SMALL: dict[str, Any] = {"videos": 6, "feature_size": 8, "word_size": 5, "frame_rate": 2.0}


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file() and path.suffix != ".lock"}


def iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return shared / (max(a[1], b[1]) - min(a[0], b[0]))


# What is planted can be found.


def test_an_oracle_finds_the_moments(planted_config: DataConfig) -> None:
    """Frames projected on a query's planted direction: the span with the largest sum above half the signal."""
    dataset = load_splits(planted_config, ("test",))["test"]
    matrix = projection(50, 64, seed=0)
    hits = []
    for item in dataset.annotations:
        direction = meaning(content_words(item.query), 50, seed=0) @ matrix
        scores = dataset.features.frames(item.video) @ (direction / np.linalg.norm(direction)) - 0.6
        best, found, total, first = 0.0, (0, 1), 0.0, 0
        for frame, score in enumerate(scores):
            if total <= 0:
                total, first = 0.0, frame
            total += score
            if total > best:
                best, found = total, (first, frame + 1)
        hits.append(iou((found[0] / 4, found[1] / 4), (item.start, item.end)) > 0.5)
    assert np.mean(hits) > 0.9


def test_frames_outside_every_moment_are_noise(planted_config: DataConfig) -> None:
    dataset = load_splits(planted_config, ("train",))["train"]
    inside, outside = [], []
    for video in {item.video for item in dataset.annotations}:
        frames = dataset.features.frames(video)
        held = np.zeros(len(frames), bool)
        for item in dataset.annotations:
            if item.video == video:
                held[slice(*frame_span(item.start, item.end, 4.0, len(frames)))] = True
        inside.append((frames[held] ** 2).sum(axis=1))
        outside.append((frames[~held] ** 2).sum(axis=1))
    assert np.concatenate(outside).mean() == pytest.approx(1, abs=0.05)
    assert np.concatenate(inside).mean() == pytest.approx(2.1, abs=0.4)


def test_a_constant_answer_gets_a_third_and_a_random_one_far_less() -> None:
    scenes = [draw_scene(f"P{n:04d}", seed=3) for n in range(300)]
    spans = np.array([np.divide(span, scene.duration) for scene in scenes for span in scene.spans])
    edges = np.linspace(0, 1, 41)
    pairs = np.array([(a, b) for a in edges for b in edges if a < b])

    def recall(pairs: np.ndarray, spans: np.ndarray) -> np.ndarray:
        starts, ends = (pairs[:, None, side] for side in (0, 1))
        shared = np.minimum(ends, spans[:, 1]) - np.maximum(starts, spans[:, 0])
        return shared / (np.maximum(ends, spans[:, 1]) - np.minimum(starts, spans[:, 0])) > 0.5

    assert recall(pairs, spans).mean(axis=1).max() == pytest.approx(0.35, abs=0.03)
    assert recall(pairs, spans).mean() < 0.2


def test_queries_of_a_video_differ_and_point_at_different_moments() -> None:
    for scene in (draw_scene(f"P{n:04d}", seed=0) for n in range(100)):
        assert len(scene.spans) >= 3
        assert len({tuple(sorted(content_words(query))[:9]) for query in scene.queries}) == len(scene.queries)
        assert all(iou(a, b) < 0.4 for i, a in enumerate(scene.spans) for b in scene.spans[:i])
        assert all(0 <= start < end <= scene.duration + 0.1 for start, end in scene.spans)


def test_every_action_goes_with_things_and_none_is_a_stopword() -> None:
    verbs = {verb for verb, _, _ in ACTIONS}
    things = {thing for group in THINGS.values() for thing in group}
    assert (len(verbs), len(things)) == (25, 30)
    assert not (verbs | things) & STOPWORDS
    for verb, groups, _ in ACTIONS:
        assert groups, verb
        assert set(groups) <= THINGS.keys()


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_a_sentence_names_its_action_and_thing(seed: int, share: float) -> None:
    generator = generator_for(seed)
    event = draw_event(generator)
    found = content_words(sentence(event, share, generator))
    assert found[:2] == [ACTIONS[event.action][0], event.thing]


def test_a_query_of_stopwords_alone_still_means_something() -> None:
    assert content_words("she is there") == ["she", "is", "there"]
    assert np.linalg.norm(meaning(content_words("she is there"), 8, 0)) == pytest.approx(1)


@given(st.floats(0, 50), st.floats(0.01, 50), st.floats(0.1, 30), st.integers(1, 100))
def test_a_moment_holds_the_frames_whose_time_it_holds(start: float, length: float, rate: float, frames: int) -> None:
    first, last = frame_span(start, start + length, rate, frames)
    assert 0 <= first < last <= frames
    held = [frame for frame in range(frames) if start <= (frame + 0.5) / rate < start + length]
    if len(held) > 1:
        assert abs(first - held[0]) <= 1
        assert abs(last - held[-1] - 1) <= 1


# The layout is the real one.


def test_generated_files_are_those_of_charades(planted_root: Path) -> None:
    with (planted_root / "Charades_v1_train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert all(float(row["length"]) > 0 for row in rows)
    assert (planted_root / "charades_sta_test.txt").read_text().count("##") >= 3 * 12
    with h5py.File(planted_root / "vgg_rgb_features.hdf5") as file:
        assert len(file) == 60
        assert file["P0000"].shape == (round(float(rows[0]["length"]) * 4), 64)
        assert file["P0000"].dtype == np.float32


def test_a_third_or_more_words_of_a_query_are_planted_and_all_have_vectors(planted_config: DataConfig) -> None:
    splits = load_splits(planted_config, ("train", "val", "test"))
    assert not splits["train"].vocabulary.unknown
    assert is_planted(planted_config)
    marker = json.loads((Path(planted_config.root) / "planted.json").read_text())
    assert marker["planted"] is True
    assert marker["options"]["snr"] == 1.0
    assert "noise" in marker["model"]
    assert marker["queries"] == sum(map(len, splits.values()))


def test_real_charades_restricted(real: Real, tmp_path: Path) -> None:
    source = real("charades_sta")
    done = plant(tmp_path, "charades_sta", source, **{**SMALL, "videos": 50})
    config = config_of(tmp_path, feature_size=8, word_size=5, word_vectors=done.word_vectors)
    splits = load_splits(config, ("train", "val", "test"))
    videos = {split: {item.video for item in part.annotations} for split, part in splits.items()}
    assert (len(videos["train"] | videos["val"]), len(videos["test"])) == (40, 10)
    whole = split_annotations(DataConfig(dataset="charades_sta", root=str(source)), "test").annotations
    kept = [(item.video, item.start, item.end, item.query) for item in whole if item.video in videos["test"]]
    assert [(item.video, item.start, item.end, item.query) for item in splits["test"].annotations] == kept
    assert (done.videos, done.queries) == (50, sum(map(len, splits.values())))


def test_real_tacos_restricted(real: Real, tmp_path: Path) -> None:
    source = real("tacos")
    done = plant(tmp_path, "tacos", source, **{**SMALL, "videos": 5, "frame_rate": 0.5})
    config = config_of(tmp_path, dataset="tacos", feature_size=8, word_size=5, word_vectors=done.word_vectors)
    splits = load_splits(config, ("train", "val", "test"))
    assert [len({item.video for item in part.annotations}) for part in splits.values()] == [3, 1, 1]
    item = splits["val"].annotations[0]
    assert item in TACOS.load(source, "val").annotations
    assert (tmp_path / "tall_c3d_features.hdf5").is_file()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.data())
def test_apportioning_is_exact_and_fair(sizes: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(len(sizes), sum(sizes)))
    counts = apportion(sizes, total)
    assert sum(counts) == total
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    exact = [total * size / sum(sizes) for size in sizes]
    assert all(abs(count - share) < len(sizes) or count == 1 for count, share in zip(counts, exact, strict=True)), (
        counts
    )


# The same options give the same bytes, and nothing is lost or half-written.


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        plant(tmp_path / name, **SMALL)
    plant(tmp_path / "c", **SMALL, seed=1)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_a_video_does_not_depend_on_the_others(tmp_path: Path) -> None:
    for count in (6, 9):
        plant(tmp_path / str(count), **{**SMALL, "videos": count})
    files = [h5py.File(tmp_path / name / "vgg_rgb_features.hdf5") for name in ("6", "9")]
    assert np.array_equal(files[0]["P0002"], files[1]["P0002"])
    for file in files:
        file.close()


def test_the_noise_does_not_depend_on_the_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "a", **SMALL)
    monkeypatch.setattr("cdn_tune.data.planted.signal.BLOCK_BYTES", 4 * 8 * 7)
    plant(tmp_path / "b", **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_planting_again_does_nothing(tmp_path: Path) -> None:
    first = plant(tmp_path, **SMALL)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    again = plant(tmp_path, **SMALL)
    assert (first.written, again.written) == (True, False)
    assert (again.videos, again.queries, again.dataset) == (first.videos, first.queries, first.dataset)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    assert {name: time for name, time in after.items() if not name.endswith(".lock")} == {
        name: time for name, time in times.items() if not name.endswith(".lock")
    }


def test_another_planting_is_replaced_only_when_told(tmp_path: Path) -> None:
    plant(tmp_path, **SMALL)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"holds another planting \(seed=0, asked for 1\)"):
        plant(tmp_path, **SMALL, seed=1)
    assert contents(tmp_path) == before
    (tmp_path / "glove.planted.5d.txt.pt").write_text("stale cache")
    plant(tmp_path, **{**SMALL, "word_size": 6}, overwrite=True)
    assert not list(tmp_path.glob("glove.planted.5d*"))
    assert (tmp_path / "glove.planted.6d.txt").is_file()


def test_a_lost_file_is_planted_again(tmp_path: Path) -> None:
    plant(tmp_path, **SMALL)
    before = contents(tmp_path)
    (tmp_path / "charades_sta_test.txt").unlink()
    assert plant(tmp_path, **SMALL).written
    assert contents(tmp_path) == before


def test_a_folder_of_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vgg_rgb_features.hdf5").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="is not empty and holds no planted data"):
            plant(tmp_path, **SMALL, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["vgg_rgb_features.hdf5"]


def test_the_source_is_left_alone(real: Real) -> None:
    with pytest.raises(DataError, match="is the source folder itself"):
        plant(real("tacos"), "tacos", real("tacos"))


def test_a_planting_in_progress_is_not_disturbed(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".planting.lock"), pytest.raises(DataError, match="another process is planting here"):
        plant(tmp_path, **SMALL)


KILLED = """
import os, sys
from pathlib import Path
from cdn_tune.data.planted import plant
from cdn_tune.data.planted.signal import Difficulty, signals_of
plant(Path(sys.argv[1]), videos=6, feature_size=8, word_size=5, frame_rate=2.0, seed=int(sys.argv[2]), overwrite=True,
      progress=lambda done, total: os._exit(9) if done == 4 else None)
"""


def test_a_killed_planting_leaves_nothing_under_a_final_name(tmp_path: Path) -> None:
    root = tmp_path / "new"
    assert subprocess.run([sys.executable, "-c", KILLED, str(root), "0"], check=False).returncode == 9
    assert all(path.name.startswith(".planting") for path in root.iterdir())
    assert plant(root, **SMALL).written
    plant(tmp_path / "other", **SMALL)
    assert contents(root) == contents(tmp_path / "other")


def test_a_killed_planting_is_gone_on_with(tmp_path: Path) -> None:
    script = "import cdn_tune.data.planted.features as f\nf.SYNC_BYTES = 1\n" + KILLED
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "a"), "0"], check=False).returncode == 9
    seen: list[int] = []
    plant(tmp_path / "a", **SMALL, progress=lambda *counts: seen.append(counts[0]))
    assert seen == [5, 6]
    plant(tmp_path / "b", **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_planting_does_not_go_on_with_it(tmp_path: Path) -> None:
    script = "import cdn_tune.data.planted.features as f\nf.SYNC_BYTES = 1\n" + KILLED
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "a"), "0"], check=False).returncode == 9
    plant(tmp_path / "a", **SMALL, seed=1)
    plant(tmp_path / "b", **SMALL, seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_all_videos_of_a_dataset_are_planted_in_its_own_files(real: Real, tmp_path: Path) -> None:
    source = real("charades_sta")
    planted = plant(tmp_path, "charades_sta", source, feature_size=2, frame_rate=0.1, word_size=5)
    assert planted.videos == 6672
    for name in ("charades_sta_train.txt", "Charades_v1_test.csv"):
        assert (tmp_path / name).read_text() == (source / name).read_text()


# Difficulty.

HARD: dict[str, Any] = {**SMALL, "distractors": 2, "paraphrases": 0.5, "jitter": 0.2}


def test_difficulty_changes_features_alone(tmp_path: Path) -> None:
    plant(tmp_path / "easy", **SMALL)
    for name, options in (("a", HARD), ("b", HARD)):
        plant(tmp_path / name, **options)
    easy, hard, again = (contents(tmp_path / name) for name in ("easy", "a", "b"))
    assert hard == again
    assert {name for name in easy if easy[name] != hard[name]} == {"vgg_rgb_features.hdf5", "planted.json"}


def item(start: float = 10.0, end: float = 20.0) -> Annotation:
    return Annotation("x:1", "V", 40.0, start, end, "a person opens the door.")


def test_jitter_moves_the_signal_and_keeps_it_in_the_video() -> None:
    spans = []
    for number in range(200):
        annotation = replace(item(), video=f"V{number}")
        (signal,) = signals_of(annotation.video, [annotation], Difficulty(jitter=0.1), 8, seed=0)
        assert 0 <= signal.start < signal.end <= 40
        spans.append((signal.start - 10, signal.end - 20))
    assert np.std(spans) == pytest.approx(1.0, rel=0.15)
    assert np.mean(spans) == pytest.approx(0.0, abs=0.2)


def test_paraphrases_turn_signals_away_from_their_words() -> None:
    def likeness(share: float) -> float:
        found = []
        for number in range(50):
            (signal,) = signals_of(f"V{number}", [item()], Difficulty(paraphrases=share), 64, seed=0)
            found.append(float(signal.meaning @ meaning(content_words(item().query), 64, seed=0)))
        return float(np.mean(found))

    assert likeness(0.0) == pytest.approx(1)
    assert 0.3 < likeness(0.5) < 0.75
    assert abs(likeness(1.0)) < 0.2


def test_distractors_share_all_words_but_one() -> None:
    signals = signals_of("V", [item()], Difficulty(distractors=5), 64, seed=0)
    assert len(signals) == 6
    for signal in signals[1:]:
        assert 0.2 < float(signal.meaning @ signals[0].meaning) < 0.8
        assert 0 <= signal.start < signal.end <= 40
    assert signals_of("V", [], Difficulty(distractors=5), 64, seed=0) == []


def test_an_interrupted_replacement_leaves_the_old_planting(tmp_path: Path) -> None:
    plant(tmp_path, **SMALL)
    before = contents(tmp_path)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plant(tmp_path, **SMALL, seed=1, overwrite=True, progress=interrupt)
    assert contents(tmp_path) == before
    with pytest.raises(DataError, match="holds another planting"):
        plant(tmp_path, **SMALL, seed=2)
    assert plant(tmp_path, **SMALL, seed=1, overwrite=True).written


def test_a_replacement_killed_between_files_is_finished_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, **SMALL)
    replace, moved = Path.replace, []

    def dying(self: Path, target: Path) -> Path:
        if target.parent == tmp_path:
            moved.append(target.name)
            if len(moved) == 3:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        plant(tmp_path, **SMALL, seed=1, overwrite=True)
    monkeypatch.undo()
    assert moved[0] == "planted.json"
    assert plant(tmp_path, **SMALL, seed=1).written
    plant(tmp_path / "fresh", **SMALL, seed=1)
    assert contents(tmp_path) == contents(tmp_path / "fresh")


def test_progress_counts_every_video(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plant(tmp_path, **SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"videos": 1}, "videos=1: must be at least 2"),
        ({"feature_size": 0}, "feature_size=0"),
        ({"word_size": 2}, "word_size=2"),
        ({"snr": 0.0}, "snr=0.0: must be a positive number"),
        ({"frame_rate": float("nan")}, "frame_rate=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"distractors": -1}, "distractors=-1"),
        ({"paraphrases": 1.5}, "paraphrases=1.5: must be within 0 and 1"),
        ({"jitter": -0.5}, "jitter=-0.5"),
        ({"source": Path("/x")}, "generated annotations have no source"),
        ({"annotations": "tacos"}, "annotations=tacos needs source"),
        ({"annotations": "tacos", "source": Path("/x")}, "/x/train.json: no such file; source must be"),
        ({"annotations": "kitchen", "source": Path("/x")}, "'kitchen' is unknown; choose one of"),
    ],
)
def test_wrong_options_are_named_and_write_nothing(tmp_path: Path, options: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError) as error:
        plant(tmp_path / "out", **options)
    assert part in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("videos", [2, 128])
def test_more_or_fewer_videos_than_there_are(real: Real, tmp_path: Path, videos: int) -> None:
    with pytest.raises(DataError, match=rf"videos={videos}: .* has 127 videos; choose 3 to 127"):
        plant(tmp_path / "out", "tacos", real("tacos"), videos=videos)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot be written"):
        plant(tmp_path / "out", **SMALL)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match="is a file; choose a folder"):
        plant(tmp_path / "out", **SMALL)


def test_presets_are_plantings(tmp_path: Path) -> None:
    for name, options in PRESETS.items():
        assert plant(tmp_path / name, **{**options, **SMALL}).written


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(DataError, match="preset=hard: unknown; choose one of planted-medium"):
        preset("hard")
