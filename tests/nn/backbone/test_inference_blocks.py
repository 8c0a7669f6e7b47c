import copy

import pytest
import torch
from timm.layers import AttentionRope
from timm.models.eva import EvaAttention, EvaBlock

from tests.fixtures.vits import GATED, PLAIN, WITH_BIASES, small_backbone

MODELS = [PLAIN, WITH_BIASES, GATED, "deimv2_tiny"]


def both(model_name: str, **settings):
    """Return a backbone with fast blocks, and one with the same weights and timm's own blocks."""
    if model_name == "deimv2_tiny":
        settings["tap_norm"] = "none"  # it has no final norm
    fast = small_backbone(model_name, **settings).eval()
    plain = copy.deepcopy(fast)
    for block in plain.vit.blocks:
        block.__class__ = EvaBlock
        has_key_bias = isinstance(block.attn, AttentionRope)
        block.attn.__class__ = AttentionRope if has_key_bias else EvaAttention
    assert type(fast.vit.blocks[0]) is not EvaBlock
    assert type(fast.vit.blocks[0].attn) not in (AttentionRope, EvaAttention)
    return fast, plain


def assert_equal(maps, others):
    for one, other in zip(maps, others, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"windows": 2, "window_blocks": [0]}, {"lora_rank": 2}],
    ids=["global", "windows", "LoRA"],
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_maps_are_those_of_timms_blocks(model_name, settings, context):
    fast, plain = both(model_name, **settings)
    images = torch.rand(2, 3, 64, 96)
    with context():
        assert_equal(fast(images), plain(images))


@pytest.mark.parametrize("model_name", MODELS)
def test_maps_under_autocast_are_those_of_timms_blocks(model_name):
    fast, plain = both(model_name)
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert_equal(fast(images), plain(images))


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_gradients_are_those_of_timms_blocks(mode):
    results = []
    images = torch.rand(2, 3, 64, 64)
    for backbone in both(PLAIN):
        backbone.train(mode)
        sum(x.square().sum() for x in backbone(images)).backward()
        results.append([p.grad for p in backbone.vit.parameters()])
    assert_equal(*results)


def test_inputs_of_a_block_are_not_changed():
    fast, _ = both(PLAIN)
    tokens = torch.rand(1, 4 + 5, 32)
    before = tokens.clone()
    with torch.inference_mode():
        fast.vit.blocks[0](tokens, rope=fast.vit.rope.get_embed((2, 2)))
    assert torch.equal(tokens, before)


def test_weights_have_the_names_of_timms_blocks():
    fast, plain = both(PLAIN)
    assert list(fast.state_dict()) == list(plain.state_dict())
