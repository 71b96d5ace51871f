"""The grammar of generated queries: who does what to which thing, where and for how long, in an indoor scene."""

from dataclasses import dataclass

import numpy as np

SUBJECTS = ("a person", "the person", "person", "someone", "a man", "a woman")

THINGS = {
    "portable": ("cup", "bag", "box", "book", "pillow", "blanket", "towel", "phone", "camera", "broom", "shoe", "vase"),
    "opening": ("door", "window", "cupboard", "drawer", "wardrobe", "laptop"),
    "edible": ("sandwich", "apple", "cookie", "soup"),
    "surface": ("table", "mirror", "floor", "shelf", "sink"),
    "wearable": ("jacket", "sweater", "hat"),
}

# Verb, the groups of things it goes with, and what may follow the thing.
ACTIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("takes", ("portable", "edible", "wearable"), ("from the kitchen", "from a chair")),
    ("holds", ("portable", "edible", "wearable"), ("in one hand", "by the bed")),
    ("throws", ("portable", "wearable"), ("on the sofa", "to the other side")),
    ("carries", ("portable", "edible", "wearable"), ("down the stairs", "into the hallway")),
    ("drops", ("portable", "edible", "wearable"), ("by the bed",)),
    ("lifts", ("portable", "wearable"), ("in one hand",)),
    ("hides", ("portable", "edible", "wearable"), ("under the bed", "behind the sofa")),
    ("inspects", ("portable", "opening", "edible", "surface", "wearable"), ()),
    ("opens", ("opening",), ("in the hallway",)),
    ("closes", ("opening",), ("in the hallway",)),
    ("locks", ("opening",), ()),
    ("fixes", ("portable", "opening", "surface"), ()),
    ("paints", ("opening", "surface"), ()),
    ("cleans", ("portable", "opening", "surface"), ("with some water",)),
    ("dries", ("portable", "surface", "wearable"), ()),
    ("touches", ("portable", "opening", "surface", "wearable"), ("with one hand",)),
    ("photographs", ("portable", "opening", "edible", "surface", "wearable"), ()),
    ("measures", ("opening", "surface"), ()),
    ("eats", ("edible",), ("on the sofa",)),
    ("cooks", ("edible",), ("in the kitchen",)),
    ("smells", ("edible", "wearable"), ()),
    ("shares", ("edible",), ()),
    ("wears", ("wearable",), ()),
    ("folds", ("wearable",), ("on the bed",)),
    ("washes", ("portable", "surface", "wearable", "edible"), ("in the kitchen",)),
)

BRIEF = ("", "", "", "quickly", "for a moment")
LONG = ("", "", "", "slowly", "for a while")
LONG_SHARE = 0.3
PLACE_SHARE = 0.25

# Words without a content of their own: they are not planted in the features (see signal.py).
_UNPLANTED = """
    a an the this that these those some another other their his her its it he she they them him person persons people
    someone somebody man woman guy girl boy lady one two is are was be been being am 's do does did has have had 've 're
    then and or but while as so before after again at by for from in into of off on onto out over through to toward
    towards under up down with without behind beside near who which what where when begins begin starts start started
    starting still quickly slowly moment side hand all there very themselves himself herself
"""
STOPWORDS = frozenset(_UNPLANTED.split())


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens: the verb and the thing tell events of a video apart."""

    action: int
    thing: str


def draw_event(generator: np.random.Generator) -> Event:
    """Returns a random event: an action, then a thing it goes with."""
    action = int(generator.integers(len(ACTIONS)))
    things = [thing for group in ACTIONS[action][1] for thing in THINGS[group]]
    return Event(action, things[int(generator.integers(len(things)))])


def sentence(event: Event, share: float, generator: np.random.Generator) -> str:
    """Returns a query for an event; its adverb depends on the share of the video that the event takes."""

    def pick(options: tuple[str, ...]) -> str:
        return options[int(generator.integers(len(options)))]

    verb, _, places = ACTIONS[event.action]
    article = pick(("a", "the"))
    if article == "a" and event.thing[0] in "aeiou":
        article = "an"
    place = pick(places) if places and generator.random() < PLACE_SHARE else ""
    parts = (pick(LONG if share > LONG_SHARE else BRIEF), pick(SUBJECTS), verb, article, event.thing, place)
    return " ".join(part for part in parts if part) + "."
