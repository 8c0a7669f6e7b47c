"""Activation functions by name, and the inverse of the sigmoid."""

import math

import pytest
import torch
from torch import nn

from src.ops.activations import build_activation, inverse_sigmoid


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("relu", nn.ReLU),
        ("gelu", nn.GELU),
        ("silu", nn.SiLU),
        ("leaky_relu", nn.LeakyReLU),
        (None, nn.Identity),
    ],
)
def test_name_gives_its_module(name, kind):
    assert type(build_activation(name)) is kind


def test_gelu_is_the_exact_one():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(
        build_activation("gelu")(x), x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    )


def test_every_call_gives_a_module_of_its_own():
    assert build_activation("relu") is not build_activation("relu")


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match="^activation 'swish' is not known; known are relu, gelu, silu, leaky_relu$",
    ):
        build_activation("swish")


def test_inverse_undoes_the_sigmoid():
    x = torch.linspace(-8, 8, 33, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, math.log(1e-5)),
        (1.0, -math.log(1e-5)),
        (-3.0, math.log(1e-5)),
        (7.0, -math.log(1e-5)),
        (0.5, 0.0),
        (1e-7, math.log(1e-5)),
        (0.25, math.log(1 / 3)),
    ],
)
def test_values_at_and_beyond_the_ends_are_clamped(value, expected):
    assert inverse_sigmoid(
        torch.tensor(value, dtype=torch.float64)
    ).item() == pytest.approx(expected, rel=1e-6)


def test_least_distance_from_the_ends_can_be_chosen():
    assert inverse_sigmoid(torch.tensor(0.0), eps=1e-3).item() == pytest.approx(
        math.log(1e-3)
    )


def test_gradient_is_finite_everywhere():
    x = torch.tensor([-1.0, 0.0, 1e-6, 0.5, 1.0, 2.0], requires_grad=True)
    inverse_sigmoid(x).sum().backward()
    assert x.grad.isfinite().all()


def test_argument_is_unchanged():
    x = torch.tensor([-1.0, 2.0])
    inverse_sigmoid(x)
    assert x.tolist() == [-1.0, 2.0]
