"""Layouts: the tensors of DEIMv2 and RT-DETRv4 under the keys of this project, and what is left out."""

from pathlib import Path

import pytest
import torch

from src.core.errors import CheckpointError
from src.detection.published.layouts import DEIMV2, DFINE, convert
from tests.fixtures.published_states import state_without_data

BIAS = "backbone.dinov3.blocks.0.attn.qkv.bias"
FILE = Path("a file")


def small_vit(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    state = {
        "backbone.dinov3.storage_tokens": torch.ones(1, 4, 6),
        "backbone.dinov3.mask_token": torch.ones(1, 6),
        "backbone.dinov3.rope_embed.periods": torch.ones(16),
        BIAS: torch.arange(9.0),
        f"{BIAS}_mask": torch.tensor([1.0, 1, 1, 0, 0, 0, 1, 1, 1]),
    }
    return state | changed


def test_the_mask_of_a_bias_is_applied_even_where_the_bias_is_nan():
    bias = torch.arange(9.0)
    bias[3:6] = float("nan")
    converted = convert(small_vit(**{BIAS: bias}), FILE)
    blocks = "backbone.vit.blocks.0.attn"
    assert converted.weights[f"{blocks}.q_bias"].tolist() == [0, 1, 2]
    assert converted.weights[f"{blocks}.v_bias"].tolist() == [6, 7, 8]
    assert f"{blocks}.k_bias" not in converted.weights


def test_a_mask_that_averaging_has_moved_scales_the_bias():
    mask = torch.tensor([0.5, 1, 1, 0, 0, 0, 1, 1, 1])
    bias = torch.ones(9)
    state = small_vit(**{BIAS: bias, f"{BIAS}_mask": mask})
    weights = convert(state, FILE).weights
    key = "backbone.vit.blocks.0.attn.q_bias"
    assert weights[key].tolist() == [0.5, 1, 1]


def test_a_live_key_bias_is_refused():
    state = small_vit()
    del state[f"{BIAS}_mask"]
    with pytest.raises(
        CheckpointError, match="key biases that are not zero, but a DINOv3 ViT"
    ):
        convert(state, FILE)


def test_every_tensor_that_is_left_out_has_a_reason():
    converted = convert(small_vit(), FILE)
    assert converted.layout == DEIMV2
    assert sorted(converted.dropped) == [
        f"{BIAS}_mask",
        "backbone.dinov3.mask_token",
    ]
    assert all(converted.dropped.values())


def test_the_tiny_vit_keeps_its_fused_bias_and_its_periods():
    weights = convert(state_without_data("deimv2_s"), FILE).weights
    assert "backbone.vit.blocks.0.attn.qkv.bias" in weights
    assert "backbone.vit.rope.periods" in weights
    assert "backbone.adapter.detail.conv3.1.weight" in weights
    assert "backbone.adapter.norms.2.running_mean" in weights
    assert not any("dinov3" in key or ".sta." in key for key in weights)


def test_the_projector_of_rtdetrv4_is_left_out():
    state = state_without_data("rtv4_s")
    converted = convert(state, FILE)
    assert converted.layout == DFINE
    assert len(converted.dropped) == 2
    assert converted.weights.keys() == state_without_data("deim_s").keys()


def test_weights_of_this_project_are_unchanged():
    once = convert(state_without_data("deimv2_l"), FILE)
    again = convert(once.weights, FILE)
    assert again.weights.keys() == once.weights.keys()
    assert again.layout == DEIMV2 and not again.dropped
