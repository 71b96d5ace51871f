"""Pictures show the scores that the model gives, outline the annotated moment, and leave the model as it was."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cdn_tune.config import Experiment
from cdn_tune.model.cdn.network import CDN
from cdn_tune.training.evaluate.pictures import COLOURS, SIDE, captions, chosen, draw, draw_attention, draw_scores
from cdn_tune.training.runs.checkpoint import build_model
from cdn_tune.training.train_trial import open_data

Tiny = Callable[..., Experiment]
CPU = torch.device("cpu")
OUTLINE = (230, 0, 70)


@pytest.fixture
def model(tiny: Tiny) -> CDN:
    return build_model(tiny())


def test_always_the_same_evenly_spaced_queries(tiny: Tiny, model: CDN) -> None:
    val = open_data(tiny().data)["val"]
    assert chosen(1000, 4) == [0, 333, 666, 999]
    assert chosen(3, 4) == [0, 1, 2]
    assert chosen(10, 1) == [0]
    ids = [val.annotations[index].id for index in chosen(len(val), 4)]
    drawn = draw(model, val, CPU, torch.float32)
    assert list(drawn) == [f"scores/{name}" for name in ids] + [f"attention/{name}" for name in ids]
    assert list(captions(val)) == ids
    assert val.annotations[0].query in captions(val)[ids[0]]
    for picture in drawn.values():
        assert picture.dtype == np.uint8
        assert picture.shape[1] >= SIDE >= 256
        assert picture.shape[2] == 3


@pytest.mark.parametrize("training", [True, False])
def test_model_and_generators_are_left_as_they_were(tiny: Tiny, model: CDN, training: bool) -> None:
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    val = open_data(tiny().data)["val"]
    first, again = (draw(model, val, CPU, torch.float32, count=2) for _ in range(2))
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(first) == 4
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_mode_is_restored_when_drawing_fails(tiny: Tiny, model: CDN) -> None:
    model.train()
    with pytest.raises(IndexError):
        draw(model, open_data(tiny().data)["val"], CPU, torch.float32, count=0)
    assert model.training


def test_no_attention_no_strip(tiny: Tiny) -> None:
    experiment = tiny(**{"model.clip_pool": "mean"})
    drawn = draw(build_model(experiment), open_data(experiment.data)["val"], CPU, torch.float32)
    assert all(name.startswith("scores/") for name in drawn)


def test_scores_are_coloured_where_valid_and_the_best_cell_is_outlined() -> None:
    scores = np.array([[0.5, 0.25], [9.0, 0.0]], np.float32)
    valid = np.array([[True, True], [False, True]])
    picture = draw_scores(scores, valid, (0, 1))
    zoom = SIDE // 2
    edge = (len(picture) - SIDE) // 2
    centre = [edge + zoom // 2, edge + zoom + zoom // 2]
    assert tuple(picture[centre[0], centre[0]]) == tuple(COLOURS[255])  # the highest valid score
    assert tuple(picture[centre[0], centre[1]]) == tuple(COLOURS[128])
    assert tuple(picture[centre[1], centre[1]]) == tuple(COLOURS[0])
    assert tuple(picture[centre[1], centre[0]]) not in set(map(tuple, COLOURS))  # below the diagonal
    outlined = (picture == OUTLINE).all(axis=-1)
    rows, columns = outlined.nonzero()
    assert (rows.min(), rows.max() + 1) == (0, zoom + 2 * edge)
    assert (columns.min(), columns.max() + 1) == (zoom, 2 * zoom + 2 * edge)
    assert not outlined[edge : edge + zoom, edge + zoom : edge + 2 * zoom].any()


def test_outline_is_at_the_annotated_moment(tiny: Tiny, model: CDN) -> None:
    val = open_data(tiny().data)["val"]
    drawn = draw(model, val, CPU, torch.float32)
    for index in chosen(len(val), 4):
        item = val.annotations[index]
        picture = drawn[f"scores/{item.id}"]
        rows, columns = (picture == OUTLINE).all(axis=-1).nonzero()
        shown = rows.min() / SIDE, columns.max() / SIDE  # start and end as shares of the video, about
        clip = 1 / 8
        assert shown[0] == pytest.approx(item.start / item.duration, abs=clip)
        assert shown[1] == pytest.approx(item.end / item.duration, abs=1.5 * clip)


def test_finest_maps_fit() -> None:
    picture = draw_scores(np.ones((128, 128), np.float32), np.triu(np.ones((128, 128), bool)), (0, 127))
    assert (picture == OUTLINE).all(axis=-1).any()
    assert len(picture) >= SIDE


def test_attention_has_a_row_per_step_and_a_column_per_frame() -> None:
    weights = np.zeros((3, 4), np.float32)
    weights[2, 2] = 1.0
    picture = draw_attention(weights)
    bright = (picture == COLOURS[255]).all(axis=-1)
    rows, columns = bright.nonzero()
    assert rows.min() > len(picture) / 2
    assert (columns.min(), columns.max() + 1) == (SIDE // 2, 3 * SIDE // 4)


def test_values_that_are_no_numbers_are_drawn() -> None:
    assert draw_attention(np.full((1, 4), np.nan, np.float32)).shape[1] == SIDE


def test_colours_are_evenly_spaced_and_ever_lighter() -> None:
    share = COLOURS / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    lab = np.cbrt(linear @ np.array(to_cones).T) @ np.array(to_lab).T
    steps = np.linalg.norm(np.diff(lab[::15], axis=0), axis=1)
    assert steps.max() / steps.min() < 1.15  # of whole numbers, hence not exactly even
    assert (np.diff(lab[::5, 0]) > 0).all()
