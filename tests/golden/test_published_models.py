"""Published models of DEIM, RT-DETRv4 and DEIMv2 have the official keys and numbers of parameters.

The models are built without data, so no weights are needed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from src.core import YAMLConfig
from tests.fixtures.golden import ROOT, read_json

PARAMETERS = {
    "deim_n": (3_782_693, 3_753_799),
    "deim_s": (10_321_877, 10_237_491),
    "deim_m": (19_590_064, 19_248_189),
    "deim_l": (31_289_848, 30_769_891),
    "deim_x": (62_715_480, 61_695_555),
    "rtv4_s": (10_321_877, 10_237_491),
    "rtv4_m": (19_590_064, 19_248_189),
    "rtv4_l": (31_289_848, 30_769_891),
    "rtv4_x": (62_715_480, 61_695_555),
    "deimv2_s": (9_779_838, 9_707_403),
    "deimv2_m": (18_357_750, 18_106_355),
    "deimv2_l": (32_551_214, 32_178_043),
    "deimv2_x": (51_211_736, 50_260_163),
    "deimv2_n": (3_600_421, 3_571_527),
    "deimv2_pico": (1_539_539, 1_514_285),
    "deimv2_femto": (983_945, 962_311),
    "deimv2_atto": (508_985, 494_159),
}
"""Parameters in training form and after `deploy()`, 80 classes, without RT-DETRv4's projector."""

NOT_OURS = {
    "deimv2_s": 0,
    "deimv2_m": 0,
    "deimv2_l": 4_992,
    "deimv2_x": 4_992,
}
"""Parameters of the official ViT that ours does not have.

These are the key third of each bias of L and X, and the mask token.
"""

MERGED = {
    "deimv2_s": 752,
    "deimv2_m": 944,
    "deimv2_l": 1_024 + 4_608,
    "deimv2_x": 1_472 + 4_608,
}
"""Parameters that our `deploy()` saves, compared with the official one.

The adapter's batch norms are merged into its convolutions: one bias for each channel replaces scale and
offset. These are 11 w + 3 d channels, with a width w of the detail branch and a width d of the encoder. In L
and X, layer scales, 2 x 12 x 384, are merged into the weights before them, and key biases of zero, 12 x 384,
are added.
"""

WITH_OFFICIAL_KEYS = [
    name
    for name in PARAMETERS
    if not name.startswith("rtv4") and name not in NOT_OURS
]


MODEL_BLOCKS = (
    "DFINE",
    "HGNetv2",
    "DINOv3Backbone",
    "HybridEncoder",
    "LiteEncoder",
    "DFINETransformer",
    "eval_spatial_size",
)
"""Settings that define a model."""


def configuration(name: str, kind: str = "coco") -> YAMLConfig:
    """Return a configuration without start weights."""
    family, size = name.split("_")
    backbone = "dinov3" if name in NOT_OURS else "hgnetv2"
    block = "DINOv3Backbone" if name in NOT_OURS else "HGNetv2"
    file = ROOT / f"configs/{family}/{family}_{backbone}_{size}_{kind}.yml"
    return YAMLConfig(file, **{block: {"pretrained": False}})


def model_settings(cfg: YAMLConfig) -> dict[str, Any]:
    return {name: cfg.yaml_cfg.get(name) for name in MODEL_BLOCKS}


@cache
def rows_and_counts(name: str) -> tuple[list[list[Any]], int, int]:
    """Build a model without data and deploy it.

    Returns:
        A row of key, shape, dtype and kind for each entry of the state dict, sorted by key, and the numbers
        of parameters in training form and after `deploy()`.
    """
    with torch.device("meta"):
        model = configuration(name).model
        rows = rows_of(model)
        training = count(model)
        return rows, training, count(model.deploy())


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def rows_of(model: nn.Module) -> list[list[Any]]:
    buffers = {name for name, _ in model.named_buffers()}
    return sorted(
        [
            key,
            list(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            "buffer" if key in buffers else "parameter",
        ]
        for key, tensor in model.state_dict().items()
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_model_has_the_official_number_of_parameters(name):
    training, deployed = PARAMETERS[name]
    missing = NOT_OURS.get(name, 0)
    _, ours, ours_deployed = rows_and_counts(name)
    assert ours == training - missing
    assert ours_deployed == deployed - missing - MERGED.get(name, 0)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_variant_for_own_data_is_the_same_model(name):
    assert model_settings(configuration(name, "custom")) == model_settings(
        configuration(name)
    )


@pytest.mark.parametrize("name", WITH_OFFICIAL_KEYS)
def test_the_state_dict_has_the_official_keys_shapes_and_types(name):
    rows, _, _ = rows_and_counts(name)
    assert rows == sorted(read_json(f"{name}.keys.json"))


@pytest.mark.parametrize("size", "smlx")
def test_an_rt_detrv4_model_is_the_deim_model_of_its_size(size):
    assert model_settings(configuration(f"rtv4_{size}")) == model_settings(
        configuration(f"deim_{size}")
    )
