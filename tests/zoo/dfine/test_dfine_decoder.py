import copy
import math

import pytest
import torch

from src.core import ConfigError
from src.ops.activations import inverse_sigmoid
from src.zoo.dfine.decoder_layers import MLP
from src.zoo.dfine.deformable_attention import split_heads
from src.zoo.dfine.distribution import (
    distance_to_box,
    expected_distances,
    weighting_sequence,
)
from src.zoo.dfine.query_selection import make_anchors
from tests.fixtures.detector import (
    BINS,
    CLASSES,
    QUERIES,
    WIDTH,
    feature_maps,
    random_targets,
    small_criterion,
    small_decoder,
    training_outputs,
)

CPU = torch.device("cpu")

DEIMV2 = {
    "activation": "silu",
    "mlp_act": "silu",
    "norm": "rms",
    "feed_forward": "swiglu",
    "query_position": "initial",
    "query_projection": False,
}
"""Settings of DEIMv2's decoder."""


# ---- how it starts ----


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


def test_all_layers_start_from_equal_weights():
    layers = small_decoder(drawn=False).decoder.layers
    assert all(
        torch.equal(value, layers[0].state_dict()[key])
        for layer in layers
        for key, value in layer.state_dict().items()
    )


@pytest.mark.parametrize(
    ("reg_scale", "dtype"),
    [(4, torch.int64), (8, torch.int64), (4.0, torch.float32)],
)
def test_reg_scale_keeps_the_kind_of_number_that_was_written(reg_scale, dtype):
    state = small_decoder(reg_scale=reg_scale).state_dict()
    assert state["reg_scale"].dtype == state[
        "decoder.reg_scale"
    ].dtype == dtype and state["reg_scale"].tolist() == [reg_scale]


def test_up_and_reg_scale_stand_twice_in_the_state_and_share_memory():
    decoder = small_decoder()
    assert (
        decoder.up is decoder.decoder.up
        and decoder.reg_scale is decoder.decoder.reg_scale
    )
    assert (
        not decoder.up.requires_grad
        and not decoder.reg_scale.requires_grad
        and decoder.up.tolist() == [0.5]
    )


def test_anchors_are_buffers_only_where_the_size_of_evaluation_is_known():
    with_size, without = (
        small_decoder(eval_spatial_size=[64, 96]),
        small_decoder(),
    )
    assert (
        with_size.anchors.shape == (1, 8 * 12 + 4 * 6 + 2 * 3, 4)
        and with_size.valid_mask.dtype == torch.bool
    )
    assert not {"anchors", "valid_mask"} & set(without.state_dict())


# ---- what it computes ----


def reference_layers(decoder, maps):
    """Return logits and boxes of all layers from a plain implementation, with the same detached gradients."""
    memory = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
    shapes = tuple(tuple(x.shape[-2:]) for x in maps)
    anchors, valid = make_anchors(shapes, 0.01, CPU)
    e = decoder.enc_output(memory * valid)
    chosen = (
        decoder.enc_score_head(e)
        .max(-1)
        .values.argsort(-1, descending=True)[:, : decoder.num_queries]
    )
    rows = torch.arange(len(memory))[:, None]
    x = e[rows, chosen].detach()
    reference = (
        (
            decoder.enc_bbox_head(x)
            + anchors.expand(len(memory), -1, -1)[rows, chosen]
        )
        .sigmoid()
        .detach()
    )
    weights = weighting_sequence(BINS - 1, decoder.up, decoder.reg_scale)
    values, corners, previous, results = (
        split_heads(memory, decoder.nhead, list(shapes)),
        0,
        0,
        [],
    )
    for i, layer in enumerate(decoder.decoder.layers):
        if i == 0 or decoder.query_position == "refined":
            position = decoder.query_pos_head(reference).clamp(-10, 10)
        x = layer(x, reference, values, position, None)
        if i == 0:
            initial = (
                (decoder.pre_bbox_head(x) + inverse_sigmoid(reference))
                .sigmoid()
                .detach()
            )
        corners = decoder.dec_bbox_head[i](x + previous) + corners
        boxes = distance_to_box(
            initial, expected_distances(corners, weights), decoder.reg_scale
        )
        results.append(
            (
                decoder.dec_score_head[i](x)
                + decoder.decoder.lqe_layers[i](corners),
                boxes,
            )
        )
        reference, previous = boxes.detach(), x.detach()
    return results


