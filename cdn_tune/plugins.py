"""What installed packages add to the tables of this one, through entry points.

A package declares them in its ``pyproject.toml``; the name is the one that experiments and search spaces then use::

    [project.entry-points."cdn_tune.samplers"]
    ladder = "my_package.parts:LADDER"

They are imported when a table is gone through, or asked for a name that is none of this package's, in every process
that does so: the workers of a search, too. Configurations, checkpoints and run folders hold names alone.
"""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from typing import Any

_LOG = logging.getLogger(__name__)
_LOCK = threading.RLock()
_REASON = 200  # characters of an error
_found: dict[str, dict[str, Any]] = {}  # by group
_packages: dict[str, str] = {}  # the versions of those that have added something


def installed(group: str, taken: Collection[str], check: Callable[[str, Any], None]) -> Mapping[str, Any]:
    """Returns what the entry points of a group name, by their names; imported once per process.

    One that cannot be imported, or fails `check`, or whose name is taken, is named in one warning and left out.

    Args:
        group: Such as ``cdn_tune.samplers``.
        taken: Names that are given already.
        check: From a name and what it stands for; raises an error if that is no good.
    """
    with _LOCK:
        if group not in _found:
            found = _found[group] = {}  # known from here on: what is imported may itself ask
            for entry in sorted(metadata.entry_points(group=group)):
                try:
                    if entry.name in taken or entry.name in found:
                        raise ValueError("the name is taken; choose another")
                    value = entry.load()
                    check(entry.name, value)
                except (Exception, SystemExit) as error:
                    package = "" if entry.dist is None else f" of the package {entry.dist.name}"
                    reason = " ".join(str(error).split())[:_REASON] or type(error).__name__
                    _LOG.warning(
                        "entry point %s = %s (%s)%s is left out: %s", entry.name, entry.value, group, package, reason
                    )
                else:
                    found[entry.name] = value
                    if entry.dist is not None:
                        _packages[entry.dist.name] = entry.dist.version
        return _found[group]


def packages() -> dict[str, str]:
    """Returns the versions of the packages that have added something in this process, by name."""
    return dict(_packages)


def forget() -> None:
    """Has the next use of each table read the entry points anew, such as after a package was installed."""
    with _LOCK:
        _found.clear()
        _packages.clear()
