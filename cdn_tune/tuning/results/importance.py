"""How much each parameter mattered, by PED-ANOVA or fANOVA over the finished trials of a search."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from cdn_tune.errors import ConfigError, RunError
from cdn_tune.tuning.results.record import Record, quiet
from cdn_tune.tuning.study.ranking import own

EvaluatorName = Literal["ped-anova", "fanova"]
EVALUATORS: tuple[EvaluatorName, ...] = ("ped-anova", "fanova")
ENOUGH = 20  # finished trials below which importances are little more than chance


@dataclass(frozen=True)
class Importance:
    """How much the parameters mattered for an objective."""

    evaluator: EvaluatorName
    objective: str
    trials: int  # complete trials that it was computed from
    shares: dict[str, float]  # by parameter, the greatest first; they add up to 1, or are all 0 if none mattered
    sampled: dict[str, int]  # in how many of the trials each of them was sampled
    left_out: dict[str, str]  # parameters that were not judged, and why

    @property
    def is_uncertain(self) -> bool:
        """Whether there were few trials."""
        return self.trials < ENOUGH


def importance(record: Record, evaluator: EvaluatorName = "ped-anova") -> Importance:
    """Computes parameter importances for the first objective.

    PED-ANOVA compares how the best tenth of the trials and all of them are distributed (Watanabe et al., 2023; with
    conditional parameters, 2026); fANOVA decomposes the variance of a random forest's prediction (Hutter et al., 2014)
    and only judges parameters that every trial has. Pruned trials are left out: they were not measured to the end.

    Raises:
        RunError: If fewer than two trials are complete, or no parameter can be judged.
        ConfigError: If fANOVA's library is missing.
    """
    trials = [_first_objective(trial) for trial in own(record.entries) if _is_complete(trial)]
    if len(trials) < 2:
        raise RunError(
            f"{record.run}: {len(trials)} of its trials {'is' if len(trials) == 1 else 'are'} complete, and importance "
            "needs two (better twenty); wait for them, or go on with --trials N"
        )
    sampled = Counter(name for trial in trials for name in trial.params)
    left_out = {
        name: "never sampled in a complete trial" for name in record.space.parameters if not _any(name, sampled)
    }
    chosen: list[str] = []
    for name, count in sampled.items():
        distributions = [trial.distributions[name] for trial in trials if name in trial.distributions]
        if all(distribution.single() for distribution in distributions):
            left_out[name] = "has one value only"
        elif evaluator == "fanova" and count < len(trials):
            left_out[name] = f"conditional: sampled in {count} of {len(trials)} trials; ped-anova judges it"
        else:
            chosen.append(name)
    if not chosen:
        raise RunError(f"{record.run}: no parameter varies in all its complete trials; there is nothing to judge")
    shares = _evaluate(record, trials, chosen, evaluator)
    objective = next(iter(record.objectives))
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return Importance(evaluator, objective, len(trials), ordered, {name: sampled[name] for name in ordered}, left_out)


def _evaluate(
    record: Record, trials: list[FrozenTrial], params: list[str], evaluator: EvaluatorName
) -> dict[str, float]:
    try:
        with quiet():  # reported in our own words: few trials, conditional parameters
            study = optuna.create_study(direction=record.directions[0])
            study.add_trials(trials)
            judge = FanovaImportanceEvaluator(seed=0) if evaluator == "fanova" else PedAnovaImportanceEvaluator()
            found = get_param_importances(study, evaluator=judge, params=params, normalize=False)
        total = sum(found.values())
        return {name: share / total if total > 0 else 0.0 for name, share in found.items()}
    except ImportError:
        raise ConfigError(
            "--importance fanova: needs scikit-learn; install it with pip install 'cdn-tune[fanova]', or use ped-anova"
        ) from None


def _is_complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and bool(trial.values) and math.isfinite(trial.values[0])


def _first_objective(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(value=trial.values[0], params=trial.params, distributions=trial.distributions)


def _any(key: str, names: Counter[str]) -> bool:
    return any(name == key or name.startswith(f"{key}[") for name in names)
