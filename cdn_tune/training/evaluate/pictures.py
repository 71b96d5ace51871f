"""Pictures of a model's output for a few queries of the val split: score maps and frame attention.

Shape letters: B queries drawn, S clips, T frames, J attention steps.
"""

import numpy as np
import numpy.typing as npt
import torch

from cdn_tune.data.dataset import MomentDataset
from cdn_tune.model.family import MomentModel
from cdn_tune.moments.temporal_map import iou_maps
from cdn_tune.training.step.batch_loss import autocast

Picture = npt.NDArray[np.uint8]

COUNT = 4
SIDE = 384  # pixels, at least
_ROW, _GAP = 48, 4  # pixels: height of an attention step, between two
_GROUND = np.array([236, 236, 236], np.uint8)
_OUTLINE = np.array([230, 0, 70], np.uint8)  # a hue that the colours of the scale leave out


def draw(
    model: MomentModel, dataset: MomentDataset, device: torch.device, dtype: torch.dtype, count: int = COUNT
) -> dict[str, Picture]:
    """Draws a model's score maps and frame attention for some queries, always the same ones of a split.

    A score map has a row per start and a column per end; only valid cells are coloured, from 0 (dark) to the map's
    highest score (bright), and the cell that fits the annotated moment best is outlined. The frame attention has a row
    per attention step and a column per frame.

    Returns:
        RGB pictures [height, width, 3] named ``scores/ID`` and ``attention/ID``, as far as the model has such.
    """
    indices = chosen(len(dataset), count)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batch = dataset.batch(indices).to(device)
            with autocast(device, dtype):
                output = model(*model.inputs_of(batch))
            shown = model.pictures(output)
    finally:
        model.train(was_training)
    ids = [dataset.annotations[index].id for index in indices]
    pictures: dict[str, Picture] = {}
    if shown.score_map is not None:
        scores, valid = (each.cpu().numpy() for each in shown.score_map)
        fits = iou_maps(batch.durations, batch.all_moments, scores.shape[-1])  # [B, S, S]
        best = fits.masked_fill(~shown.score_map.mask, -1.0).flatten(1).argmax(dim=1).tolist()
        pictures |= {
            f"scores/{name}": draw_scores(map_, valid, divmod(cell, len(map_)))
            for name, map_, cell in zip(ids, scores, best, strict=True)
        }
    if shown.attention is not None:
        attention = shown.attention.cpu().numpy()  # [B, J, T]
        pictures |= {f"attention/{name}": draw_attention(each) for name, each in zip(ids, attention, strict=True)}
    return pictures


def captions(dataset: MomentDataset, count: int = COUNT) -> dict[str, str]:
    """Returns the texts of the queries that `draw` draws, with their moments, by query id."""
    items = [dataset.annotations[index] for index in chosen(len(dataset), count)]
    return {
        item.id: f"{item.query} ({item.video}, {item.start:.1f} to {item.end:.1f} of {item.duration:.1f} s)"
        for item in items
    }


def chosen(size: int, count: int) -> list[int]:
    """Returns `count` indices below `size`, or all, evenly spaced from the first to the last."""
    return [round(place) for place in np.linspace(0, size - 1, min(count, size)).tolist()]


def draw_scores(scores: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], outlined: tuple[int, int]) -> Picture:
    """Draws scores in [0, 1], [S, S]: valid cells [S, S] coloured, and one of them, (row, column), outlined."""
    zoom = -(-SIDE // len(scores))
    edge = max(2, zoom // 8)
    cells = np.where(valid[..., None], _coloured(np.where(valid, scores, 0)), _GROUND)
    large = cells.repeat(zoom, axis=0).repeat(zoom, axis=1)
    picture = np.tile(_GROUND, (len(large) + 2 * edge, len(large) + 2 * edge, 1))
    picture[edge:-edge, edge:-edge] = large
    top, left = outlined[0] * zoom, outlined[1] * zoom  # of the frame around the cell
    inside = picture[top + edge : top + edge + zoom, left + edge : left + edge + zoom].copy()
    picture[top : top + zoom + 2 * edge, left : left + zoom + 2 * edge] = _OUTLINE
    picture[top + edge : top + edge + zoom, left + edge : left + edge + zoom] = inside
    return picture


def draw_attention(weights: npt.NDArray[np.float32]) -> Picture:
    """Draws the frame attention [J, T] of a query: from 0 (dark) to its highest weight (bright)."""
    steps, frames = weights.shape
    strip = _coloured(weights).repeat(-(-SIDE // frames), axis=1)
    picture = np.tile(_GROUND, (steps * (_ROW + _GAP) - _GAP, strip.shape[1], 1))
    for step in range(steps):
        picture[step * (_ROW + _GAP) : step * (_ROW + _GAP) + _ROW] = strip[step]
    return picture


def _coloured(values: npt.NDArray[np.float32]) -> Picture:
    """Returns the colours [..., 3] of values [...] from 0 to their maximum; NaN and infinities have that of 0."""
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    share = finite / max(float(finite.max()), 1e-12)
    colours: Picture = COLOURS[(share.clip(0, 1) * (len(COLOURS) - 1)).round().astype(int)]
    return colours


def _helix() -> Picture:
    """Returns 256 colours [256, 3] from dark violet over green to light yellow, each as far from the next.

    Lightness and hue rise evenly at constant chroma in Oklab (B. Ottosson, 2020), whose distances are perceptual.
    """
    share = np.linspace(0, 1, 256)
    lightness, hue = 0.28 + 0.67 * share, np.radians(300 - 190 * share)
    lab = np.stack([lightness, 0.1 * np.cos(hue), 0.1 * np.sin(hue)])  # [3, 256]
    to_cones = [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    to_rgb = [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.707614701],
    ]
    linear = (np.array(to_rgb) @ (np.array(to_cones) @ lab) ** 3).T  # [256, 3], within (0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


COLOURS = _helix()
