import pytest
import torch
import torch.nn.functional as F

from src.core import ConfigError
from src.zoo.dfine import HybridEncoder
from src.zoo.dfine.hybrid_encoder import TransformerEncoder, position_table
from tests.fixtures.vits import randomize

CPU = torch.device("cpu")
CHANNELS = [4, 6, 8]


def encoder(**settings):
    defaults = {
        "in_channels": CHANNELS,
        "hidden_dim": 8,
        "nhead": 2,
        "dim_feedforward": 12,
        "depth_mult": 0.34,
    }
    return randomize(HybridEncoder(**(defaults | settings)))


def maps(height=64, width=96, channels=CHANNELS):
    return [
        torch.randn(2, c, height // s, width // s)
        for c, s in zip(channels, (8, 16, 32)[3 - len(channels) :])
    ]


# ---- position codes ----


def test_position_codes_are_the_published_ones():
    table = position_table(2, 2, 8, 10000, CPU)[0]
    torch.testing.assert_close(
        table[1],
        torch.tensor([0, 0, 1, 1, 0.84147, 0.01, 0.54030, 0.99995]),
        rtol=0,
        atol=1e-5,
    )
    torch.testing.assert_close(
        table[2],
        torch.tensor([0.84147, 0.01, 0.54030, 0.99995, 0, 0, 1, 1]),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("side", [3, 20])
def test_position_codes_of_a_square_map_are_the_official_table(side):
    frequency = 10000 ** (-torch.arange(4).float() / 4)
    slow, fast = (
        torch.arange(side * side) // side,
        torch.arange(side * side) % side,
    )
    official = torch.cat(
        [
            (slow[:, None] * frequency).sin(),
            (slow[:, None] * frequency).cos(),
            (fast[:, None] * frequency).sin(),
            (fast[:, None] * frequency).cos(),
        ],
        1,
    )
    torch.testing.assert_close(
        position_table(side, side, 16, 10000, CPU)[0],
        official,
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize(("height", "width"), [(2, 5), (5, 2), (1, 4)])
def test_position_code_of_each_token_is_that_of_its_row_and_column(
    height, width
):
    table = position_table(height, width, 8, 10000, CPU)[0]
    for y in range(height):
        for x in range(width):
            angles = torch.tensor([y, y * 0.01, x, x * 0.01])
            expected = torch.cat(
                [
                    angles[:2].sin(),
                    angles[:2].cos(),
                    angles[2:].sin(),
                    angles[2:].cos(),
                ]
            )
            torch.testing.assert_close(
                table[y * width + x], expected, rtol=0, atol=1e-5
            )


def test_position_codes_made_during_inference_can_be_trained_with():
    module, x = encoder(), maps(32, 160)
    with torch.inference_mode():
        module.eval()(x)
    sum(y.sum() for y in module.train()(x)).backward()
    assert module.input_proj[0].conv.weight.grad is not None


@pytest.mark.parametrize("size", [(64, 160), (160, 64)])
def test_position_codes_of_evaluation_images_are_made_with_the_encoder(size):
    position_table.cache_clear()
    module = encoder(eval_spatial_size=size, use_encoder_idx=[1, 2]).eval()
    assert position_table.cache_info().currsize == 2
    module(maps(*size))
    assert position_table.cache_info().currsize == 2


# ---- structure ----


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (160, 32)])
def test_every_level_keeps_its_size_and_gets_the_hidden_width(size):
    assert [tuple(y.shape) for y in encoder()(maps(*size))] == [
        (2, 8, size[0] // s, size[1] // s) for s in (8, 16, 32)
    ]


def test_levels_are_fused_top_down_then_bottom_up():
    module, x = encoder(use_encoder_idx=[]).eval(), maps()
    fine, middle, coarse = [
        project(y) for project, y in zip(module.input_proj, x)
    ]
    top = module.lateral_convs[0](coarse)
    inner = module.fpn_blocks[0](
        torch.cat(
            [F.interpolate(top, scale_factor=2, mode="nearest"), middle], 1
        )
    )
    middle = module.lateral_convs[1](inner)
    fine = module.fpn_blocks[1](
        torch.cat(
            [F.interpolate(middle, scale_factor=2, mode="nearest"), fine], 1
        )
    )
    out_middle = module.pan_blocks[0](
        torch.cat([module.downsample_convs[0](fine), middle], 1)
    )
    out_coarse = module.pan_blocks[1](
        torch.cat([module.downsample_convs[1](out_middle), top], 1)
    )
    for ours, expected in zip(module(x), (fine, out_middle, out_coarse)):
        torch.testing.assert_close(ours, expected)


def test_attention_acts_on_the_requested_levels():
    module, x = encoder(use_encoder_idx=[1, 2]), maps()
    seen = []
    for layer in module.encoder:
        layer.register_forward_pre_hook(
            lambda _, arguments: seen.append(arguments[0].shape[1])
        )
    module(x)
    assert seen == [4 * 6, 2 * 3]


def test_without_attention_layers_no_level_has_attention():
    module = encoder(use_encoder_idx=[1, 2], num_encoder_layers=0)
    assert not [name for name, _ in module.named_parameters() if "attn" in name]
    assert module.coarsest_attention() is None
    assert len(module(maps())) == 3


def test_attention_layer_is_post_norm_with_positions_in_queries_and_keys():
    layer = randomize(TransformerEncoder(8, 2, 12, 0.0, "gelu", 1)).layers[0]
    tokens, position = torch.randn(2, 6, 8), torch.randn(1, 6, 8)
    first = layer.norm1(
        tokens
        + layer.self_attn(tokens + position, tokens + position, tokens)[0]
    )
    expected = layer.norm2(first + layer.linear2(F.gelu(layer.linear1(first))))
    torch.testing.assert_close(layer(tokens, position), expected)


def test_all_layers_of_a_stack_start_from_equal_weights():
    layers = TransformerEncoder(8, 2, 12, 0.0, "gelu", 3).layers
    first = layers[0].state_dict()
    assert all(
        torch.equal(value, first[key])
        for layer in layers[1:]
        for key, value in layer.state_dict().items()
    )


@pytest.mark.parametrize(
    ("expansion", "hidden_dim", "inner"),
    [(0.34, 128, 21), (0.5, 256, 64), (1.0, 256, 128), (1.0, 384, 192)],
)
def test_inner_width_follows_from_expansion_as_published(
    expansion, hidden_dim, inner
):
    module = HybridEncoder(
        in_channels=CHANNELS,
        hidden_dim=hidden_dim,
        expansion=expansion,
        depth_mult=0.34,
    )
    assert module.fpn_blocks[0].cv2[1].conv.out_channels == inner


@pytest.mark.parametrize(
    ("depth_mult", "blocks"), [(0.34, 1), (0.5, 2), (0.67, 2), (1, 3)]
)
def test_number_of_blocks_follows_from_depth_as_published(depth_mult, blocks):
    assert (
        len(encoder(depth_mult=depth_mult).fpn_blocks[0].cv2[0].bottlenecks)
        == blocks
    )


@pytest.mark.parametrize("act", ["silu", "relu"])
def test_act_is_the_activation_of_the_fusion_blocks(act):
    module = encoder(act=act)
    assert {
        type(block.cv1.act).__name__.lower()
        for block in (*module.fpn_blocks, *module.pan_blocks)
    } == {act}


def test_lateral_and_down_sampling_convolutions_have_no_activation():
    module = encoder()
    parts = [
        *module.lateral_convs,
        *(down[0].cv1 for down in module.downsample_convs),
        *(down[0].cv2 for down in module.downsample_convs),
    ]
    assert {type(part.act).__name__ for part in parts} == {"Identity"}


@torch.no_grad()
def test_fused_encoder_computes_the_same():
    module, x = encoder().eval(), maps()
    expected = module(x)
    for part in list(module.modules()):
        if hasattr(part, "convert_to_deploy"):
            part.convert_to_deploy()
    for ours, before in zip(module(x), expected):
        torch.testing.assert_close(ours, before, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter():
    module = encoder()
    sum(y.square().sum() for y in module(maps())).backward()
    assert [
        name for name, p in module.named_parameters() if p.grad is None
    ] == []


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"feat_strides": [8, 16]},
            r"HybridEncoder.in_channels [4, 6, 8] and feat_strides [8, 16] differ in length",
        ),
        (
            {"use_encoder_idx": [3]},
            "HybridEncoder.use_encoder_idx is [3], expected levels from 0 to 2",
        ),
        (
            {"use_encoder_idx": [-1]},
            "HybridEncoder.use_encoder_idx is [-1], expected levels from 0 to 2",
        ),
        (
            {"num_encoder_layers": -1},
            "HybridEncoder.num_encoder_layers is -1, expected at least 0",
        ),
        (
            {"hidden_dim": 10},
            "HybridEncoder.hidden_dim 10 must be a multiple of 4 and of nhead 2",
        ),
        (
            {"hidden_dim": 8, "nhead": 3},
            "HybridEncoder.hidden_dim 8 must be a multiple of 4 and of nhead 3",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        encoder(**settings)
    assert str(caught.value) == message


def test_channels_and_strides_of_the_output_are_attributes():
    module = encoder()
    assert (module.out_channels, module.out_strides) == ([8, 8, 8], [8, 16, 32])


def test_sum_fusion_adds_the_maps_that_a_block_fuses():
    module, x = encoder(use_encoder_idx=[], fuse_op="sum").eval(), maps()
    fine, middle, coarse = [
        project(y) for project, y in zip(module.input_proj, x)
    ]

    def up(y):
        return F.interpolate(y, scale_factor=2, mode="nearest")

    top = module.lateral_convs[0](coarse)
    middle = module.lateral_convs[1](module.fpn_blocks[0](up(top) + middle))
    fine = module.fpn_blocks[1](up(middle) + fine)
    out_middle = module.pan_blocks[0](module.downsample_convs[0](fine) + middle)
    out_coarse = module.pan_blocks[1](
        module.downsample_convs[1](out_middle) + top
    )
    for ours, expected in zip(module(x), (fine, out_middle, out_coarse)):
        torch.testing.assert_close(ours, expected)


def test_maps_of_the_hidden_width_can_enter_without_a_projection():
    settings = {"in_channels": [4, 8, 8], "project_input": "if_needed"}
    module = encoder(**settings)
    keys = [key for key in module.state_dict() if key.startswith("input_proj")]
    assert keys and all(key.startswith("input_proj.0.") for key in keys)
    assert len(module(maps(channels=[4, 8, 8]))) == 3


@pytest.mark.parametrize("fusion_block", ["gelan_csp2", "gelan_slim"])
@pytest.mark.parametrize("fuse_op", ["cat", "sum"])
@torch.no_grad()
def test_encoders_of_deimv2_compute_the_same_after_fusing(
    fusion_block, fuse_op
):
    module = encoder(fusion_block=fusion_block, fuse_op=fuse_op).eval()
    x = maps()
    before = module(list(x))
    for part in list(module.modules()):
        if hasattr(part, "convert_to_deploy"):
            part.convert_to_deploy()
    for fused, expected in zip(module(list(x)), before):
        torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)
