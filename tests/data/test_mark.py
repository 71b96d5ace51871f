"""The mark of data that are not real, as records hold it and as it is told."""

from __future__ import annotations

import pytest

from cdn_tune.data.mark import DRAWN, is_mark, marked, to_mark


@pytest.mark.parametrize(
    ("held", "mark", "told"),
    [
        (True, True, "planted data"),
        (False, False, "real data"),
        (None, False, "real data"),
        (DRAWN, DRAWN, "drawn videos"),
        (2, True, "planted data"),
        ("anything", True, "planted data"),
        (["drawn videos"], True, "planted data"),
    ],
)
def test_a_record_of_any_version_is_read(held: object, mark: object, told: str) -> None:
    assert to_mark(held) == mark
    assert marked(to_mark(held)) == told
    assert is_mark(to_mark(held))


def test_nothing_else_is_a_mark() -> None:
    assert not any(is_mark(value) for value in (None, 1, 0.0, "", "planted", ["drawn videos"], {}))
