"""Lines about progress come at most once in some seconds."""

import pytest

from src.solver.pace import LONGEST_SILENCE, Pace


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("at_once", [True, False])
def test_the_first_line_comes_at_once_if_wanted(at_once):
    assert Pace(at_once=at_once, clock=Clock()).is_due() == at_once


def test_a_line_is_due_again_after_the_time():
    clock = Clock()
    pace = Pace(clock=clock)
    clock.now += LONGEST_SILENCE - 1
    assert not pace.is_due()
    clock.now += 1
    assert pace.is_due() and not pace.is_due()


def test_a_line_for_another_reason_starts_the_time_again():
    clock = Clock()
    pace = Pace(clock=clock)
    clock.now += LONGEST_SILENCE
    pace.restart()
    assert not pace.is_due()


def test_a_run_is_silent_for_at_most_half_a_minute():
    assert LONGEST_SILENCE <= 30