@pytest.mark.parametrize(
    "settings", [{}, {"reg_scale": 8}, {"num_layers": 1}, DEIMV2], ids=str
)
def test_evaluation_equals_a_plain_reading_of_the_recipe(settings):
    decoder, maps = small_decoder(**settings).eval(), feature_maps()
    outputs, (logits, boxes) = (
        decoder(maps),
        reference_layers(decoder, maps)[-1],
    )
    torch.testing.assert_close(
        outputs["pred_logits"], logits, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        outputs["pred_boxes"], boxes, rtol=1e-4, atol=1e-5
    )


def test_every_layers_output_in_training_equals_a_plain_reading_of_the_recipe():
    decoder, maps = small_decoder().train(), feature_maps()
    outputs, expected = decoder(maps), reference_layers(decoder, maps)
    for head, (logits, boxes) in zip(
        [*outputs["aux_outputs"], outputs], expected
    ):
        torch.testing.assert_close(
            head["pred_logits"], logits, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            head["pred_boxes"], boxes, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_gradients_of_every_layers_output_equal_those_of_a_plain_reading_of_the_recipe(
    layer,
):
    decoder, maps = (
        small_decoder().train(),
        [x.requires_grad_(True) for x in feature_maps()],
    )
    outputs = decoder(maps)
    head = [*outputs["aux_outputs"], outputs][layer]
    leaves = [*maps, *(p for p in decoder.parameters() if p.requires_grad)]
    ours, expected = (
        torch.autograd.grad(
            logits.square().sum() + boxes.square().sum(),
            leaves,
            allow_unused=True,
        )
        for logits, boxes in (
            (head["pred_logits"], head["pred_boxes"]),
            reference_layers(decoder, maps)[layer],
        )
    )
    for a, b in zip(ours, expected):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(
                a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) + 1e-6
            )


@pytest.mark.parametrize("eval_idx", [0, 1, 2, -1, -3])
def test_evaluation_returns_the_requested_layer(eval_idx):
    decoder, maps = small_decoder(eval_idx=eval_idx), feature_maps()
    layers = decoder.train()(maps)
    expected = [*layers["aux_outputs"], layers][eval_idx]
    for key, value in decoder.eval()(maps).items():
        torch.testing.assert_close(value, expected[key])


def test_evaluation_does_not_run_layers_that_nobody_asks_for():
    decoder, calls = small_decoder(eval_idx=1).eval(), []
    for index, layer in enumerate(decoder.decoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    decoder(feature_maps())
    assert calls == [0, 1]


def test_evaluation_gives_logits_and_boxes_alone():
    outputs = small_decoder().eval()(feature_maps())
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        "pred_logits": (2, QUERIES, CLASSES),
        "pred_boxes": (2, QUERIES, 4),
    }


def test_decoder_attends_to_tokens_at_the_border_too():
    decoder, maps = small_decoder().eval(), feature_maps(height=640, width=640)
    before = decoder(maps)
    maps[0][:, :, 0] += 100 * torch.randn(
        2, WIDTH, 80
    )  # the border ring, whose anchors are invalid
    assert not torch.equal(before["pred_logits"], decoder(maps)["pred_logits"])


# ---- what training gets ----


