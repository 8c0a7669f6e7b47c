import pytest
import torch

from src.ops.activations import inverse_sigmoid
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


@pytest.mark.parametrize(
    ("reg_scale", "dtype"),
    [(4, torch.int64), (8, torch.int64), (4.0, torch.float32)],
)
def test_reg_scale_keeps_the_kind_of_number_that_was_written(reg_scale, dtype):
    state = small_decoder(reg_scale=reg_scale).state_dict()
    assert state["reg_scale"].dtype == state[
        "decoder.reg_scale"
    ].dtype == dtype and state["reg_scale"].tolist() == [reg_scale]


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


# ---- denoising queries ----


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


def test_learned_content_takes_the_place_of_tokens():
    decoder, seen = small_decoder(learn_query_content=True).eval(), []
    decoder.decoder.layers[0].register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0])
    )
    decoder(feature_maps())
    assert torch.equal(seen[0], decoder.tgt_embed.weight.expand(2, -1, -1))


def test_one_to_many_selection_takes_a_token_for_several_classes():
    outputs, _ = training_outputs(
        3,
        1,
        decoder=small_decoder(query_select_method="one2many", num_queries=120),
    )
    boxes = outputs["enc_aux_outputs"][0]["pred_boxes"][0]
    assert len(boxes.unique(dim=0)) < len(boxes)


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


# ---- precision ----


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
