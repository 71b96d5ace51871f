"""Drawn scenes: things of a colour and a shape to which events happen, one after the other, in a video of its own."""

from dataclasses import dataclass

import numpy as np

from cdn_tune.data.planted.signal import generator_for

COLOURS = ("red", "blue", "green", "yellow")
SHAPES = ("square", "circle", "triangle", "star")
VERBS = ("enters", "leaves", "turns", "sits on")

THINGS = 3  # in a video; each has a place on the floor, from left to right
EVENTS = 5  # in a video
FPS = 8  # frames per second; all times are whole frames
# Uneven enough that where the events of a video lie cannot be guessed.
LENGTH = (2.5, 5.5)  # seconds of an event
PAUSE = (0.4, 3.5)  # seconds before, between and after events
AGAIN = 0.6  # how often what has happened before happens again where it can, so that only the order tells them apart


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing, by which a sentence names it. No two of a video share a colour or a shape."""

    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Happening:
    """What happens in an event: a verb, to which thing, and on which other one (None where the verb has no other)."""

    verb: str
    thing: Thing
    other: Thing | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A happening from start to end, in seconds."""

    what: Happening
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A video before it is rendered.

    Attributes:
        video: Its name.
        duration: Its length, in seconds.
        things: Its things, each at the place of its number.
        there: The things that are there from the start.
        events: Its events in order of their start; none overlap.
        hue: The colour of its background, within [0, 1].
    """

    video: str
    duration: float
    things: tuple[Thing, ...]
    there: frozenset[Thing]
    events: tuple[Event, ...]
    hue: float

    def times(self, what: Happening) -> list[Event]:
        """Returns the events in which something happens."""
        return [event for event in self.events if event.what == what]


def draw_scene(video: str, seed: int) -> Scene:
    """Returns the scene of a video; it depends on the name and the seed alone."""
    generator = generator_for(seed, "drawn", video)
    colours, shapes = (generator.choice(names, THINGS, replace=False) for names in (COLOURS, SHAPES))
    things = tuple(Thing(str(colour), str(shape)) for colour, shape in zip(colours, shapes, strict=True))
    there = frozenset(things[place] for place in generator.permutation(THINGS)[: 1 + generator.integers(2)])
    happenings = _happenings(things, there, generator)
    lengths = np.round(generator.uniform(*LENGTH, EVENTS) * FPS)
    pauses = np.round(generator.uniform(*PAUSE, EVENTS + 1) * FPS)
    ends = np.cumsum(lengths + pauses[:-1])
    spans = zip((ends - lengths) / FPS, ends / FPS, strict=True)
    events = tuple(Event(what, float(start), float(end)) for what, (start, end) in zip(happenings, spans, strict=True))
    return Scene(video, float(ends[-1] + pauses[-1]) / FPS, things, there, events, float(generator.random()))


def possible(things: tuple[Thing, ...], there: frozenset[Thing]) -> dict[str, list[Happening]]:
    """Returns what can happen next by verb, given which of a video's things are there."""
    present = [thing for thing in things if thing in there]
    return {
        "enters": [Happening("enters", thing) for thing in things if thing not in there],
        "leaves": [Happening("leaves", thing) for thing in present],
        "turns": [Happening("turns", thing) for thing in present],
        "sits on": [Happening("sits on", a, b) for a in present for b in present if a != b],
    }


def after(what: Happening, there: frozenset[Thing]) -> frozenset[Thing]:
    """Returns which things are there once something has happened."""
    return {"enters": there | {what.thing}, "leaves": there - {what.thing}}.get(what.verb, there)


def _happenings(things: tuple[Thing, ...], there: frozenset[Thing], generator: np.random.Generator) -> list[Happening]:
    """Returns what happens in order: all of it different, but for one that may happen again after something else."""
    found: list[Happening] = []
    while len(found) < EVENTS:
        next_ = possible(things, there).values()
        again = [what for each in next_ for what in each if what in found[:-1]]
        if again and len(set(found)) == len(found) and generator.random() < AGAIN:
            options = [again]
        else:
            new = ([what for what in each if what not in found] for each in next_)
            options = [each for each in new if each]  # never none: there are too few events for that
        choices = options[int(generator.integers(len(options)))]
        found.append(choices[int(generator.integers(len(choices)))])
        there = after(found[-1], there)
    return found
