"""Generated annotations: videos with a few events each, in the files of Charades-STA."""

import csv
import io
from dataclasses import dataclass

import numpy as np

from cdn_tune.data.charades import COLUMNS
from cdn_tune.data.planted.grammar import ACTIONS, Event, draw_event, sentence
from cdn_tune.data.planted.signal import generator_for

TEST_SHARE = 0.2
ROOMS = ("Kitchen", "Bedroom", "Living room", "Hallway", "Laundry room")

# Every video opens with an event near its start, so that a constant answer has something to hit; the others lie
# anywhere. Their lengths (shares of the video) and permitted overlap put the best constant answer near R1@0.5 = 0.35.
OPENING_LENGTH = (0.30, 0.40)
LENGTH = (0.20, 0.40)
MAX_OVERLAP = 0.25
TRIES = 100


@dataclass(frozen=True, slots=True)
class Scene:
    """A generated video: its events with their spans, in seconds to one decimal, in order of their start."""

    video: str
    duration: float
    spans: tuple[tuple[float, float], ...]
    events: tuple[Event, ...]
    queries: tuple[str, ...]


def draw_spans(count: int, generator: np.random.Generator) -> list[tuple[float, float]]:
    """Returns up to `count` spans as shares of a video, sorted; no two have an IoU of `MAX_OVERLAP` or more."""
    spans: list[tuple[float, float]] = []
    for _ in range(TRIES):
        if len(spans) == count:
            break
        if spans:
            length = generator.uniform(*LENGTH)
            start = generator.uniform(0, 1 - length)
        else:
            length, start = generator.uniform(*OPENING_LENGTH), max(0.0, generator.normal(0, 0.04))
        span = (float(start), float(start + length))
        if all(_iou(span, other) < MAX_OVERLAP for other in spans):
            spans.append(span)
    return sorted(spans)


def _iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def draw_scene(video: str, seed: int) -> Scene:
    """Returns the scene of a video; it depends on the name and the seed alone. No two events of it are the same."""
    generator = generator_for(seed, "scene", video)
    duration = round(float(np.clip(generator.normal(30, 6), 15, 50)), 2)
    spans = draw_spans(3 + int(generator.integers(2)), generator)
    events: list[Event] = []
    while len(events) < len(spans):
        if (event := draw_event(generator)) not in events:
            events.append(event)
    queries = tuple(sentence(event, end - start, generator) for event, (start, end) in zip(events, spans, strict=True))
    seconds = tuple((round(start * duration, 1), round(end * duration, 1)) for start, end in spans)
    return Scene(video, duration, seconds, tuple(events), queries)


def generate(videos: int, seed: int) -> dict[str, str]:
    """Returns the annotation files of at least 2 generated videos: name to text, 80 % train, 20 % test."""
    scenes = [draw_scene(f"P{number:04d}", seed) for number in range(videos)]
    test = max(1, round(TEST_SHARE * videos))
    files = {}
    for split, part in (("train", scenes[:-test]), ("test", scenes[-test:])):
        files[f"charades_sta_{split}.txt"] = "".join(_lines(scene) for scene in part)
        files[f"Charades_v1_{split}.csv"] = _table(part)
    return files


def _lines(scene: Scene) -> str:
    rows = zip(scene.spans, scene.queries, strict=True)
    return "".join(f"{scene.video} {start} {end}##{query}\n" for (start, end), query in rows)


def _table(scenes: list[Scene]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for scene in scenes:
        things = ";".join(sorted({event.thing for event in scene.events}))
        rows = zip(scene.events, scene.spans, strict=True)
        actions = ";".join(f"c{event.action:03d} {start:.2f} {end:.2f}" for event, (start, end) in rows)
        script = " ".join(query.capitalize() for query in scene.queries)
        summary = f"In order, {'; '.join(f'{ACTIONS[event.action][0]} {event.thing}' for event in scene.events)}"
        room = ROOMS[scene.events[0].action % len(ROOMS)]
        facts = (room, 7, 7, "Yes", script, things, summary, actions, f"{scene.duration:.2f}")
        writer.writerow((scene.video, "P", *facts))
    return text.getvalue()
