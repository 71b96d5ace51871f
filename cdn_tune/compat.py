"""The supported versions of dependencies, and the few things taken from their inside, each with a way without.

Everything else is public, so that several versions work. A thing in `EXCEPTIONS` has no public way; its function
documents why it is needed and what is lost without it, and goes on without it where a version has it no longer.
"""

import logging
import re
from importlib import metadata
from typing import Any

from cdn_tune.errors import ConfigError

SUPPORTED = {"ray": ("2.53", "3"), "optuna": ("4.3", "6"), "torch": ("2.6", None)}  # from, below; as in pyproject.toml
EXCEPTIONS = ("live_actors", "free_resources")
_LOGGER = logging.getLogger(__name__)


def check_versions() -> None:
    """Checks that the installed packages are of supported versions; imports none of them.

    Raises:
        ConfigError: If one is missing or of another version; names both.
    """
    for name, (oldest, below) in SUPPORTED.items():
        wanted = f">={oldest}" + (f",<{below}" if below else "")
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ConfigError(f"{name} is not installed; pip install '{name}{wanted}'") from None
        if _numbers(found) < _numbers(oldest) or (below is not None and _numbers(found) >= _numbers(below)):
            raise ConfigError(
                f"{name} {found} is installed, and this cdn-tune runs with {name}{wanted}; pip install '{name}{wanted}'"
            )


def live_actors() -> list[dict[str, Any]]:
    """Returns the cluster's actors that are not dead, as the GCS records them.

    Why: the audit of a search names actors that it has left. The public list, ``ray.util.state.list_actors``, is the
    dashboard's, and a Ray started by cdn-tune or under Slurm runs without one.
    Without it: actors left on other nodes are not named; processes and placement groups still are.
    """
    try:
        from ray._private.state import state

        return [actor for actor in state.actor_table(None).values() if actor["State"] != "DEAD"]
    except (ImportError, AttributeError, TypeError, KeyError) as error:
        _log_missing("live_actors", error)
        return []


def free_resources() -> dict[str, dict[str, float]]:
    """Returns what is free on each node now, by the node's id.

    Why: ``cdn-tune cluster status`` shows where there is room. ``ray.available_resources`` is public, but a sum.
    Without it: the table shows nothing as free, and "fit now" counts no trials.
    """
    try:
        from ray._private.state import state

        return {node: dict(free) for node, free in state.available_resources_per_node().items()}
    except (ImportError, AttributeError, TypeError) as error:
        _log_missing("free_resources", error)
        return {}


def _log_missing(name: str, error: Exception) -> None:
    _LOGGER.warning("%s cannot be read from this version (%s); going on without", name, error)


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version: (2, 53) of ``2.53.0rc1``."""
    return tuple(int(number) for number in (*re.findall(r"\d+", version)[:2], "0"))[:2]