def test_training_outputs_are_those_that_the_loss_is_promised():
    outputs, _ = training_outputs(3, 1)
    layer = {"pred_logits", "pred_boxes", "pred_corners", "ref_points"}
    assert set(outputs) == layer | {
        "up",
        "reg_scale",
        "aux_outputs",
        "enc_aux_outputs",
        "pre_outputs",
        "enc_meta",
        "dn_outputs",
        "dn_pre_outputs",
        "dn_meta",
    }
    assert all(
        set(head) == layer | {"teacher_corners", "teacher_logits"}
        for head in [*outputs["aux_outputs"], *outputs["dn_outputs"]]
    )
    assert all(
        set(head) == {"pred_logits", "pred_boxes"}
        for head in (
            *outputs["enc_aux_outputs"],
            outputs["pre_outputs"],
            outputs["dn_pre_outputs"],
        )
    )
    assert (
        len(outputs["aux_outputs"]),
        len(outputs["enc_aux_outputs"]),
        len(outputs["dn_outputs"]),
    ) == (
        2,
        1,
        3,
    )


def test_matching_and_denoising_queries_are_split_apart():
    outputs, _ = training_outputs(3, 1)  # 6 // 3 = 2 groups of 2 x 3
    assert (
        outputs["dn_meta"]["dn_num_split"] == [12, QUERIES]
        and outputs["dn_meta"]["dn_num_group"] == 2
    )
    assert {
        head["pred_logits"].shape[1]
        for head in [
            outputs,
            *outputs["aux_outputs"],
            outputs["pre_outputs"],
            *outputs["enc_aux_outputs"],
        ]
    } == {QUERIES}
    assert {
        head["pred_logits"].shape[1]
        for head in [*outputs["dn_outputs"], outputs["dn_pre_outputs"]]
    } == {12}


def test_matching_queries_compute_the_same_with_and_without_denoising():
    decoder, maps, targets = (
        small_decoder().train(),
        feature_maps(),
        random_targets(3, 1),
    )
    torch.testing.assert_close(
        decoder(maps, targets)["pred_logits"],
        decoder(maps)["pred_logits"],
        rtol=1e-4,
        atol=1e-4,
    )


def test_last_layer_teaches_the_others():
    outputs, _ = training_outputs(3, 1)
    assert all(
        torch.equal(head["teacher_corners"], outputs["pred_corners"])
        for head in outputs["aux_outputs"]
    )
    last = outputs["dn_outputs"][-1]
    assert all(
        torch.equal(head["teacher_logits"], last["pred_logits"])
        for head in outputs["dn_outputs"]
    )


def test_a_batch_without_objects_has_denoising_outputs_of_no_length():
    outputs, _ = training_outputs(0, 0)
    assert (
        outputs["dn_meta"]["dn_num_split"] == [0, QUERIES]
        and outputs["dn_meta"]["dn_num_group"] == 0
    )
    assert outputs["dn_outputs"][0]["pred_logits"].shape == (2, 0, CLASSES)


@pytest.mark.parametrize(
    ("settings", "with_targets"),
    [({"num_denoising": 0}, True), ({}, False), ({"aux_loss": False}, True)],
)
def test_there_is_no_denoising_without_queries_targets_or_auxiliary_losses(
    settings, with_targets
):
    outputs, _ = training_outputs(
        3, 1, decoder=small_decoder(**settings), denoise=with_targets
    )
    assert not any(key.startswith("dn_") for key in outputs)


def test_without_denoising_there_is_no_embedding_of_labels():
    assert not hasattr(small_decoder(num_denoising=0), "denoising_class_embed")


def test_without_auxiliary_losses_the_last_layer_comes_alone():
    outputs, _ = training_outputs(3, 1, decoder=small_decoder(aux_loss=False))
    assert set(outputs) == {
        "pred_logits",
        "pred_boxes",
        "pred_corners",
        "ref_points",
        "up",
        "reg_scale",
    }


def test_reference_boxes_are_the_pre_heads_without_a_gradient():
    outputs, _ = training_outputs(3, 1)
    assert (
        torch.equal(outputs["ref_points"], outputs["pre_outputs"]["pred_boxes"])
        and not outputs["ref_points"].requires_grad
    )


