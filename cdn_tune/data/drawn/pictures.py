"""Pictures of drawn scenes: the frame of any time. Things are drawn large and reduced, so that edges are smooth."""

import colorsys
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from cdn_tune.data.drawn.scenes import FPS, THINGS, Event, Scene, Thing

SIZE = 256  # pixels of a frame's side
FLOOR = 214  # where things stand, from the top
THING = 72  # pixels of a thing's side
GAP = 4  # pixels between two things
SMOOTH = 4  # by what pictures are reduced
HOP = 0.8  # seconds of a hop on or off another thing
PALETTE = {"red": (226, 62, 60), "blue": (52, 108, 226), "green": (52, 168, 92), "yellow": (247, 197, 52)}


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a thing is: its centre in pixels from the left and the top, turned clockwise by so many degrees."""

    x: float
    y: float
    angle: float = 0.0


def pose(scene: Scene, thing: Thing, time: float) -> Pose | None:
    """Returns where a thing is at a time in seconds; None while it is not there."""
    place = Pose(_centre(scene.things.index(thing)), FLOOR - THING / 2)
    there = thing in scene.there
    for event in scene.events:
        if event.what.thing == thing and event.start <= time:
            if time < event.end:
                return _during(scene, event, place, time)
            there = {"enters": True, "leaves": False}.get(event.what.verb, there)
    return place if there else None


def _centre(place: int) -> float:
    return SIZE / 2 + (place - (THINGS - 1) / 2) * (THING + GAP)


def _during(scene: Scene, event: Event, place: Pose, time: float) -> Pose:
    share = (time - event.start) / (event.end - event.start)
    if event.what.verb == "turns":
        return Pose(place.x, place.y, 360 * _eased(share))
    if event.what.other is not None:
        target = Pose(_centre(scene.things.index(event.what.other)), place.y - THING)
        there = _eased(min(time - event.start, event.end - time, HOP) / HOP)
        arc = 0.6 * THING * math.sin(math.pi * there)
        return Pose(place.x + there * (target.x - place.x), place.y + there * (target.y - place.y) - arc)
    gone = _eased(share if event.what.verb == "leaves" else 1 - share)
    side = scene.things.index(event.what.thing) - (THINGS - 1) / 2
    if side == 0:
        return Pose(place.x, place.y - gone * (place.y + THING))
    return Pose(place.x + math.copysign(gone * (SIZE / 2 + THING - abs(place.x - SIZE / 2)), side), place.y)


def _eased(share: float) -> float:
    return share * share * (3 - 2 * share)


def frames(scene: Scene) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields a scene's frames in order, `FPS` a second, each uint8 [SIZE, SIZE, 3], RGB. Read only."""
    poses, picture = None, np.empty(0, np.uint8)
    for number in range(round(scene.duration * FPS)):
        found = [pose(scene, thing, number / FPS) for thing in scene.things]
        if found != poses:
            poses, picture = found, paint(scene, number / FPS)
        yield picture


def paint(scene: Scene, time: float) -> npt.NDArray[np.uint8]:
    """Returns the frame of a scene at a time in seconds, uint8 [SIZE, SIZE, 3], RGB."""
    picture = _background(scene.hue).copy()
    for thing in scene.things:
        where = pose(scene, thing, time)
        if where is not None:
            _put(picture, _shadow(), where.x, FLOOR + 3)
            _put(picture, _sprite(thing, where.angle), where.x, where.y)
    return np.asarray(picture)


def _put(picture: Image.Image, layer: Image.Image, x: float, y: float) -> None:
    picture.paste(layer, (round(x - layer.width / 2), round(y - layer.height / 2)), layer)


@functools.lru_cache(maxsize=1)
def _background(hue: float) -> Image.Image:
    """Returns a wall and a floor in soft colours around a hue within [0, 1]."""
    rows = np.linspace(0, 1, SIZE)[:, None]
    wall = _rgb(hue, 0.10, 0.97) * (1 - rows) + _rgb(hue, 0.22, 0.90) * rows
    edge = FLOOR - THING // 3
    below = np.linspace(0, 1, SIZE - edge)[:, None]
    wall[edge:] = _rgb(hue + 0.06, 0.20, 0.80) * (1 - below) + _rgb(hue + 0.06, 0.12, 0.92) * below
    picture = np.repeat(np.round(wall).astype(np.uint8)[:, None], SIZE, axis=1)
    return Image.fromarray(picture, "RGB")


def _rgb(hue: float, saturation: float, value: float) -> npt.NDArray[np.float64]:
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


@functools.lru_cache(maxsize=1)
def _shadow() -> Image.Image:
    width, height = THING, THING // 4
    alpha = Image.new("L", (width, height), 0)
    ImageDraw.Draw(alpha).ellipse((6, 4, width - 6, height - 4), fill=70)
    layer = Image.new("RGBA", (width, height), (40, 40, 60, 0))
    layer.putalpha(alpha.filter(ImageFilter.GaussianBlur(3)))
    return layer


@functools.lru_cache(maxsize=64)
def _sprite(thing: Thing, angle: float) -> Image.Image:
    """Returns a thing on nothing, turned clockwise by `angle` degrees, RGBA."""
    large = _large(thing)
    turned = large.rotate(-angle, Image.Resampling.BILINEAR) if angle % 360 else large
    return turned.resize((large.width // SMOOTH, large.height // SMOOTH), Image.Resampling.BOX)


@functools.lru_cache(maxsize=16)
def _large(thing: Thing) -> Image.Image:
    side, margin = THING * SMOOTH, THING * SMOOTH // 4
    layer = Image.new("RGBA", (side + 2 * margin, side + 2 * margin), (*PALETTE[thing.colour], 0))
    pen = ImageDraw.Draw(layer)
    fill = PALETTE[thing.colour]
    dark = tuple(int(value * 0.62) for value in fill)
    low, high, middle, line = margin, margin + side, margin + side / 2, SMOOTH * 3
    if thing.shape == "square":
        pen.rounded_rectangle((low, low, high, high), side // 8, fill, dark, line)
    elif thing.shape == "circle":
        pen.ellipse((low, low, high, high), fill, dark, line)
    else:
        points = _corners(thing.shape, middle, side / 2)
        pen.polygon(points, fill)
        pen.line([*points, *points[:2]], dark, line, joint="curve")
    # The lower half is darker and there is a face, so that one sees how far even a circle has turned.
    lower = Image.new("L", layer.size, 0)
    ImageDraw.Draw(lower).rectangle((0, middle + side * 0.16, *layer.size), 90)
    shade = Image.new("RGBA", layer.size, (*dark, 0))
    shade.putalpha(ImageChops.multiply(lower, layer.getchannel("A")))
    layer.alpha_composite(shade)
    for eye in (-1, 1):
        x, y, size = middle + eye * side * 0.14, middle + side * 0.02, side * 0.1
        pen.ellipse((x - size, y - size, x + size, y + size), (255, 255, 255))
        pen.ellipse((x - size / 2, y - size / 3, x + size / 2, y + size * 2 / 3), (30, 30, 40))
    return layer


def _corners(shape: str, middle: float, radius: float) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(middle, middle - radius), (middle + radius, middle + radius), (middle - radius, middle + radius)]
    corners = []
    for point in range(10):
        reach = radius * (1.08 if point % 2 == 0 else 0.56)
        angle = math.pi * point / 5
        corners.append((middle + reach * math.sin(angle), middle + radius * 0.06 - reach * math.cos(angle)))
    return corners
