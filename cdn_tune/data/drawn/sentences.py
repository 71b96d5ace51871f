"""Sentences about drawn scenes: what happens, and before or after what else. The order of the words decides."""

from dataclasses import dataclass

import numpy as np

from cdn_tune.data.drawn.scenes import Event, Happening, Scene, Thing

ORDERS = ("before", "after")
PLAIN = 0.5  # how often an event that happens once in its video is asked for without telling when


@dataclass(frozen=True, slots=True)
class Sentence:
    """What happens; and, if `order` is no empty string, that it does before or after something that happens once."""

    what: Happening
    order: str = ""
    pivot: Happening | None = None

    def __str__(self) -> str:
        """Returns it as it is asked: ``the red square leaves after the blue circle turns``."""
        return _clause(self.what) if self.pivot is None else f"{_clause(self.what)} {self.order} {_clause(self.pivot)}"


def _clause(what: Happening) -> str:
    return f"{_named(what.thing)} {what.verb}" + (f" {_named(what.other)}" if what.other else "")


def _named(thing: Thing) -> str:
    return f"the {thing.colour} {thing.shape}"


def answers(sentence: Sentence, scene: Scene) -> list[Event]:
    """Returns the events of a scene that a sentence describes, in order."""
    found = scene.times(sentence.what)
    if sentence.pivot is None:
        return found
    pivots = scene.times(sentence.pivot)
    if sentence.order == "before":
        return [event for event in found if any(event.end <= pivot.start for pivot in pivots)]
    return [event for event in found if any(pivot.end <= event.start for pivot in pivots)]


def ask(scene: Scene, generator: np.random.Generator) -> list[tuple[Sentence, Event]]:
    """Returns a sentence for each event of a scene, with the event: its one answer."""
    happenings = {event.what for event in scene.events}
    once = sorted((what for what in happenings if len(scene.times(what)) == 1), key=str)
    asked = []
    for event in scene.events:
        options = [Sentence(event.what, order, pivot) for order in ORDERS for pivot in once if pivot != event.what]
        if event.what in once and generator.random() < PLAIN:
            options = [Sentence(event.what)]
        options = [option for option in options if answers(option, scene) == [event]]
        asked.append((options[int(generator.integers(len(options)))], event))
    return asked
