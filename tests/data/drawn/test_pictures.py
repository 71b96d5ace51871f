"""Pictures: things are where events have put them; what is seen of an event is what its sentence says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cdn_tune.data.drawn.pictures import FLOOR, PALETTE, SIZE, THING, frames, paint, pose
from cdn_tune.data.drawn.scenes import COLOURS, FPS, Scene, Thing, draw_scene

SCENES = [draw_scene(f"D{number:04d}", 0) for number in range(30)]
MOST = THING * THING  # pixels of a thing at most


def seen(frame: npt.NDArray[np.uint8], thing: Thing) -> npt.NDArray[np.bool_]:
    """Where a frame [H, W, 3] has the colour of a thing, or its shade."""
    colour = np.array(PALETTE[thing.colour], float)
    pixels = frame.astype(float)
    share = (pixels @ colour) / (colour @ colour)  # of the colour's brightness
    off: npt.NDArray[np.float64] = np.linalg.norm(pixels - share[..., None] * colour, axis=-1)
    return (off < 24) & (share > 0.6) & (share < 1.1)


def moments(verb: str) -> list[tuple[Scene, Thing, float, float]]:
    return [
        (scene, event.what.thing, event.start, event.end)
        for scene in SCENES
        for event in scene.events
        if event.what.verb == verb
    ]


def test_every_colour_has_its_paint() -> None:
    assert set(PALETTE) == set(COLOURS)


def test_a_thing_that_enters_is_there_afterwards_and_not_before() -> None:
    assert len(moments("enters")) > 10
    for scene, thing, start, end in moments("enters")[:10]:
        before, later = paint(scene, start - 1 / FPS), paint(scene, end)
        assert seen(before, thing).sum() < 0.02 * MOST
        assert seen(later, thing).sum() > 0.2 * MOST


def test_a_thing_that_leaves_is_there_before_and_not_afterwards() -> None:
    assert len(moments("leaves")) > 10
    for scene, thing, start, end in moments("leaves")[:10]:
        assert seen(paint(scene, start), thing).sum() > 0.2 * MOST
        assert seen(paint(scene, end), thing).sum() < 0.02 * MOST


def test_a_thing_that_turns_changes_and_is_as_before_in_the_end() -> None:
    for scene, thing, start, end in moments("turns")[:10]:
        place = pose(scene, thing, start)
        assert place is not None
        middle = paint(scene, (start + end) / 2)
        assert not np.array_equal(middle, paint(scene, start))
        assert np.array_equal(paint(scene, start), paint(scene, end))


def test_a_thing_that_sits_on_another_is_above_it() -> None:
    found = [
        (scene, event.what.thing, event.what.other, (event.start + event.end) / 2)
        for scene in SCENES
        for event in scene.events
        if event.what.other
    ]
    assert len(found) > 5
    for scene, thing, other, time in found[:10]:
        assert other is not None
        above, below = pose(scene, thing, time), pose(scene, other, time)
        assert above is not None
        assert below is not None
        assert (above.x, above.y) == (below.x, below.y - THING)
        rows = np.flatnonzero(seen(paint(scene, time), thing).any(axis=1))
        assert rows.max() <= FLOOR - THING + 2


def test_nothing_moves_between_events() -> None:
    for scene in SCENES[:5]:
        ends = [0.0, *(event.end for event in scene.events)]
        starts = [*(event.start for event in scene.events), scene.duration]
        for end, start in zip(ends, starts, strict=True):
            assert np.array_equal(paint(scene, end), paint(scene, start - 1 / FPS))


def test_frames_are_those_of_their_times() -> None:
    scene = SCENES[0]
    found = list(frames(scene))
    assert len(found) == scene.duration * FPS
    assert {each.shape for each in found} == {(SIZE, SIZE, 3)}
    for number in range(0, len(found), 20):
        assert np.array_equal(found[number], paint(scene, number / FPS))


def test_edges_are_smooth() -> None:
    scene, thing, start, _ = moments("leaves")[0]
    row = paint(scene, start)[FLOOR - THING // 2].astype(int)
    assert len(np.unique(row, axis=0)) > 12
    assert thing in scene.things
