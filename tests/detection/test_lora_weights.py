"""LoRA factors in state dicts; whole models are in tests/nn/test_lora.py."""

import torch
from torch import nn

from src.core.contracts import LORA_FACTORS
from src.detection.lora_weights import is_lora_factor, merged_state_dict
from src.nn.lora import LoRALinear


def test_factors_are_known_by_the_end_of_their_key():
    assert all(
        is_lora_factor(f"blocks.0.attn.qkv.{name}") and is_lora_factor(name)
        for name in LORA_FACTORS
    )
    assert not is_lora_factor(
        "blocks.0.attn.qkv.weight"
    ) and not is_lora_factor("lora_down.weight")


def test_a_layer_alone_is_merged_as_within_a_model():
    layer = LoRALinear(4, 3, rank=2, alpha=2.0)
    nn.init.normal_(layer.lora_up)
    alone, within = (
        merged_state_dict(layer),
        merged_state_dict(nn.Sequential(layer)),
    )
    assert list(alone) == ["weight", "bias"] and list(within) == [
        "0.weight",
        "0.bias",
    ]
    assert torch.equal(alone["weight"], layer.merged_weight())
    assert torch.equal(within["0.weight"], layer.merged_weight())
