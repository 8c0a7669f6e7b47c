import pytest
import torch
import torch.nn.functional as F

from src.core import ConfigError
from src.nn.backbone.vits import DEIMV2_VITS, build_vit
from tests.fixtures.vits import randomize


def small_tiny(**settings):
    """DEIMv2's ViT-Tiny with two blocks of width 64."""
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 1} | settings
    vit = build_vit("deimv2_tiny", store_periods=True, **sizes)
    return randomize(vit).eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("deimv2_tiny", 5_486_208), ("deimv2_tiny_plus", 9_674_240)],
)
def test_small_vits_have_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):
        vit = build_vit(name, store_periods=True)
    assert sum(p.numel() for p in vit.parameters()) == parameters
    assert vit.embed_dim == DEIMV2_VITS[name]["embed_dim"]


def test_small_vits_have_a_class_token_and_no_registers_scales_or_final_norm():
    keys = small_tiny().state_dict()
    blocks = {key.split(".", 2)[2] for key in keys if key.startswith("blocks.")}
    others = {key for key in keys if not key.startswith("blocks.")}
    assert others == {
        "cls_token",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "rope.periods",
    }
    assert "attn.qkv.bias" in blocks
    assert not any("gamma" in key for key in blocks)


def turned(x, angles):
    """Rotate the channels of patches `[N, 64]` by angles of the same shape."""
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


@torch.no_grad()
def test_first_block_equals_a_plain_reading_of_the_facts():
    vit = small_tiny(depth=1)
    images = torch.randn(1, 3, 32, 64)
    patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)[0]
    x = torch.cat([vit.cls_token[0], patches])
    rows, columns = 2, 4
    y = (torch.arange(rows) + 0.5) * 2 / rows - 1
    z = (torch.arange(columns) + 0.5) * 2 / columns - 1
    periods = vit.rope.periods
    angles = torch.stack(
        [
            torch.cat(
                [2 * torch.pi * y[i] / periods, 2 * torch.pi * z[j] / periods]
            )
            for i in range(rows)
            for j in range(columns)
        ]
    ).repeat(1, 2)
    block = vit.blocks[0]
    assert block.norm1.eps == block.norm2.eps == 1e-6
    normed = block.norm1(x)
    q, k, v = (normed @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(
        3, -1
    )
    q = torch.cat([q[:1], turned(q[1:], angles)])
    k = torch.cat([k[:1], turned(k[1:], angles)])
    attended = torch.softmax(q @ k.T / 8, -1) @ v
    x = x + block.attn.proj(attended)
    x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    ours = vit.forward_features(images)[0]
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"deimv2_tiny, deimv2_tiny_plus"):
        build_vit("vit_tiny_dinov3", store_periods=False)
