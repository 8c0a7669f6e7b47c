import math

import pytest
import torch
from torch import nn

from src.core import ConfigError
from src.nn.gradient_share import GradientShareWeight, weight_factor


def with_gradients(*values):
    """Return parameters whose gradients are given lists of numbers."""
    parameters = []
    for value in values:
        parameter = nn.Parameter(torch.zeros(len(value)))
        parameter.grad = torch.tensor(value)
        parameters.append(parameter)
    return parameters


def observe(control, share):
    """Add a step in which the watched parameter has this share, in percent, of the gradient."""
    watched, other = with_gradients([-share / 100], [1 - share / 100])
    control.observe([watched, other], {id(watched)})


def rtv4_s():
    """Return the control with the settings of RT-DETRv4-S."""
    return GradientShareWeight(5, share=11, tolerance=1, default_weight=20)


@pytest.mark.parametrize("share", [10.0, 11.0, 11.7, 12.0])
def test_a_share_within_the_tolerance_keeps_the_weight(share):
    assert weight_factor(share, 11, 1) == 1


def test_a_small_share_aims_at_the_upper_limit():
    expected = (0.12 * (1 - 0.04)) / (0.04 * (1 - 0.12))
    assert weight_factor(4, 11, 1) == pytest.approx(expected)


def test_a_large_share_aims_at_the_lower_limit():
    expected = (0.10 * (1 - 0.3)) / (0.3 * (1 - 0.10))
    assert weight_factor(30, 11, 1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("share", "factor"), [(0, 10), (0.01, 10), (99.9, 0.1), (100, 0.1)]
)
def test_one_epoch_changes_the_weight_at_most_tenfold(share, factor):
    assert weight_factor(share, 11, 1) == pytest.approx(factor)


def test_the_factor_brings_a_loss_of_proportional_gradient_to_its_aim():
    # the layers get w of w + 9, so a share of 10 % at weight 1
    assert 1 * weight_factor(10, 20, 2) / (
        1 * weight_factor(10, 20, 2) + 9
    ) == pytest.approx(0.22)


def test_the_share_is_the_l1_norm_of_the_watched_gradients_among_all():
    first, second, other = with_gradients([1.0, -2.0], [3.0], [-4.0, 5.0, 5.0])
    control = rtv4_s()
    control.observe([first, second, other], {id(first), id(second)})
    assert control.mean_share() == pytest.approx(100 * 6 / 20)


def test_an_epoch_takes_the_mean_share_of_its_steps():
    control = rtv4_s()
    for share in (2.0, 4.0, 9.0):
        observe(control, share)
    assert control.end_epoch() == pytest.approx(5)
    assert control.weight == pytest.approx(5 * weight_factor(5, 11, 1))


def test_the_next_epoch_starts_without_steps():
    control = rtv4_s()
    observe(control, 5)
    control.end_epoch()
    before = control.weight
    assert control.mean_share() is None
    assert control.end_epoch() is None and control.weight == before


def test_gradients_of_zero_are_no_fault():
    control = rtv4_s()
    watched, other = with_gradients([0.0], [0.0])
    control.observe([watched, other], {id(watched)})
    assert control.mean_share() == 0


def test_observing_does_not_read_the_device():
    parameters = [nn.Parameter(torch.zeros(2, device="meta")) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    control = rtv4_s()
    control.observe(parameters, {id(parameters[0])})
    with pytest.raises(RuntimeError):  # tensors without data cannot be read
        control.mean_share()


def test_the_final_stage_has_the_default_weight_and_keeps_it():
    control = rtv4_s()
    control.begin_epoch(final_stage=False)
    assert control.weight == 5
    control.begin_epoch(final_stage=True)
    observe(control, 1)
    assert control.end_epoch() is None
    assert control.weight == 20


def test_without_a_default_the_final_stage_keeps_the_last_weight():
    control = GradientShareWeight(5, share=11, tolerance=1)
    control.begin_epoch(final_stage=True)
    assert control.weight == 5


def test_without_a_share_the_weight_is_constant_and_nothing_is_observed():
    control = GradientShareWeight(5)
    observe(control, 1)
    assert control.end_epoch() is None and control.weight == 5


def test_a_restored_control_continues_with_the_same_numbers():
    straight, first = rtv4_s(), rtv4_s()
    for control in (straight, first):
        observe(control, 3.3)
    resumed = rtv4_s()
    resumed.load_state_dict(first.state_dict())
    for control in (straight, resumed):
        observe(control, 7.1)
        control.end_epoch()
    assert resumed.weight == straight.weight != 5


@pytest.mark.parametrize("name", ["weight", "default_weight"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_weight_that_is_not_positive_is_refused(name, value):
    with pytest.raises(ConfigError, match=rf"distillation\.{name} is"):
        GradientShareWeight(**({"weight": 1} | {name: value}))


@pytest.mark.parametrize(
    ("share", "tolerance"), [(1, 1), (99, 1), (11, -1), (-5, 1)]
)
def test_a_share_out_of_range_is_refused(share, tolerance):
    with pytest.raises(ConfigError, match=f"share is {share} and"):
        GradientShareWeight(5, share, tolerance)
