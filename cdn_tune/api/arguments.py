"""Checks of arguments, whose errors are one line each, as those of the command line."""

import os
from pathlib import Path
from typing import Any

from cdn_tune.config.yaml import shown
from cdn_tune.errors import ConfigError

PathLike = str | os.PathLike[str]


def check_counts(least: int = 1, **values: Any) -> None:
    """Raises a `ConfigError` if one of some arguments is neither None nor a whole number of at least `least`."""
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ConfigError(f"{name}={shown(value)} is wrong: give a whole number from {least}")


def check_callbacks(**functions: Any) -> None:
    """Raises a `ConfigError` if one of some arguments is neither None nor a function."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ConfigError(f"{name}={shown(function)} is wrong: give a function of one argument")


def check_choice(choices: tuple[str, ...], **values: Any) -> None:
    """Raises a `ConfigError` if one of some arguments is none of the choices."""
    for name, value in values.items():
        if value not in choices:
            raise ConfigError(f"{name}={shown(value)} is wrong: give {' or '.join(choices)}")


def path_of(path: Any, name: str) -> Path:
    """Returns a path, or a URL as one; raises a `ConfigError` that names the argument if it is neither."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigError(f"{name}={shown(path)} is wrong: give a path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name}={shown(path)} begins with the name of no user; write the path out") from None
