"""Lengths in epochs, steps and shares of the run."""

import pytest

from src.core.durations import RunLength, read_duration, settled, settled_points
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


def test_a_share_that_floats_make_a_little_less_is_not_rounded_to_the_epoch_before():
    assert [RunLength(10, 1).in_epochs(share / 10, "stop_epoch") for share in range(1, 11)] == list(
        range(1, 11)
    )


@pytest.mark.parametrize("duration", [-1, 2.5, -0.1, True, "soon", "120 %", "5 epoches", None, [3]])
def test_what_is_no_length_is_refused_with_what_is_one(duration):
    with pytest.raises(
        ConfigError,
        match=r"^ema.warmups is .*, expected a whole number of steps, a share of the run from 0.0 to 1.0, or a text such as",
    ):
        read_duration(duration, "ema.warmups", "steps")


@pytest.mark.parametrize(
    ("duration", "known"),
    [(5, 5), ("5 epochs", 5), (None, None), (0, 0), (0.0, 0), (0.9, None), ("500 steps", None)],
)
def test_only_lengths_in_their_own_unit_are_settled_without_a_run(duration, known):
    assert settled(duration, "stop_epoch", "epochs") == known


@pytest.mark.parametrize(
    ("points", "without", "within"),
    [
        ([4, 34, 60], (4, 34, 60), (4, 34, 60)),
        (["5 %", 0.5, "68 epochs"], (None, None, 68), (3, 36, 68)),
        ([0, None, None], (0, None, None), (0, None, None)),
        ([5, 5], (5, 5), (5, 5)),
        (["500 steps", None], (None, None), (5, None)),
    ],
)
def test_points_in_time_are_settled_as_far_as_the_run_is_known(points, without, within):
    assert (settled_points(points, "policy.epoch"), settled_points(points, "policy.epoch", RUN)) == (
        without,
        within,
    )


@pytest.mark.parametrize(
    ("points", "run", "epochs"),
    [([5, 4], None, "5, 4"), ([5, 0.5, 4], None, "5, 4"), ([40, 0.5], RUN, "40, 36")],
)
def test_points_that_do_not_ascend_are_refused(points, run, epochs):
    with pytest.raises(ConfigError) as caught:
        settled_points(points, "policy.epoch", run)
    assert (
        str(caught.value)
        == f"policy.epoch is {points}, which are the epochs {epochs}; none may come before the one on its left"
    )
