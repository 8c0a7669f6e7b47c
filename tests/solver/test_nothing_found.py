"""A run that detects nothing although its loss decreases logs an explanation, once."""

import pytest

from src.solver.nothing_found import explain_nothing_found
from tests.solver.test_run_state import make_state


class Evaluator:
    def diagnose(self) -> str:
        return "all boxes are elsewhere"


def explained(caplog, losses=(9.0, 8.0, 7.0, 6.0), ap50=0.0) -> int:
    """Return how many times the explanation comes in a run of such epochs."""
    state = make_state()
    for epoch, loss in enumerate(losses):
        state.progress.epoch = epoch
        explain_nothing_found(state, loss, {"AP50": ap50}, Evaluator())
    return caplog.text.count(
        "nothing is detected although the loss decreases: all boxes are elsewhere"
    )


def test_it_comes_once_after_some_epochs(caplog):
    assert explained(caplog, losses=(9.0, 8.0, 7.0, 6.0, 5.0, 4.0)) == 1


@pytest.mark.parametrize(
    "run",
    [
        {"losses": (9.0, 8.0, 7.0)},
        {"losses": (9.0, 9.5, 9.6, 9.7)},
        {"ap50": 0.01},
    ],
    ids=str,
)
def test_it_does_not_come_early_nor_with_a_rising_loss_nor_if_something_is_found(
    caplog, run
):
    assert explained(caplog, **run) == 0


def test_an_undefined_score_counts_as_nothing_found(caplog):
    assert explained(caplog, ap50=None) == 1


def test_metrics_of_a_users_own_without_ap50_are_not_judged(caplog):
    state = make_state()
    state.first_loss, state.progress.epoch = 9.0, 5
    explain_nothing_found(state, 1.0, {"recall": 0.0}, Evaluator())
    assert not state.explained
