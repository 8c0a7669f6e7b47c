"""Learning rate warm-up."""

import pytest

from src.core.build import create
from src.core.durations import RunLength
from src.core.errors import ConfigError
from src.optim.warmup import LinearWarmup, QuadraticWarmup
from tests.fixtures.lengths import built_for


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 500),
        (1, 2 / 500),
        (249, 0.5),
        (498, 499 / 500),
        (499, 1.0),
        (500, 1.0),
        (10**9, 1.0),
    ],
)
def test_factor_rises_linearly_to_one(step, factor):
    assert LinearWarmup(500).factor(step) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("step", [0, 1, 500])
def test_duration_of_zero_switches_warm_up_off(step):
    assert LinearWarmup(0).factor(step) == 1.0


def test_duration_of_one_step_warms_up_nothing():
    assert LinearWarmup(1).factor(0) == 1.0


def test_negative_duration_is_refused():
    with pytest.raises(
        ConfigError,
        match="^LinearWarmup.warmup_duration is -1, expected an integer number of steps",
    ):
        create({"type": "LinearWarmup", "warmup_duration": -1})


@pytest.mark.parametrize(
    ("duration", "steps"),
    [(500, 500), (0.05, 360), ("2 epochs", 200), ("300 steps", 300)],
)
def test_duration_may_be_given_in_steps_in_epochs_or_as_a_fraction(
    duration, steps
):
    warmup = built_for(
        RunLength(72, 100),
        {"type": "LinearWarmup", "warmup_duration": duration},
    )
    assert (
        warmup.factor(steps // 2 - 1) == pytest.approx(0.5)
        and warmup.factor(steps) == 1.0
    )


@pytest.mark.parametrize("images", [100, 1000, 100_000])
def test_warm_up_never_takes_more_than_a_tenth_of_the_run(images):
    run = RunLength(epochs=50, steps_per_epoch=-(-images // 16))
    warmup = built_for(run, {"type": "LinearWarmup", "warmup_duration": 2000})
    assert warmup.factor(run.steps // 10) == 1.0


def test_a_shortened_warm_up_is_logged(caplog):
    with caplog.at_level("INFO"):
        built_for(
            RunLength(10, 7),
            {"type": "QuadraticWarmup", "warmup_duration": 500},
        )
    assert (
        "warm-up is limited to 7 steps, a tenth of the run, instead of 500"
        in caplog.text
    )


def test_a_fraction_of_a_run_of_unknown_length_is_refused_and_not_guessed():
    with pytest.raises(
        ConfigError,
        match="warmup_duration is 0.1, which depends on the length of the run",
    ):
        create({"type": "LinearWarmup", "warmup_duration": 0.1})


def test_quadratic_warm_up_rises_with_the_square():
    assert [
        QuadraticWarmup(10).factor(step) for step in (0, 4, 9, 50)
    ] == pytest.approx([0.01, 0.25, 1.0, 1.0])