def test_denoising_queries_of_another_group_do_not_matter():
    decoder, maps, targets = (
        small_decoder().train(),
        feature_maps(),
        random_targets(3, 2),
    )
    torch.manual_seed(1)
    before = decoder(maps, targets)["dn_outputs"][-1]["pred_logits"]
    decoder.denoising_class_embed.register_forward_hook(
        lambda _, __, output: torch.cat([output[:, :6], output[:, 6:] + 1], 1)
    )
    torch.manual_seed(1)
    after = decoder(maps, targets)["dn_outputs"][-1]["pred_logits"]
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


# ---- every setting trains and evaluates ----

VARIANTS = {
    "default": {},
    "one2many": {"query_select_method": "one2many"},
    "agnostic": {"query_select_method": "agnostic"},
    "discrete": {"cross_attn_method": "discrete"},
    "learned content": {"learn_query_content": True},
    "first layer": {"eval_idx": 0},
    "wide layers": {"eval_idx": 0, "layer_scale": 2},
    "wide after the second": {"eval_idx": 1, "layer_scale": 1.5},
    "fractional scale": {"reg_scale": 4.5},
    "one layer": {"num_layers": 1},
    "other bins": {"reg_max": 16},
    "one number of points": {"num_points": 2},
    "other width": {"feat_channels": [8, 12, 20]},
    "extra level": {"num_levels": 4, "num_points": [2, 3, 1, 1]},
    "two extra levels": {"num_levels": 5, "num_points": 2},
    "dropout": {"dropout": 0.1},
    "other activation": {"activation": "gelu"},
    "SiLU": {"activation": "silu", "mlp_act": "silu"},
    "RMSNorm": {"norm": "rms"},
    "SwiGLU": {"feed_forward": "swiglu"},
    "sum instead of gates": {"gateway": False},
    "position codes computed once": {"query_position": "initial"},
    "selection from tokens": {"query_projection": False},
    "one box head": {"share_box_head": True},
    "DEIMv2": DEIMV2,
    "DEIMv2 with one box head": DEIMV2 | {"share_box_head": True},
    "no denoising": {"num_denoising": 0},
    "no auxiliary losses": {"aux_loss": False},
}


def variant_maps(settings, height=64, width=96):
    return [
        torch.randn(2, channels, height // stride, width // stride)
        for channels, stride in zip(
            settings.get("feat_channels", [WIDTH] * 3), (8, 16, 32)
        )
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains(name):
    settings, targets = VARIANTS[name], random_targets(3, 1)
    decoder = small_decoder(**settings).train()
    weights = {
        "weight_dict": {
            "loss_vfl": 1,
            "loss_bbox": 5,
            "loss_giou": 2,
            "loss_fgl": 0.15,
            "loss_ddf": 1.5,
        },
        "reg_max": settings.get("reg_max", 32),
    }
    losses = small_criterion(**weights)(
        decoder(variant_maps(settings), targets), targets
    )
    sum(losses.values()).backward()
    without = {
        n
        for n, p in decoder.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    }
    if settings.get("aux_loss", True):
        assert without == set()
    else:
        # encoder heads, class heads of other layers and the embedding have only auxiliary losses
        auxiliary = (
            "enc_score_head",
            "enc_bbox_head",
            "enc_output",
            "dec_score_head",
            "denoising",
            "decoder.lqe_layers",
            "pre_bbox_head",
        )
        assert without and all(n.startswith(auxiliary) for n in without)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_evaluates_the_same_after_deployment(name):
    settings = VARIANTS[name]
    decoder, maps = small_decoder(**settings).eval(), variant_maps(settings)
    with torch.inference_mode():
        before = decoder(maps)
        for part in list(decoder.modules()):
            if hasattr(part, "convert_to_deploy"):
                part.convert_to_deploy()
        after = decoder(maps)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"eval_idx": 0, "layer_scale": 2}, {"eval_idx": 1, "layer_scale": 1.5}],
    ids=str,
)
def test_layers_after_the_one_that_is_used_are_wider(settings):
    decoder = small_decoder(**settings)
    wide = round(settings["layer_scale"] * WIDTH)
    widths = [WIDTH if i <= settings["eval_idx"] else wide for i in range(3)]
    assert [
        layer.norm1.normalized_shape[0] for layer in decoder.decoder.layers
    ] == widths
    assert [head.in_features for head in decoder.dec_score_head] == widths
    assert [
        head.layers[0].out_features for head in decoder.dec_bbox_head
    ] == widths


