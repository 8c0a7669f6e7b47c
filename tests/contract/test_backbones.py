"""Every backbone of `src.nn.backbone`, and one written by a user, has all that the encoder needs."""

import pytest
import torch
from torch import nn

from src.core import ConfigError, create, register
from src.core.registry import find
from src.nn import backbone as backbones
from tests.fixtures.tiny import tiny_config

SMALL = {
    "HGNetv2": {"name": "B0", "freeze_at": -1, "freeze_norm": False},
    "DINOv3Backbone": {
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "out_channels": 16,
        "detail_channels": 4,
    },
}
"""Settings that make a backbone small; one that is not here is built with its defaults."""


@register()
class PlainBackbone(nn.Module):
    """A user's own backbone as D-FINE has them: it has no attributes for its channels and strides."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.down = nn.ModuleList(
            [nn.Conv2d(width, width, 2, 2), nn.Conv2d(width, width, 2, 2)]
        )

    def forward(self, x):
        maps = [self.stem(x)]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        return maps


@register()
class AnnotatedBackbone(PlainBackbone):
    """The same, with the attributes that let channels and strides be checked."""

    def __init__(self, width=8):
        super().__init__(width)
        self.out_channels, self.out_strides = [width] * 3, [8, 16, 32]


NAMES = [*backbones.__all__, "AnnotatedBackbone"]


@pytest.fixture(params=NAMES)
def backbone(request) -> nn.Module:
    settings = dict(SMALL.get(request.param, {}))
    if "pretrained" in find(request.param).arguments:
        settings["pretrained"] = False
    return create(request.param, {request.param: settings})


def test_forward_gives_a_list_with_a_map_for_each_stride(backbone):
    maps = backbone(torch.rand(2, 3, 64, 64))
    assert isinstance(maps, list) and len(maps) == len(
        backbone.out_channels
    ) == len(backbone.out_strides)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 128)])
def test_maps_have_the_channels_and_strides_that_the_attributes_say(
    backbone, size
):
    maps = backbone(torch.rand(2, 3, *size))
    assert [tuple(x.shape) for x in maps] == [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(backbone.out_channels, backbone.out_strides)
    ]


def test_strides_go_from_fine_to_coarse_and_double(backbone):
    assert all(
        coarser == 2 * finer
        for finer, coarser in zip(
            backbone.out_strides, backbone.out_strides[1:]
        )
    )


def test_gradients_reach_every_trainable_parameter(backbone):
    maps = backbone.train()(torch.rand(2, 3, 64, 96))
    sum(x.square().sum() for x in maps).backward()
    assert [
        name
        for name, p in backbone.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ] == []


def test_state_dict_loads_into_a_second_one(backbone):
    other = create(
        type(backbone).__name__,
        {
            type(backbone).__name__: SMALL.get(type(backbone).__name__, {})
            | (
                {"pretrained": False}
                if "pretrained" in find(type(backbone).__name__).arguments
                else {}
            )
        },
    )
    other.load_state_dict(backbone.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert all(
        torch.equal(a, b) for a, b in zip(backbone.eval()(x), other.eval()(x))
    )


@pytest.mark.parametrize("name", ["PlainBackbone", "AnnotatedBackbone"])
def test_a_users_backbone_works_in_a_detector_by_its_name(name):
    model = tiny_config(
        DFINE={"backbone": name}, HybridEncoder={"in_channels": [8, 8, 8]}
    ).model.eval()
    assert model(torch.rand(1, 3, 64, 96))["pred_boxes"].shape == (1, 20, 4)


def test_a_users_backbone_takes_its_settings_from_the_section_of_its_name():
    config = tiny_config(
        DFINE={"backbone": "AnnotatedBackbone"},
        AnnotatedBackbone={"width": 12},
        HybridEncoder={"in_channels": [12, 12, 12]},
    )
    assert config.model.backbone.out_channels == [12, 12, 12]


def test_channels_of_a_users_backbone_that_do_not_fit_are_refused_with_both_lists():
    with pytest.raises(
        ConfigError,
        match=r"HybridEncoder.in_channels is \[32, 32, 32\] but AnnotatedBackbone gives "
        r"\[8, 8, 8\]; set in_channels to match",
    ):
        _ = tiny_config(DFINE={"backbone": "AnnotatedBackbone"}).model
