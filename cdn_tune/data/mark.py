"""The mark of data that are not real: it goes with whatever is trained or measured on them."""

from typing import Literal

DRAWN: Literal["drawn videos"] = "drawn videos"

# Whether data are planted: true of features that were made up; of those of videos that were drawn it says so.
Mark = bool | Literal["drawn videos"]


def to_mark(value: object) -> Mark:
    """Returns the mark that a record holds: `DRAWN` for that text, else whether the value is true."""
    return DRAWN if isinstance(value, str) and value == DRAWN else bool(value)


def is_mark(value: object) -> bool:
    """Returns whether a value of a file is a mark."""
    return isinstance(value, bool) or (isinstance(value, str) and value == DRAWN)


def marked(mark: Mark) -> str:
    """Returns what the data are, in words: ``planted data``, ``drawn videos`` or ``real data``."""
    return DRAWN if mark == DRAWN else "planted data" if mark else "real data"
