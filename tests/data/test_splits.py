from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_tune.config import DataConfig
from cdn_tune.data.splits import coarse, held_out, split_annotations
from cdn_tune.errors import DataError

from .conftest import Small


def test_charades_val_is_carved_by_video_and_disjoint(real: Callable[[str], Path]) -> None:
    config = DataConfig(dataset="charades_sta", root=str(real("charades_sta")))
    train, val = (split_annotations(config, split) for split in ("train", "val"))
    videos = [{item.video for item in part.annotations} for part in (train, val)]
    assert not videos[0] & videos[1]
    assert (len(videos[0]), len(videos[1])) == (4802, 534)
    assert len(train.annotations) + len(val.annotations) + len(train.skipped) + len(val.skipped) == 12408


def test_the_published_val_split_never_changes(real: Callable[[str], Path]) -> None:
    config = DataConfig(dataset="charades_sta", root=str(real("charades_sta")))
    videos = sorted({item.video for item in split_annotations(config, "val").annotations})
    assert (
        hashlib.sha256(" ".join(videos).encode()).hexdigest()
        == "29569251c34bb0562a7375aa3905d098805cb6021383a52c6f45e3b1eb8f7842"
    )


def test_tacos_val_is_its_own_file(real: Callable[[str], Path]) -> None:
    config = DataConfig(dataset="tacos", root=str(real("tacos")), val_fraction=0.5)
    assert [len(split_annotations(config, split).annotations) for split in ("train", "val")] == [9790, 4436]


@given(st.sets(st.text(max_size=4), max_size=40), st.floats(0.01, 0.99), st.randoms())
def test_held_out_depends_on_the_names_alone(videos: set[str], fraction: float, random: object) -> None:
    shuffled = list(videos)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    val = held_out(shuffled + shuffled, fraction)
    assert val == held_out(videos, fraction)
    assert val <= videos
    assert len(val) == round(fraction * len(videos))


def test_a_larger_fraction_keeps_the_smaller_ones_videos() -> None:
    videos = [f"v{n}" for n in range(50)]
    assert held_out(videos, 0.1) < held_out(videos, 0.3)


@pytest.mark.parametrize(("fraction", "empty"), [(0.01, "val"), (0.99, "train")])
def test_a_carving_that_leaves_a_side_empty_is_refused(small: Small, fraction: float, empty: str) -> None:
    for split in ("train", "val"):
        with pytest.raises(DataError, match=rf"data\.val_fraction={fraction} of 6 training videos .* {empty} empty"):
            split_annotations(small.config(val_fraction=fraction), split)  # type: ignore[arg-type]
    assert len(split_annotations(small.config(val_fraction=fraction), "test").annotations) == 2


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root=.*nowhere does not exist; set data\.root"):
        split_annotations(DataConfig(dataset="tacos", root=str(tmp_path / "nowhere")), "train")


def test_steps_too_coarse_to_choose_by() -> None:
    assert coarse(50) is None
    assert "12 queries, so recall moves in steps of 0.083" in (coarse(12) or "")