def test_input_of_a_wide_layer_is_stretched_to_the_nearest():
    decoder, seen = small_decoder(eval_idx=0, layer_scale=2).train(), []
    for layer in decoder.decoder.layers[:2]:
        layer.register_forward_hook(
            lambda _, arguments, output: seen.append((arguments[0], output))
        )
    decoder(feature_maps())
    assert torch.equal(seen[1][0], seen[0][1].repeat_interleave(2, -1))


def test_learned_content_takes_the_place_of_tokens():
    decoder, seen = small_decoder(learn_query_content=True).eval(), []
    decoder.decoder.layers[0].register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    decoder(feature_maps())
    assert torch.equal(seen[0], decoder.tgt_embed.weight.expand(2, -1, -1))


def test_agnostic_selection_scores_tokens_by_a_single_number():
    outputs, _ = training_outputs(
        3, 1, decoder=small_decoder(query_select_method="agnostic")
    )
    assert outputs["enc_aux_outputs"][0]["pred_logits"].shape == (
        2,
        QUERIES,
        1,
    ) and outputs["enc_meta"] == {"class_agnostic": True}


def test_one_to_many_selection_takes_a_token_for_several_classes():
    outputs, _ = training_outputs(
        3,
        1,
        decoder=small_decoder(query_select_method="one2many", num_queries=120),
    )
    boxes = outputs["enc_aux_outputs"][0]["pred_boxes"][0]
    assert len(boxes.unique(dim=0)) < len(boxes)


def test_extra_levels_halve_the_coarsest_map():
    decoder = small_decoder(num_levels=5, num_points=2).eval()
    _, shapes = decoder._flatten(feature_maps())
    assert shapes == [
        (8, 12),
        (4, 6),
        (2, 3),
        (1, 2),
        (1, 1),
    ] and decoder.feat_strides == [
        8,
        16,
        32,
        64,
        128,
    ]


def test_an_input_of_another_width_is_projected_by_a_1x1_convolution():
    decoder = small_decoder(feat_channels=[8, WIDTH, 20])
    kinds = [
        tuple(project.conv.kernel_size) if hasattr(project, "conv") else None
        for project in decoder.input_proj
    ]
    assert kinds == [(1, 1), None, (1, 1)]


# ---- sizes ----


@pytest.mark.parametrize("training", [False, True])
def test_fewer_tokens_than_queries_give_as_many_queries_as_tokens(training):
    decoder = small_decoder(num_queries=300).train(training)
    maps, targets = feature_maps(height=32, width=32), random_targets(3, 1)
    outputs = decoder(maps, targets if training else None)
    assert outputs["pred_boxes"].shape == (2, 16 + 4 + 1, 4)
    if training:
        losses = small_criterion()(outputs, targets)
        assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 64), (128, 256)])
def test_sizes_other_than_that_of_evaluation_compute_what_a_decoder_for_them_does(
    size,
):
    other, own, maps = (
        small_decoder(eval_spatial_size=[64, 96]).eval(),
        small_decoder(eval_spatial_size=list(size)).eval(),
        feature_maps(2, *size),
    )
    own.load_state_dict(
        {
            k: v
            for k, v in other.state_dict().items()
            if k not in ("anchors", "valid_mask")
        },
        strict=False,
    )
    for key, value in own(maps).items():
        torch.testing.assert_close(other(maps)[key], value)


