"""Building a model whose weights are loaded afterwards."""

import pytest
import torch
from timm.layers.weight_init import trunc_normal_
from torch import nn
from torch.nn import init

from src.runtime.quick_building import ZeroStart

FILLS = [
    init.uniform_,
    init.normal_,
    init.trunc_normal_,
    init.kaiming_uniform_,
    init.kaiming_normal_,
    init.xavier_uniform_,
    init.xavier_normal_,
    trunc_normal_,
    nn.Parameter.uniform_,
    nn.Parameter.normal_,
]


@pytest.mark.parametrize("fill", FILLS, ids=lambda fill: fill.__name__)
def test_no_random_numbers_are_drawn(fill):
    weight = nn.Parameter(torch.ones(3, 4))
    before = torch.get_rng_state()
    with ZeroStart(), torch.no_grad():
        fill(weight)
    assert (weight == 0).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_start_with_zeros_and_constants_stay():
    with ZeroStart():
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    assert not model[0].weight.any()
    assert not model[0].bias.any()
    assert (model[1].weight == 1).all()
    assert model[0].weight.requires_grad


def test_random_numbers_are_drawn_again_afterwards():
    with ZeroStart():
        pass
    assert nn.Linear(3, 4).weight.any()
