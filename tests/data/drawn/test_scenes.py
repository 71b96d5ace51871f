"""Drawn scenes and sentences: times, order, one answer each; independent of other videos."""

from __future__ import annotations

import re

from cdn_tune.data.drawn.scenes import (
    EVENTS,
    FPS,
    LENGTH,
    PAUSE,
    THINGS,
    VERBS,
    Event,
    Scene,
    after,
    draw_scene,
    possible,
)
from cdn_tune.data.drawn.sentences import Sentence, answers, ask
from cdn_tune.data.planted.signal import generator_for

SCENES = [draw_scene(f"D{number:04d}", seed) for seed in (0, 1) for number in range(100)]


def asked(scene: Scene) -> list[tuple[Sentence, Event]]:
    return ask(scene, generator_for(0, "sentences", scene.video))


def told(scene: Scene, sentence: str) -> list[tuple[float, float]]:
    """The spans that a sentence describes, by its words alone."""
    clauses = re.split(r" (before|after) ", sentence)

    def spans(clause: str) -> list[tuple[float, float]]:
        found = []
        for event in scene.events:
            names = [f"the {thing.colour} {thing.shape}" for thing in (event.what.thing, event.what.other) if thing]
            if clause == f" {event.what.verb} ".join(names) or clause == f"{names[0]} {event.what.verb}":
                found.append((event.start, event.end))
        return found

    if len(clauses) == 1:
        return spans(sentence)
    what, order, pivot = clauses
    pivots = spans(pivot)
    if order == "after":
        return [span for span in spans(what) if any(other[1] <= span[0] for other in pivots)]
    return [span for span in spans(what) if any(span[1] <= other[0] for other in pivots)]


def test_events_follow_one_another_within_the_video() -> None:
    for scene in SCENES:
        ends = [0.0, *(event.end for event in scene.events)]
        starts = [*(event.start for event in scene.events), scene.duration]
        assert len(scene.events) == EVENTS
        assert all(PAUSE[0] - 0.1 <= start - end <= PAUSE[1] + 0.1 for end, start in zip(ends, starts, strict=True))
        assert all(LENGTH[0] <= event.end - event.start <= LENGTH[1] for event in scene.events)
        assert all((time * FPS).is_integer() for time in (*ends, *starts))
        assert 15 <= scene.duration <= 45


def test_only_what_can_happen_happens() -> None:
    for scene in SCENES:
        there = scene.there
        for event in scene.events:
            assert event.what in possible(scene.things, there)[event.what.verb]
            there = after(event.what, there)
        assert all(a.what != b.what for a, b in zip(scene.events, scene.events[1:], strict=False))
        assert len({event.what for event in scene.events}) >= EVENTS - 1


def test_a_colour_or_a_shape_names_a_thing() -> None:
    for scene in SCENES:
        assert len({thing.colour for thing in scene.things}) == len({thing.shape for thing in scene.things}) == THINGS


def test_each_sentence_has_exactly_one_answer_in_its_video() -> None:
    for scene in SCENES:
        assert [event for _, event in asked(scene)] == list(scene.events)
        for sentence, event in asked(scene):
            assert told(scene, str(sentence)) == [(event.start, event.end)]


def test_all_is_asked_for_and_often_order_alone_tells() -> None:
    found = [(scene, sentence, event) for scene in SCENES for sentence, event in asked(scene)]
    assert {sentence.what.verb for _, sentence, _ in found} == set(VERBS)
    ordered = [each for each in found if each[1].order]
    assert {sentence.order for _, sentence, _ in ordered} == {"before", "after"}
    assert len(ordered) > len(found) / 2
    repeated = [each for each in ordered if len(answers(Sentence(each[1].what), each[0])) > 1]
    assert len(repeated) > len(found) / 4
    for scene, sentence, event in repeated:  # the other order asks for another event
        other = "after" if sentence.order == "before" else "before"
        assert event not in answers(Sentence(sentence.what, other, sentence.pivot), scene)
    turned = [(scene, s, event) for scene, s, event in ordered if s.pivot and len(scene.times(s.what)) == 1]
    for scene, sentence, event in turned:  # so does the sentence with its clauses exchanged
        assert sentence.pivot
        assert answers(Sentence(sentence.pivot, "before", sentence.what), scene) != [event]


def test_a_scene_depends_on_its_name_and_the_seed_alone() -> None:
    assert draw_scene("D0007", 0) == SCENES[7] != draw_scene("D0007", 1)
