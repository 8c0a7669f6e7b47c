"""Every parameter of the published models learns at the published rate with the published decay."""

import pytest

from tests.fixtures.golden import SIZES, coco_config, read_json


@pytest.mark.parametrize("size", SIZES)
def test_each_parameter_has_the_official_rate_decay_and_betas(size):
    config = coco_config(size)
    official = {
        name: (group["lr"], group["weight_decay"], tuple(group["betas"]))
        for group in read_json("param_groups.json")[size]
        for name in group["parameters"]
    }
    names = {
        id(parameter): name
        for name, parameter in config.model.named_parameters()
    }
    ours = {
        names[id(parameter)]: (
            group["lr"],
            group["weight_decay"],
            tuple(group["betas"]),
        )
        for group in config.optimizer.param_groups
        for parameter in group["params"]
    }
    assert ours == official
