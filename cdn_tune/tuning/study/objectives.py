"""What a search optimises: the val metric that chooses epochs, and what else is asked of the model it leaves."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial

from cdn_tune.config import Experiment, SearchSpace
from cdn_tune.config.space import MEASURED_COSTS


class Objectives:
    """The objectives of a search, in order.

    All are values of one model, that of the trial's best epoch by the first objective.

    Args:
        space: Names them.
        base: Names the val metric that chooses epochs, which is the first.
    """

    def __init__(self, space: SearchSpace, base: Experiment) -> None:
        self.names = tuple(objective.metric for objective in space.objectives) or (base.eval.metric,)
        asked = {objective.metric: objective.direction for objective in space.objectives}
        self.directions = [
            asked.get(name) or ("minimize" if name in MEASURED_COSTS else "maximize") for name in self.names
        ]

    def values(self, trial: FrozenTrial, reached: float) -> dict[str, float | None]:
        """Returns the objectives of a trial by name.

        Args:
            trial: As recorded.
            reached: Its best val metric.
        """
        first, *others = self.names
        return {first: reached, **{name: _recorded(trial.user_attrs, name) for name in others}}


def _recorded(attributes: dict[str, Any], name: str) -> float | None:
    found = attributes.get(name) if name in MEASURED_COSTS else attributes.get("val", {}).get(name)
    return None if found is None else float(found)
