"""Generated annotations of long videos with short moments, in the files of TACoS: things put on, behind, into others.

What a query asks for has three rivals in its video: the thing and the landmark in each other's place, another colour
(the property), and both. Their queries differ by the order of the words alone, by one word alone, or both.
"""

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np

from cdn_tune.data.planted.grammar import SUBJECTS
from cdn_tune.data.planted.signal import generator_for

COLOURS = ("red", "blue", "green", "yellow", "white", "black")
THINGS = ("cup", "box", "book", "plate", "bowl", "bottle", "pan", "jar", "basket", "tray", "vase", "lamp")
ACTIONS = (
    ("puts", "on"),
    ("drops", "into"),
    ("hides", "behind"),
    ("slides", "under"),
    ("pushes", "toward"),
    ("lifts", "over"),
    ("moves", "beside"),
    ("empties", "into"),
)
ADVERBS = ("", "", "", "quickly", "slowly")

GROUPS = 4  # of four rivals each in a video
DURATION = (200.0, 320.0)  # seconds
LENGTH = (2.5, 12.0)  # seconds of a moment, log-uniform; all moments of a video together are shorter than a video
FPS = 29.4  # TACoS' frames per second, in which its files give times
DECIMALS = 2  # of a frame
VAL_SHARE = TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Event:
    """Somebody does something (an index of `ACTIONS`) with a thing of a colour and a landmark."""

    action: int
    colour: str
    thing: str
    landmark: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A generated video: its events in order of their start, with their spans in frames of the original video."""

    video: str
    frames: int
    spans: tuple[tuple[float, float], ...]
    events: tuple[Event, ...]
    queries: tuple[str, ...]


def draw_group(generator: np.random.Generator) -> list[tuple[Event, str]]:
    """Returns four rivals and their queries: two colours times two orders of the same two things."""
    action = int(generator.integers(len(ACTIONS)))
    pair, colours = generator.choice(THINGS, 2, replace=False), generator.choice(COLOURS, 2, replace=False)
    adverb, subject = ADVERBS[int(generator.integers(len(ADVERBS)))], SUBJECTS[int(generator.integers(len(SUBJECTS)))]
    verb, relation = ACTIONS[action]
    group = []
    for colour, (thing, landmark) in itertools.product(map(str, colours), itertools.permutations(map(str, pair))):
        query = f"{adverb} {subject} {verb} the {colour} {thing} {relation} the {landmark}.".lstrip()
        group.append((Event(action, colour, thing, landmark), query))
    return group


def draw_scene(video: str, seed: int) -> Scene:
    """Returns the scene of a video; it depends on the name and the seed alone. No two events of it are the same.

    Moments do not overlap; of all ways to place them each is as likely, so that their ends lie anywhere between the
    frames and clips of any rate.
    """
    generator = generator_for(seed, "tabletop", video)
    frames = round(float(generator.uniform(*DURATION)) * FPS)
    groups: dict[tuple[int, frozenset[str]], list[tuple[Event, str]]] = {}
    while len(groups) < GROUPS:
        group = draw_group(generator)
        event = group[0][0]
        groups.setdefault((event.action, frozenset((event.thing, event.landmark))), group)
    asked = [each for group in groups.values() for each in group]
    asked = [asked[place] for place in generator.permutation(len(asked))]
    shortest, longest = map(math.log, LENGTH)
    lengths = np.exp(generator.uniform(shortest, longest, len(asked))) * FPS
    starts = np.sort(generator.uniform(0, frames - lengths.sum(), len(asked))) + np.cumsum(lengths) - lengths
    spans = np.round(np.stack((starts, starts + lengths), axis=1), DECIMALS)
    events, queries = zip(*asked, strict=True)
    return Scene(video, frames, tuple((float(start), float(end)) for start, end in spans), events, queries)


def generate(videos: int, seed: int) -> dict[str, str]:
    """Returns the annotation files of at least 3 generated videos: name to text, 60 % train, 20 % val, 20 % test."""
    scenes = [draw_scene(f"T{number:04d}", seed) for number in range(videos)]
    val, test = (max(1, round(share * videos)) for share in (VAL_SHARE, TEST_SHARE))
    parts = {"train": scenes[: -val - test], "val": scenes[-val - test : -test], "test": scenes[-test:]}
    return {f"{split}.json": json.dumps({s.video: _entry(s) for s in part}) + "\n" for split, part in parts.items()}


def _entry(scene: Scene) -> dict[str, object]:
    return {"timestamps": scene.spans, "sentences": scene.queries, "fps": FPS, "num_frames": scene.frames}
