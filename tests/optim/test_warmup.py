"""Small learning rates at the start."""

import pytest

from src.core.build import create
from src.core.errors import ConfigError
from src.optim.warmup import LinearWarmup


@pytest.mark.parametrize(("step", "factor"), [(0, 1 / 500), (1, 2 / 500), (249, 0.5), (498, 499 / 500), (499, 1.0), (500, 1.0), (10**9, 1.0)])
def test_factor_rises_linearly_to_one(step, factor):
    assert LinearWarmup(500).factor(step) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("step", [0, 1, 500])
def test_duration_of_zero_switches_warm_up_off(step):
    assert LinearWarmup(0).factor(step) == 1.0


def test_duration_of_one_step_warms_up_nothing():
    assert LinearWarmup(1).factor(0) == 1.0


def test_negative_duration_is_refused():
    with pytest.raises(ConfigError, match="^LinearWarmup.warmup_duration is -1, expected a whole number of steps"):
        create({"type": "LinearWarmup", "warmup_duration": -1})
