"""What is logged at the start of a run."""

import pytest

from src.solver.reporting import horizon_warning


@pytest.mark.parametrize(
    ("horizon", "steps", "warned"),
    [(10_000, 2480, True), (50, 2480, False), (497, 2480, True), (496, 2480, False), (10_000, 250, False)],
)
def test_a_horizon_above_a_fifth_of_a_run_is_warned_about_unless_the_run_is_short(horizon, steps, warned):
    text = horizon_warning(horizon, steps)
    assert (text is not None) == warned
    if warned:
        assert f"horizon of {horizon:,} steps is more than a fifth of this run's {steps:,}" in text
        assert "ema.decay=~" in text
