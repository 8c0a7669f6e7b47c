import pytest
import torch

from src.nn.backbone import deployed_vit
from src.nn.backbone.deployed_vit import convert_vit_to_deploy
from src.nn.backbone.vits import build_vit
from src.nn.backbone.windowed_vit import windowed_taps
from src.nn.lora import add_lora
from src.ops import onednn

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def random_vit(name="vit_small_patch16_dinov3", **arguments):
    """Return a small ViT in eval mode whose parameters are all random, layer scales and biases included."""
    torch.manual_seed(0)
    vit = build_vit(name, store_periods=False, **SMALL, **arguments).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return vit


def features(vit):
    images = torch.rand(
        2, 3, 64, 96, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        return vit.forward_features(images)


def num_parameters(vit):
    return sum(parameter.numel() for parameter in vit.parameters())


@pytest.mark.parametrize(
    ("name", "biases"),
    [
        ("vit_small_patch16_dinov3", 0),
        ("vit_small_plus_patch16_dinov3_qkvb", 32),  # zeros of the keys
    ],
)
def test_the_converted_vit_has_the_same_features_without_layer_scales(
    name, biases
):
    vit = random_vit(name)
    before, parameters = features(vit), num_parameters(vit)
    convert_vit_to_deploy(vit)
    assert torch.allclose(features(vit), before, rtol=1e-4, atol=1e-4)
    assert num_parameters(vit) == parameters - 2 * (2 * 32 - biases)
    assert not any("gamma" in name for name, _ in vit.named_parameters())


def test_a_vit_without_layer_scales_is_not_changed():
    vit = random_vit("deimv2_tiny")
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    convert_vit_to_deploy(vit)
    after = vit.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_lora_updates_are_merged_before_the_layer_scales():
    vit = random_vit()
    add_lora(vit, 4, None, ("attention", "mlp"))
    for name, parameter in vit.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    before = features(vit)
    convert_vit_to_deploy(vit)
    assert torch.allclose(features(vit), before, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in vit.named_parameters())


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_dinov3",
        "vit_small_plus_patch16_dinov3_qkvb",
        "deimv2_tiny",
    ],
)
def test_attention_in_windows_is_the_same_after_the_conversion(name):
    vit = random_vit(name)
    images = torch.rand(2, 3, 64, 96)

    def taps():
        with torch.no_grad():
            return windowed_taps(
                vit, images, [0, 1], windows=2, window_blocks=[0], norm=False
            )

    before = taps()
    convert_vit_to_deploy(vit)
    kinds = {type(block).__name__ for block in vit.blocks}
    assert kinds == {"DeployedBlock"}
    for after, expected in zip(taps(), before):
        assert torch.allclose(after, expected, rtol=1e-4, atol=1e-4)


def test_attention_is_not_replaced_if_a_block_has_gates_or_norms():
    vit = random_vit()
    vit.blocks[0].attn.q_norm = torch.nn.LayerNorm(16)
    before = features(vit)
    convert_vit_to_deploy(vit)
    kinds = [type(block.attn).__name__ for block in vit.blocks]
    assert kinds == ["EvaAttention", "EvaAttention"]
    assert torch.allclose(features(vit), before, rtol=1e-4, atol=1e-4)


def test_codes_are_prepared_once_for_each_size(monkeypatch):
    calls = []
    prepared = deployed_vit.prepared_codes

    def counted(codes, num_prefix):
        calls.append(codes.shape)
        return prepared(codes, num_prefix)

    monkeypatch.setattr(deployed_vit, "prepared_codes", counted)
    vit = random_vit()
    convert_vit_to_deploy(vit)
    for _ in range(2):
        features(vit)
    assert len(calls) == 1


def test_codes_rotate_patches_and_leave_the_tokens_before_them():
    angles = torch.rand(5, 8)
    codes = torch.cat((angles.sin(), angles.cos()), -1)
    signed, cosine, pairs = deployed_vit.prepared_codes(codes, num_prefix=2)
    assert torch.equal(signed[:2], torch.zeros(2, 8))
    assert torch.equal(cosine[:2], torch.ones(2, 8))
    assert torch.equal(signed[2:, :4], -angles.sin()[:, :4])
    assert torch.equal(signed[2:, 4:], angles.sin()[:, 4:])
    assert torch.equal(cosine[2:], angles.cos())
    complex_codes = torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))
    assert torch.equal(complex_codes.real, cosine[:, :4])
    assert torch.equal(complex_codes.imag, signed[:, 4:])


def test_a_converted_block_computes_the_same_with_and_without_gradients():
    vit = random_vit()
    convert_vit_to_deploy(vit)
    images = torch.rand(2, 3, 64, 96)
    expected = vit.forward_features(images)  # with gradients: nothing in place
    with torch.no_grad():
        found = vit.forward_features(images)
    assert expected.requires_grad
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_onednn", [False, True])
@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_dinov3", "deimv2_tiny"],  # without, with bias
)
def test_both_libraries_compute_what_is_computed_with_gradients(
    monkeypatch, name, by_onednn
):
    monkeypatch.setattr(onednn, "is_faster", lambda: by_onednn)
    vit = random_vit(name)
    convert_vit_to_deploy(vit)
    tokens = torch.rand(2, 24 + vit.num_prefix_tokens, 32)
    rope = vit.rope.get_embed((4, 6))
    attention = vit.blocks[0].attn
    expected = attention(tokens, rope)
    with torch.no_grad():
        found = attention(tokens, rope)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_that_are_changed_or_loaded_after_an_inference_are_used():
    vit = random_vit()
    convert_vit_to_deploy(vit)
    first = features(vit)
    with torch.no_grad():
        vit.blocks[0].attn.qkv.weight.mul_(1.5)
    changed = features(vit)
    assert not torch.allclose(changed, first, rtol=1e-2)
    state = {key: value.clone() for key, value in vit.state_dict().items()}
    state["blocks.0.attn.qkv.weight"] /= 1.5
    vit.load_state_dict(state, assign=True)
    assert torch.allclose(features(vit), first, rtol=1e-4, atol=1e-4)


def test_weights_in_the_memory_of_replaced_ones_are_used():
    vit = random_vit()
    convert_vit_to_deploy(vit)
    attention = vit.blocks[0].attn
    tokens = torch.rand(1, 6 + vit.num_prefix_tokens, 32)
    rope = vit.rope.get_embed((2, 3))
    for _ in range(10):
        for _ in range(2):  # the second takes the place of the one before
            attention.qkv.weight = torch.nn.Parameter(torch.randn(96, 32))
        with torch.no_grad():
            found = attention(tokens, rope)
        expected = attention(tokens, rope).detach()
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_is_rearranged_once():
    vit = random_vit()
    convert_vit_to_deploy(vit)
    features(vit)
    layer = vit.blocks[0].attn._paired
    features(vit)
    assert vit.blocks[0].attn._paired is layer


def test_a_converted_block_leaves_its_input_as_it_was():
    vit = random_vit()
    convert_vit_to_deploy(vit)
    tokens = torch.rand(2, 24 + vit.num_prefix_tokens, 32)
    before = tokens.clone()
    with torch.no_grad():
        vit.blocks[0](tokens, rope=vit.rope.get_embed((4, 6)))
    assert torch.equal(tokens, before)
