"""What is trained next: proposals of the sampler, each judged before it starts, and in the end confirmations."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.config.tables import resolve
from cdn_tune.tuning.storage.write_through import Ordered, WriteThrough
from cdn_tune.tuning.study.candidates import Candidates, cost
from cdn_tune.tuning.study.failures import LOST
from cdn_tune.tuning.study.filtered_study import CONSTRAINT, StoredStudy
from cdn_tune.tuning.study.ranking import (
    CONFIRMATION,
    CONFIRMS,
    COPY,
    REFUSED,
    ROLE,
    SEED,
    by_value,
    own,
    role_of,
)
from cdn_tune.tuning.study.samplers import build_sampler, is_exhausted

_MODELLED = 50  # refused proposals in a row after which points are drawn at random
_TRIES = 400  # and after which the search gives up
_SAME, _BROKEN = "same", "broken"


class Proposals:
    """Draws points from the sampler until one may start, and records all.

    Args:
        study: Where they are recorded.
        storage: Of the study.
        candidates: The points.
        entries: Those on record.
    """

    def __init__(
        self, study: StoredStudy, storage: WriteThrough, candidates: Candidates, entries: Iterable[FrozenTrial]
    ) -> None:
        self.is_exhausted = False  # whether every point of the space was tried
        self._study, self._candidates = study, candidates
        order = candidates.space.sampler.row.order
        self._best = None if order is None else Ordered(storage, resolve(order)).first
        entries = list(entries)
        self._proposed = sum(role_of(trial) != CONFIRMATION for trial in entries)
        self._known = {_key(trial.params): trial.number for trial in own(entries) if _would_repeat(trial)}
        used = {name for expression in candidates.space.expressions for name in expression.names}
        used |= {objective.metric for objective in candidates.space.objectives}
        self._costs = {"parameters"} | ({"memory_gb"} & used)

    def propose(self, memory_limit: float | None) -> int | str | None:
        """Returns the next trial's number; None if every point was tried; or why no proposal may start.

        `memory_limit` is an estimate, in GB, that is too much.
        """
        outcomes = []
        for tries in range(_TRIES):
            self._study.sampler = self._sampler(self._proposed, at_random=tries >= _MODELLED)
            if is_exhausted(self._study.sampler, self._study):
                self.is_exhausted = True
                return None
            with self._study.transaction():
                trial = self._study.ask()
                self._proposed += 1
                params = self._candidates.suggest(trial)
                outcome = self._admit(trial.number, params, memory_limit)
            if outcome is None:
                return trial.number
            outcomes.append(outcome)
            if outcome == _SAME and self._candidates.space.sampler.row.enumerates:
                break
        if _SAME in outcomes and (len(outcomes) < _TRIES or _BROKEN not in outcomes):
            self.is_exhausted = True
            return None
        last = self._study.trial(trial.number).user_attrs["reason"]
        return f"none of {_TRIES} proposals in a row may start; the last: {last}; loosen constraints or parameters"

    def take_up(self, trial: FrozenTrial, memory_limit: float | None) -> bool:
        """Completes the point of a trial that an earlier process has left; returns whether it may go on."""
        if trial.intermediate_values or role_of(trial) == CONFIRMATION:
            return True
        with self._study.transaction():
            params: Mapping[str, Any] = trial.params
            if not self._candidates.is_complete(params):
                self._study.sampler = self._sampler(self._proposed - 1)  # it was the last proposal
                params = self._candidates.suggest(optuna.Trial(self._study, self._study.trial_id(trial.number)))
            return self._admit(trial.number, params, memory_limit) is None

    def unconfirmed(self) -> list[tuple[FrozenTrial, int]]:
        """Returns the best trials by their own val metric, each with each seed under which it is to be trained again.

        Every trial has its first seed before any has its second: a search that a budget ends compares them fairly.
        """
        config = self._candidates.space.confirm
        entries = self._study.get_trials(deepcopy=False) if config.top else []
        best = [
            (trial, self._candidates.experiment(trial.params).further_seeds(config.seeds))
            for trial in by_value(entries)[: config.top]
        ]
        held = {
            (trial.user_attrs[CONFIRMS], trial.user_attrs[SEED]) for trial in entries if role_of(trial) == CONFIRMATION
        }
        pairs = [(trial, seeds[place]) for place in range(config.seeds) for trial, seeds in best]
        return [(trial, seed) for trial, seed in pairs if (trial.number, seed) not in held]

    def confirm(self, trial: FrozenTrial, seed: int, **attributes: Any) -> int:
        """Records, in one write, that a trial is trained again under a seed; returns the confirmation's number."""
        known = {key: value for key, value in trial.user_attrs.items() if key in self._costs}
        confirmation = create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**known, **attributes, ROLE: CONFIRMATION, CONFIRMS: trial.number, SEED: seed},
        )
        storage = self._study.storage
        return storage.get_trial(storage.create_new_trial(self._study.id_in_storage, confirmation)).number

    def _sampler(self, proposed: int, at_random: bool = False) -> optuna.samplers.BaseSampler:
        space = self._candidates.space
        if at_random and not space.sampler.row.enumerates:
            return RandomSampler(seed=(space.sampler.seed + 1_000_003 * proposed) % 2**32)
        return build_sampler(space, self._candidates, proposed, self._best)

    def _admit(self, number: int, params: Mapping[str, Any], memory_limit: float | None) -> str | None:
        """Judges a proposal and records the verdict; returns None if it may start."""
        verdict = self._candidates.judge(params, memory_limit)
        held = self._study.trial(number)
        for name, violation in verdict.violations.items():
            if CONSTRAINT + name not in held.system_attrs:
                self._study.set_constraint(number, name, violation)
        if verdict.reason is not None:
            self._study.set_attributes(number, {ROLE: REFUSED, "reason": f"refused: {verdict.reason}"})
            self._study.tell(number, state=TrialState.PRUNED)
            return _BROKEN
        earlier = self._known.get(_key(params), number)
        if earlier != number and "retry_of" not in held.user_attrs:
            self._copy(number, self._study.trial(earlier))
            return _SAME
        self._known[_key(params)] = number
        experiment = self._candidates.experiment(params)
        self._study.set_attributes(number, {name: cost(name, experiment) for name in sorted(self._costs)})
        return None

    def _copy(self, number: int, earlier: FrozenTrial) -> None:
        """Records a proposal that equals an earlier trial with that one's result, for the sampler to learn from."""
        self._study.set_attributes(
            number, {ROLE: COPY, "copy_of": earlier.number, "reason": f"equal to trial {earlier.number}"}
        )
        if earlier.state == TrialState.COMPLETE:
            self._study.tell(number, earlier.values)
            return
        if earlier.state != TrialState.PRUNED:  # running, or failed: there is nothing to learn yet
            self._study.tell(number, state=TrialState.FAIL)
            return
        for step, value in earlier.intermediate_values.items():
            self._study.report(number, step, value)
        self._study.tell(number, state=TrialState.PRUNED)


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def _would_repeat(trial: FrozenTrial) -> bool:
    """Whether a trial with the same parameters would end as this one: not so if a machine was lost."""
    return not (trial.state == TrialState.FAIL and trial.user_attrs.get("failure") == LOST)
