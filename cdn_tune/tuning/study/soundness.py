"""Whether a study holds what a search writes: it may have been altered by another program, or be a stranger's."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cdn_tune.config import Categorical, Experiment, SearchSpace
from cdn_tune.tuning.study.filtered_study import CONSTRAINT
from cdn_tune.tuning.study.ranking import (
    CONFIRMATION,
    CONFIRMS,
    FINISHED,
    PAUSED,
    PROMOTED,
    ROLE,
    SEED,
    Objectives,
    Role,
    role_of,
)
from cdn_tune.tuning.study.rungs import COMPARED
from cdn_tune.tuning.study.stopping_rules import QUERY_IOUS

_Test = tuple[str, Callable[[Any], bool]]  # what is expected, in words, and whether a value is that
_NUMBER: _Test = ("a number", lambda value: _is_number(value) and math.isfinite(value))
_MEASURED: _Test = ("a number", lambda value: _is_number(value))  # of a training, which may diverge
_COUNT: _Test = ("a whole number", lambda value: type(value) is int and value >= 0)
_TEXT: _Test = ("a text", lambda value: isinstance(value, str))
_TEXTS: _Test = ("texts", lambda value: _are(value, lambda each: isinstance(each, str)))
_STUDY: Mapping[str, _Test] = {  # attributes of a search
    "trials": _COUNT,
    "searched_seconds": _NUMBER,
    "objectives": _TEXTS,
    "unfit_nodes": _TEXTS,
    "run_id": ("a text", lambda value: value is None or isinstance(value, str)),
    "metric": _TEXT,
    "dataset": _TEXT,
    "unit": _TEXT,
    "gpus_per_trial": _NUMBER,
}
_TRIAL: Mapping[str, _Test] = {  # attributes of a trial
    **dict.fromkeys(("best_epoch", "epoch", "epochs", "steps", "retry_of", "copy_of", CONFIRMS, SEED), _COUNT),
    **dict.fromkeys((PAUSED, PROMOTED), _COUNT),
    **dict.fromkeys(("seconds", "latency_ms", "memory_gb", "parameters"), _NUMBER),
    **dict.fromkeys(("loss", "samples_per_second"), _MEASURED),
    **dict.fromkeys(("reason", "failure", "learned_from"), _TEXT),
    ROLE: (f"one of {', '.join(get_args(Role))}", lambda value: value in get_args(Role)),
    "val": ("numbers by metric", lambda value: isinstance(value, dict) and _are([*value.values()], _is_number)),
    "segments": ("[node, start, end] each", lambda value: _are(value, _is_segment)),
}


def check_study(
    space: SearchSpace,
    base: Experiment,
    entries: Sequence[FrozenTrial],
    directions: Sequence[StudyDirection],
    attributes: Mapping[str, Any],
) -> None:
    """Checks that a study can be read and gone on with.

    Args:
        space: What is searched.
        base: The base experiment under all fixed overrides.
        entries: All trials of the study, in its order.
        directions: Of its objectives.
        attributes: Of the search as a whole.

    Raises:
        ValueError: Names the first value that is of another kind.
    """
    found = [direction.name.lower() for direction in directions]
    if found != (expected := Objectives(space, base).directions):
        raise ValueError(f"its objectives are {', '.join(found)}, and the search's {', '.join(expected)}")
    _check("it", attributes, _STUDY)
    for place, trial in enumerate(entries):
        where = f"trial {trial.number}"
        if trial.number != place:
            raise ValueError(f"{where} is in place {place}; trials are numbered without gaps")
        _check(where, trial.user_attrs, _TRIAL)
        for key, value in trial.user_attrs.items():
            if key.startswith(f"{QUERY_IOUS}:"):
                _check(where, {key: value}, {key: _TEXT})
            if key.startswith(f"{COMPARED}:"):
                _check(where, {key: value}, {key: ("numbers", lambda held: _are(held, _is_number))})
        for key, value in trial.system_attrs.items():
            if key.startswith(CONSTRAINT):
                _check(where, {key: value}, {key: _NUMBER})
        if not isinstance(trial.system_attrs.get("fixed_params", {}), dict):
            raise ValueError(f"{where} holds fixed_params that are no mapping")
        if role_of(trial) == CONFIRMATION:
            of = trial.user_attrs.get(CONFIRMS, place)
            if SEED not in trial.user_attrs or of >= place or role_of(entries[of]) != "trial":
                raise ValueError(f"{where} confirms no trial, or under no seed")
        _check_params(where, trial, space)
        _check_values(where, trial, len(directions))


def _check_params(where: str, trial: FrozenTrial, space: SearchSpace) -> None:
    for name, value in trial.params.items():
        key, bracket, index = name.partition("[")
        parameter = space.parameters.get(key)
        if parameter is None or (bracket and not (index.endswith("]") and index[:-1].isdecimal())):
            raise ValueError(f"{where} holds a parameter {name[:80]}, which the search space does not have")
        numeric = not isinstance(parameter, Categorical)
        if numeric and not _NUMBER[1](value):
            raise ValueError(f"{where} holds {name}={_short(value)}, and a number is expected")


def _check_values(where: str, trial: FrozenTrial, objectives: int) -> None:
    moments = (trial.datetime_start, trial.datetime_complete)
    if any(moment is not None and (moment.tzinfo is not None or moment.year < 1970) for moment in moments):
        raise ValueError(f"{where} holds a time of another kind than Optuna writes")
    if trial.state in FINISHED and trial.datetime_complete is None:
        raise ValueError(f"{where} has ended, and holds no time of that")
    steps = trial.intermediate_values.items()
    if not all(type(step) is int and step >= 0 and _is_number(value) for step, value in steps):
        raise ValueError(f"{where} holds a reported value that is no number")
    values = trial.values if trial.state == TrialState.COMPLETE else []
    if values is None or (trial.state == TrialState.COMPLETE and len(values) != objectives):
        raise ValueError(f"{where} is complete, and holds {len(values or ())} of {objectives} values")
    if not all(map(_NUMBER[1], values)):
        raise ValueError(f"{where} is complete, and holds a value that is no number")


def _check(where: str, held: Mapping[str, Any], tests: Mapping[str, _Test]) -> None:
    for key, (expected, is_good) in tests.items():
        if key in held and not is_good(held[key]):
            raise ValueError(f"{where} holds {key}={_short(held[key])}, and {expected} is expected")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_segment(value: Any) -> bool:
    """Whether a value is where a trial ran: node, start and end in seconds since 1970; it may have no end yet."""
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[0], str) or not _NUMBER[1](value[1]):
        return False
    return value[2] is None or bool(_NUMBER[1](value[2]))


def _are(values: Any, is_good: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and all(map(is_good, values))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
