"""The tree of errors in the docstring is the one in the code."""

import re

from cdn_tune import errors
from cdn_tune.data.videos.backbones import WindowError
from cdn_tune.training.object_store.trial_sync import Superseded
from cdn_tune.tuning.storage.check import UnusableStudy

_LINE = re.compile(r"^ {4}([│├└─ ]*)(\w+) +([12]) ", re.MULTILINE)


def tree(kind: type[errors.CdnTuneError], depth: int = 0) -> dict[str, tuple[int, int]]:
    """Depth and exit code of an error class and of all below it."""
    found = {kind.__name__: (depth, kind.exit_code)}
    for below in kind.__subclasses__():
        if below.__module__.startswith("cdn_tune."):
            found |= tree(below, depth + 1)
    return found


def test_the_docstring_shows_every_error_in_its_place_with_its_exit_code() -> None:
    assert issubclass(Superseded, errors.RunError)
    assert issubclass(UnusableStudy, errors.RunError)
    assert issubclass(WindowError, errors.ConfigError)
    drawn = {name: (len(lines) // 4, int(code)) for lines, name, code in _LINE.findall(errors.__doc__ or "")}
    assert {"CdnTuneError": (0, 1)} | drawn == tree(errors.CdnTuneError)
