"""The heads of a decoder: what they start from, and which settings change them."""

import math

import pytest
import torch

from src.zoo.dfine.decoder_layers import MLP
from tests.fixtures.detector import WIDTH, small_decoder


def xavier_bound(weight):
    return math.sqrt(6 / (weight.shape[0] + weight.shape[1]))


@pytest.mark.parametrize(
    "name",
    ["enc_score_head.bias", "dec_score_head.0.bias", "dec_score_head.2.bias"],
)
def test_every_class_starts_with_a_score_of_one_percent(name):
    bias = small_decoder(drawn=False).get_parameter(name)
    torch.testing.assert_close(bias.detach(), torch.full_like(bias, -4.59512))


@pytest.mark.parametrize(
    "name",
    [
        "enc_bbox_head.layers.2",
        "pre_bbox_head.layers.2",
        "dec_bbox_head.0.layers.2",
        "dec_bbox_head.2.layers.2",
        "decoder.lqe_layers.1.reg_conf.layers.1",
        "decoder.layers.1.gateway.gate",
    ],
)
def test_last_layers_of_heads_start_from_zero(name):
    layer = small_decoder(drawn=False).get_submodule(name)
    assert not layer.weight.any() and not layer.bias.any()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("enc_output.proj.weight", {}),
        ("query_pos_head.layers.0.weight", {}),
        ("query_pos_head.layers.1.weight", {}),
        ("tgt_embed.weight", {"learn_query_content": True}),
        ("input_proj.0.conv.weight", {"feat_channels": [WIDTH + 4] * 3}),
    ],
)
def test_projections_start_xavier_uniform(name, settings):
    weight = small_decoder(drawn=False, **settings).get_parameter(name)
    bound = xavier_bound(weight)
    assert 0.9 * bound < weight.abs().max() <= bound


def test_embedding_of_labels_starts_normal_with_a_padding_row_of_zeros():
    weight = small_decoder(
        drawn=False, num_classes=200
    ).denoising_class_embed.weight
    assert weight.shape == (201, WIDTH) and not weight[200].any()
    assert weight[:200].std().item() == pytest.approx(1.0, abs=0.05)


def test_selection_from_tokens_has_no_weights_of_its_own():
    keys = small_decoder(query_projection=False).state_dict()
    assert not any(key.startswith("enc_output") for key in keys)


def test_position_head_has_a_third_layer_if_codes_are_computed_once():
    head = small_decoder(query_position="initial").query_pos_head
    shapes = [tuple(layer.weight.shape) for layer in head.linears]
    assert shapes == [(WIDTH, 4), (WIDTH, WIDTH), (WIDTH, WIDTH)]


def test_shared_box_head_is_one_module_under_the_index_of_every_layer():
    decoder = small_decoder(share_box_head=True)
    heads = decoder.dec_bbox_head
    assert len(heads) == 3 and heads[0] is heads[1] is heads[2]
    keys = [key for key in decoder.state_dict() if "dec_bbox_head" in key]
    assert len(keys) == 3 * 6


def test_layers_after_the_one_that_is_used_do_not_share_its_box_head():
    heads = small_decoder(share_box_head=True, eval_idx=1).dec_bbox_head
    assert heads[0] is heads[1] and heads[2] is not heads[1]


def test_activation_reaches_the_quality_heads_and_mlp_act_the_other_heads():
    decoder = small_decoder(activation="silu", mlp_act="gelu")
    kinds = {
        name: type(module.activation).__name__
        for name, module in decoder.named_modules()
        if isinstance(module, MLP)
    }
    quality = [kind for name, kind in kinds.items() if "lqe" in name]
    others = [kind for name, kind in kinds.items() if "lqe" not in name]
    assert set(quality) == {"SiLU"} and set(others) == {"GELU"}
    assert len(quality) == 3 and len(others) == 6


def test_without_denoising_there_is_no_embedding_of_labels():
    assert not hasattr(small_decoder(num_denoising=0), "denoising_class_embed")