def test_stored_anchors_count_at_the_size_of_evaluation_and_at_no_other():
    decoder, own, other = (
        small_decoder(eval_spatial_size=[64, 96]).eval(),
        feature_maps(),
        feature_maps(2, 96, 96),
    )
    before = [decoder(maps)["pred_boxes"] for maps in (own, other)]
    decoder.anchors += 0.1  # as a moving average would leave them
    after = [decoder(maps)["pred_boxes"] for maps in (own, other)]
    assert not torch.equal(before[0], after[0]) and torch.equal(
        before[1], after[1]
    )


def test_stored_anchors_do_not_count_in_training():
    decoder, maps = (
        small_decoder(eval_spatial_size=[64, 96]).train(),
        feature_maps(),
    )
    before = decoder(maps)["pred_boxes"]
    decoder.anchors += 0.1
    assert torch.equal(before, decoder(maps)["pred_boxes"])


def test_training_after_evaluation_at_the_same_size_works():
    decoder, maps = small_decoder().eval(), feature_maps(2, 96, 224)
    with torch.inference_mode():
        decoder(maps)
    decoder.train()(maps)["enc_aux_outputs"][0]["pred_boxes"].sum().backward()
    assert decoder.enc_output.proj.weight.grad is not None


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"feat_strides": [8, 16]},
            "feat_channels [16, 16, 16] and feat_strides [8, 16] differ in length",
        ),
        (
            {"num_levels": 2, "num_points": [1, 1]},
            "num_levels is 2, but there are 3 feat_channels",
        ),
        (
            {"num_points": [3, 6]},
            "num_points [3, 6] needs one number for each of 3 levels",
        ),
        ({"eval_idx": 3}, "eval_idx must point at one of 3 layers"),
        ({"eval_idx": -4}, "eval_idx must point at one of 3 layers"),
        ({"layer_scale": 0.5}, "layer_scale is 0.5, expected at least 1"),
        ({"reg_max": 31}, "reg_max is 31, expected an even number from 4"),
        ({"reg_max": 2}, "reg_max is 2, expected an even number from 4"),
        ({"num_classes": 0}, "num_classes is 0, expected at least 1"),
        ({"num_queries": 0}, "num_queries is 0, expected at least 1"),
        ({"num_denoising": -1}, "num_denoising is -1, expected at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        small_decoder(**settings)
    assert str(caught.value) == f"DFINETransformer: {message}"


def test_half_precision_keeps_boxes_and_corners_in_single():
    decoder, maps = small_decoder().train(), feature_maps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = decoder(maps, random_targets(3, 1))
    assert {
        key: outputs[key].dtype
        for key in ("pred_boxes", "pred_corners", "ref_points")
    } == dict.fromkeys(
        ("pred_boxes", "pred_corners", "ref_points"), torch.float32
    )


def test_position_code_of_a_query_is_limited():
    decoder, seen = small_decoder().eval(), []
    decoder.query_pos_head.layers[1].bias.data.fill_(1e4)
    decoder.decoder.layers[0].register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[3])
    )
    decoder(feature_maps())
    assert seen[0].max() == 10


# ---- what DEIM and DEIMv2 change ----


def test_selection_from_tokens_has_no_weights_of_its_own():
    keys = small_decoder(query_projection=False).state_dict()
    assert not any(key.startswith("enc_output") for key in keys)


def test_position_head_has_a_third_layer_if_codes_are_computed_once():
    head = small_decoder(query_position="initial").query_pos_head
    shapes = [tuple(layer.weight.shape) for layer in head.linears]
    assert shapes == [(WIDTH, 4), (WIDTH, WIDTH), (WIDTH, WIDTH)]


def test_refined_and_initial_position_codes_differ_from_the_second_layer_on():
    maps = feature_maps()
    once = small_decoder(query_position="initial").train()
    again = copy.deepcopy(once)
    again.decoder.refines_position = True
    first, second = once(maps)["aux_outputs"]
    first_again, second_again = again(maps)["aux_outputs"]
    assert torch.equal(first["pred_logits"], first_again["pred_logits"])
    assert not torch.allclose(
        second["pred_logits"], second_again["pred_logits"]
    )


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
