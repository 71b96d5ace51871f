"""The arguments of the Python API: their types are checked, and errors name them as they are called there."""

import errno
import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cdn_tune.config.yaml import shown
from cdn_tune.errors import CdnTuneError, ConfigError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# A text among the annotations is what an error asks for.
Count = Annotated[int, Field(ge=1), "a whole number from 1"]
CountOrNone = Annotated[int, Field(ge=0), "a whole number from 0"]
PathLike = Annotated[str | os.PathLike[str], "a path"]
Paths = Annotated[Sequence[PathLike], "a list of run folders"]
_WORDS = {bool: "True or False", str: "a text", int: "a whole number", float: "a number", Path: "a path"}
_READ = ("experiment", "space", "overrides", "settings")  # `config.load` tells what is wrong with these
# Options of the command line with other names, and arguments of functions that are called before or instead.
_RENAMED = {"from": "start", "set": "settings", "export-format": "formats"}
_ELSEWHERE = ("run", "storage")
# Commands stay as they are; of an option, what follows is its value if it looks like one.
_OPTION = re.compile(r"cdn-tune [^;,]*|(?<![\w-])--([a-z]+(?:-[a-z]+)*)(?: (?=[A-Z\d]|[^\s=]*[/.+]\w[^\s=]*(?:\s|$)))?")


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Returns a function whose arguments are checked by their annotations, and whose errors name them.

    The function itself may be shared with the command line, so that its errors name options: ``--add-trials N`` becomes
    ``add_trials=N``.
    """
    signature = inspect.signature(function)
    names = {*signature.parameters, *_ELSEWHERE}

    @functools.cache  # when it is first needed: importing stays quick
    def types() -> dict[str, tuple[Any, TypeAdapter[Any]]]:
        given = [each.name for each in signature.parameters.values() if each.annotation is not inspect.Parameter.empty]
        hints = get_type_hints(function, include_extras=True) if given else {}
        config = ConfigDict(arbitrary_types_allowed=True)
        return {name: (hints[name], TypeAdapter(hints[name], config=config)) for name in given if name not in _READ}

    @functools.wraps(function)
    def call(*positional: Arguments.args, **named: Arguments.kwargs) -> Result:
        for name, value in signature.bind(*positional, **named).arguments.items():
            if name in types():
                _check(name, value, *types()[name])
        try:
            return function(*positional, **named)
        except CdnTuneError as error:
            error.args = tuple(in_python(each, names) if isinstance(each, str) else each for each in error.args)
            raise
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise ConfigError(f"{str(error.filename)[:200]}: {error.strerror}; give another path") from None

    return call


def path_of(path: str | os.PathLike[str], name: str) -> Path:
    """Returns a path, or a URL as one; raises a `ConfigError` that names the argument if it can be neither."""
    told = f"{name}={shown(os.fspath(path))}"
    try:
        found = Path(path).expanduser()
        if not os.fspath(path) or "\0" in os.fspath(path):
            raise ConfigError(f"{told} is wrong: give a path")
    except RuntimeError:
        raise ConfigError(f"{told} begins with the name of no user; write the path out") from None
    return found


def in_python(text: str, names: Collection[str]) -> str:
    """Returns an error of the command line in which options are arguments, as far as they are among these names."""

    def named(found: re.Match[str]) -> str:
        name = _RENAMED.get(found[1] or "", found[1] or "").replace("-", "_")
        if name not in names:
            return found[0]
        return f"{name}=" if found[0].endswith(" ") else name

    return _OPTION.sub(named, text)


def _check(name: str, value: Any, hint: Any, adapter: TypeAdapter[Any]) -> None:
    words = _words(hint)
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        raise ConfigError(f"{name}={shown(value)} is wrong: give {words}") from None
    if "a path" in words and isinstance(value, str | os.PathLike):
        path_of(value, name)


def _words(hint: Any) -> str:
    """Returns in words what a type takes, but for None."""
    said = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, str)]
    if said or hint in _WORDS:
        return said[0] if said else _WORDS[hint]
    kind, parts = get_origin(hint), [each for each in get_args(hint) if each is not NoneType]
    if kind is Literal:
        return " or ".join(map(str, parts))
    if kind is Sequence:
        return f"a list of {_words(parts[0])}"
    if kind is Mapping:
        return "a mapping"
    if kind is Callable:
        return "a function of one argument"
    if Path in parts:
        return _WORDS[Path]  # whatever else
    return " or ".join(map(_words, parts)) if parts else f"a {hint.__name__}"
