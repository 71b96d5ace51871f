"""``evaluation.json``, a run's result on the test split, read without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdn_tune.data.files import brief, read_json
from cdn_tune.errors import RunError

EVALUATION, EVALUATION_PUBLISHED = "evaluation.json", "evaluation-published.json"


def read_evaluation(run: Path) -> dict[str, Any] | None:
    """Returns the entries of a run's ``evaluation.json``, whichever version wrote it; None before the first evaluation.

    Raises:
        RunError: If it is damaged.
    """
    path = run / EVALUATION
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({brief(error)}); evaluate the run again") from None
    return content if isinstance(content, dict) else {}


def plain_metrics(values: Any) -> dict[str, float]:
    """Returns which of an evaluation's metrics are numbers; of entries with an interval or spread, their middle."""
    found = {}
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            value = next((value[key] for key in ("value", "mean", "estimate") if key in value), None)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1:
            found[str(name)] = float(value)
    return found
