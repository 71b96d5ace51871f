"""When a checkpoint is due: once the last one is paid for."""

import pytest

from cdn_tune.training.runs.pace import Pace


def test_a_write_is_due_after_twenty_times_as_long_as_the_last_took() -> None:
    pace = Pace("auto", size=1e9, now=100.0)  # 10 s by guess
    assert not pace.is_due(299.0)
    assert pace.is_due(300.0)
    pace.begins()
    assert not pace.is_due(1e9), "one is under way"
    pace.wrote(5.0, now=305.0)
    assert not pace.is_due(404.0)
    assert pace.is_due(405.0)


def test_within_an_epoch_it_is_due_after_half_an_hour_at_least() -> None:
    pace = Pace("auto", size=1e9, now=0.0)
    assert not pace.is_due(1799.0, within=True)
    assert pace.is_due(1800.0, within=True)
    pace.wrote(100.0, now=1900.0)
    assert not pace.is_due(1900.0 + 1999.0, within=True)
    assert pace.is_due(1900.0 + 2000.0, within=True)


def test_every_epoch_or_after_so_many_minutes() -> None:
    epoch, minutes = Pace("epoch", size=1e12, now=0.0), Pace(2.0, size=1e12, now=0.0)
    assert epoch.is_due(0.0)
    assert not epoch.is_due(1e9, within=True)
    for within in (False, True):
        assert not minutes.is_due(119.0, within)
        assert minutes.is_due(120.0, within)


def test_the_bytes_a_second_of_a_long_training() -> None:
    assert Pace.rate("auto", size=4e9, seconds=15.0, epoch=60.0) == pytest.approx(4e9 / 315)
    assert Pace.rate("auto", size=4e9, seconds=1.0, epoch=60.0) == pytest.approx(4e9 / 60)
    assert Pace.rate("epoch", size=4e9, seconds=15.0, epoch=60.0) == pytest.approx(4e9 / 60)
    assert Pace.rate(2.0, size=4e9, seconds=15.0, epoch=60.0) == pytest.approx(4e9 / 120)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 60.0])
def test_writing_takes_a_twentieth_of_the_time(seconds: float) -> None:
    pace, now, written = Pace("auto", size=0, now=0.0), 0.0, 0.0
    while now < 1000 * seconds:
        now += seconds / 7
        if pace.is_due(now):
            pace.begins()
            now, written = now + seconds, written + seconds
            pace.wrote(seconds, now)
    assert 0.04 < written / now <= 0.051
