"""Lengths in epochs, in steps and as fractions of the run."""

import pytest

from src.core.durations import (
    EpochLength,
    LengthUnit,
    LoaderEpochLength,
    RunLength,
    StepLength,
    StepsUnknownError,
    check_ascending,
    length_unit,
    read_duration,
)
from src.core.errors import ConfigError

RUN = RunLength(epochs=72, steps_per_epoch=100)


@pytest.mark.parametrize(
    ("duration", "epochs"),
    [
        (5, 5),
        (0.9, 64),
        (1.0, 72),
        ("5 epochs", 5),
        ("1 epoch", 1),
        ("500 steps", 5),
        ("10 %", 7),
        (0, 0),
        (0.0, 0),
    ],
)
def test_a_length_in_epochs_is_rounded_down(duration, epochs):
    assert RUN.in_epochs(duration, "stop_epoch") == epochs


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (5, 5),
        (0.1, 720),
        (1.0, 7200),
        ("5 epochs", 500),
        ("0.5 epochs", 50),
        ("500 steps", 500),
        ("10 %", 720),
        (0, 0),
    ],
)
def test_a_length_in_steps(duration, steps):
    assert RUN.in_steps(duration, "warmup_duration") == steps


@pytest.mark.parametrize("duration", [0.001, "1 step", "0.1 %"])
def test_what_is_more_than_nothing_is_one_epoch_at_least(duration):
    assert RUN.in_epochs(duration, "stop_epoch") == 1


def test_a_fraction_with_a_floating_point_error_is_not_rounded_to_the_epoch_before():
    assert [
        RunLength(10, 1).in_epochs(share / 10, "stop_epoch")
        for share in range(1, 11)
    ] == list(range(1, 11))


@pytest.mark.parametrize(
    "duration", [-1, 2.5, -0.1, True, "soon", "120 %", "5 epoches", None, [3]]
)
def test_an_invalid_length_is_refused_with_the_valid_forms(duration):
    with pytest.raises(
        ConfigError,
        match=r"^ema.warmups is .*, expected an integer number of steps, "
        r"a fraction of the run from 0.0 to 1.0, or a text such as",
    ):
        read_duration(duration, "ema.warmups", "steps")


@pytest.mark.parametrize("duration", [5, "5 epochs", 0, 0.0, 0.9, "10 %"])
def test_epochs_need_no_number_of_steps(duration):
    assert RunLength(72).in_epochs(duration, "stop_epoch") == RUN.in_epochs(
        duration, "stop_epoch"
    )


@pytest.mark.parametrize(
    ("unit", "duration"),
    [("epochs", "500 steps"), ("steps", 0.1), ("steps", "5 epochs")],
)
def test_what_needs_the_number_of_steps_is_refused_as_long_as_it_is_not_known(
    unit, duration
):
    with pytest.raises(
        StepsUnknownError, match="known only after the data are read"
    ):
        RunLength(72).resolve(duration, unit, "length")


@pytest.mark.parametrize(
    ("annotation", "unit"),
    [
        (EpochLength, LengthUnit("epochs")),
        (StepLength | None, LengthUnit("steps")),
        (LoaderEpochLength, LengthUnit("epochs", before_data=True)),
        (int, None),
        (int | None, None),
        (list[EpochLength], None),
    ],
)
def test_unit_of_a_length_is_read_from_its_type(annotation, unit):
    assert length_unit(annotation) == unit


@pytest.mark.parametrize(
    "points", [[4, 34, 60], [5, 5], [0, None, None], [None, 3], []]
)
def test_points_that_ascend_are_accepted(points):
    check_ascending(points, "policy.epoch")


@pytest.mark.parametrize(
    ("points", "epochs"), [([5, 4], "5, 4"), ([5, None, 4], "5, 4")]
)
def test_points_that_do_not_ascend_are_refused(points, epochs):
    with pytest.raises(ConfigError) as caught:
        check_ascending(points, "policy.epoch")
    assert (
        str(caught.value)
        == f"policy.epoch is {points}, which are the epochs {epochs}; they must be in ascending order"
    )
