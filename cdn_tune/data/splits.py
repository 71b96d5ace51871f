"""Splits: what is trained on, what choices are made on, and what is measured once."""

import hashlib
from collections.abc import Iterable

from cdn_tune.config import DataConfig
from cdn_tune.data.annotations import Loaded, Split
from cdn_tune.data.layouts import layout_of, root_of
from cdn_tune.errors import DataError

COARSE = 50  # queries below which a val split is too small to choose by


def split_annotations(config: DataConfig, split: Split) -> Loaded:
    """Returns the entries of a split, in file order.

    Where the dataset has no val files (Charades-STA), val is carved from train by video: see `held_out`. Train is then
    the rest, so the two share no video.

    Raises:
        DataError: If a file is missing or wrong, or the carving would leave train or val empty.
    """
    root, layout = root_of(config), layout_of(config.dataset)
    if layout.files(root, "val") or split == "test":
        return layout.load(root, split)
    whole = layout.load(root, "train")
    videos = {annotation.video for annotation in whole.annotations}
    val = held_out(videos, config.val_fraction)
    if not val or len(val) == len(videos):
        raise DataError(
            f"data.val_fraction={config.val_fraction} of {len(videos)} training videos in {root} leaves "
            f"{'val' if not val else 'train'} empty; use at least two videos and {'raise' if not val else 'lower'} "
            "data.val_fraction"
        )
    wanted = split == "val"
    return Loaded(tuple(item for item in whole.entries if (item.video in val) == wanted))


def coarse(queries: int) -> str | None:
    """Returns a warning, with its remedy, where a val split of so many queries cannot tell models apart; else None."""
    if not 0 < queries < COARSE:
        return None
    return (
        f"val has {queries} queries, so recall moves in steps of {1 / queries:.2g}: too coarse to choose by; "
        "use a larger val split, or raise data.val_fraction where it is carved from train"
    )


def held_out(videos: Iterable[str], fraction: float) -> frozenset[str]:
    """Returns the videos held out for validation: the rounded `fraction` of them with the smallest SHA-256.

    The choice depends on the names alone, not on their order, the seed, the machine or the Python version.

    Args:
        videos: Names of the training videos.
        fraction: Share to hold out, within (0, 1).
    """
    ranked = sorted(set(videos), key=lambda video: (hashlib.sha256(video.encode()).hexdigest(), video))
    return frozenset(ranked[: round(fraction * len(ranked))])
