import pytest
import torch

from src.core import ConfigError, NumericsError
from src.ops.boxes import cxcywh_to_xyxy, iou_and_giou
from tests.fixtures.detector import (
    CLASSES,
    LOSS_WEIGHTS,
    random_boxes,
    small_criterion,
    small_decoder,
    training_outputs,
)
from tests.fixtures.golden import SIZES, coco_config
from tests.fixtures.plain_losses import reference_losses

# ---- which terms there are ----


def expected_names(layers, denoising=True):
    """Return the names of all terms by the table of the recipe."""
    class_and_box = ("loss_vfl", "loss_bbox", "loss_giou")
    names = {*class_and_box, "loss_fgl"}
    names |= {
        f"{term}_aux_{i}" for i in range(layers - 1) for term in LOSS_WEIGHTS
    }
    names |= {
        f"{term}_{head}" for head in ("pre", "enc_0") for term in class_and_box
    }
    if denoising:
        names |= {
            f"{term}_dn_{i}" for i in range(layers) for term in LOSS_WEIGHTS
        } | {f"{term}_dn_pre" for term in class_and_box}
    return names


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_terms_of_every_head_are_emitted(layers):
    losses = small_criterion()(
        *training_outputs(3, 1, decoder=small_decoder(num_layers=layers))
    )
    assert set(losses) == expected_names(layers)


@pytest.mark.parametrize(
    ("size", "count"), list(zip(SIZES, (38, 38, 48, 68, 68)))
)
def test_published_sizes_have_the_published_number_of_terms(size, count):
    layers = coco_config(size).yaml_cfg["DFINETransformer"]["num_layers"]
    losses = small_criterion()(
        *training_outputs(2, decoder=small_decoder(num_layers=layers))
    )
    assert len(losses) == count


def test_without_denoising_all_other_terms_stay():
    losses = small_criterion()(*training_outputs(3, 1, denoise=False))
    assert set(losses) == expected_names(3, denoising=False)


def test_without_auxiliary_outputs_the_last_layers_terms_stay():
    losses = small_criterion()(
        *training_outputs(3, 1, decoder=small_decoder(aux_loss=False))
    )
    assert set(losses) == {"loss_vfl", "loss_bbox", "loss_giou", "loss_fgl"}


@pytest.mark.parametrize("left_out", LOSS_WEIGHTS)
def test_a_term_without_a_weight_is_left_out(left_out):
    weights = {
        name: weight
        for name, weight in LOSS_WEIGHTS.items()
        if name != left_out
    }
    losses = small_criterion(weight_dict=weights)(*training_outputs(3, 1))
    assert set(losses) == {
        name for name in expected_names(3) if not name.startswith(left_out)
    }


def test_a_weight_that_no_loss_uses_is_refused():
    with pytest.raises(ConfigError) as caught:
        small_criterion(losses=["vfl", "boxes"])
    assert (
        str(caught.value)
        == "DFINECriterion.weight_dict weighs loss_ddf, loss_fgl, "
        "which none of losses ['vfl', 'boxes'] computes"
    )


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_every_term_is_multiplied_by_its_weight(factor):
    outputs, targets = training_outputs(3, 1)
    base, scaled = (
        small_criterion(weight_dict=weights)(outputs, targets)
        for weights in (
            LOSS_WEIGHTS,
            {name: factor * weight for name, weight in LOSS_WEIGHTS.items()},
        )
    )
    for name in base:
        torch.testing.assert_close(scaled[name], factor * base[name])


# ---- values against a plain reading of the recipe ----


CASES = {
    "plain": ({}, (3, 1)),
    "image without objects": ({}, (0, 2, 1)),
    "more objects than queries": ({}, (14, 1)),
    "four layers": ({"num_layers": 4}, (2, 2)),
    "scale 8": ({"reg_scale": 8}, (3, 1)),
    "agnostic": ({"query_select_method": "agnostic"}, (3, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_term_equals_a_plain_reading_of_the_recipe(case):
    settings, counts = CASES[case]
    with torch.no_grad():
        outputs, targets = training_outputs(
            *counts, decoder=small_decoder(**settings)
        )
        ours, expected = (
            {name: float(loss) for name, loss in losses.items()}
            for losses in (
                small_criterion()(outputs, targets),
                reference_losses(outputs, targets),
            )
        )
    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-5)


WITHOUT_UNION = {
    "use_uni_set": False,
    "losses": ["vfl", "boxes"],
    "weight_dict": {"loss_vfl": 1, "loss_bbox": 5, "loss_giou": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_without_the_union_boxes_of_each_head_have_its_own_matching(case):
    settings, counts = CASES[case]
    with torch.no_grad():
        outputs, targets = training_outputs(
            *counts, decoder=small_decoder(**settings)
        )
        disagree(outputs)
        ours = small_criterion(**WITHOUT_UNION)(outputs, targets)
        plain = reference_losses(outputs, targets, use_uni_set=False)
        united = reference_losses(outputs, targets)
    assert len(ours) >= 3 * 7
    for name, loss in ours.items():
        assert float(loss) == pytest.approx(float(plain[name]), rel=1e-4)
    assert float(ours["loss_bbox"]) != pytest.approx(float(united["loss_bbox"]))


def disagree(outputs):
    """Give every head random boxes, so that heads match different queries."""
    layers = [*outputs["aux_outputs"], outputs]
    for head in (*layers, outputs["pre_outputs"], *outputs["enc_aux_outputs"]):
        boxes = head["pred_boxes"]
        drawn = random_boxes(boxes[..., 0].numel())
        head["pred_boxes"] = drawn.view_as(boxes)


def test_localization_without_the_union_is_refused():
    with pytest.raises(ConfigError, match="use_uni_set is False, but losses"):
        small_criterion(use_uni_set=False)


def test_gradients_equal_those_of_a_plain_reading_of_the_recipe():
    decoder = small_decoder()
    outputs, targets = training_outputs(3, 1, decoder=decoder)
    leaves = [p for p in decoder.parameters() if p.requires_grad]
    ours, expected = (
        torch.autograd.grad(
            sum(losses.values()), leaves, retain_graph=True, allow_unused=True
        )
        for losses in (
            small_criterion()(outputs, targets),
            reference_losses(outputs, targets),
        )
    )
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# ---- single heads ----


def test_the_last_denoising_layer_is_its_own_teacher():
    losses = small_criterion()(*training_outputs(3, 1))
    assert losses["loss_ddf_dn_2"] == 0 and losses["loss_ddf_dn_1"] != 0


def test_encoder_without_classes_takes_every_object_as_the_same():
    decoder = small_decoder(query_select_method="agnostic")
    outputs, targets = training_outputs(3, 2, decoder=decoder)
    relabelled = [
        target | {"labels": (target["labels"] + 1) % CLASSES}
        for target in targets
    ]
    a, b = (
        small_criterion()(outputs, targets),
        small_criterion()(outputs, relabelled),
    )
    assert torch.equal(
        a["loss_vfl_enc_0"], b["loss_vfl_enc_0"]
    ) and not torch.equal(a["loss_vfl"], b["loss_vfl"])


@pytest.mark.parametrize("weight_by", ["iou", "giou"])
def test_boxes_can_be_weighted_by_their_overlap(weight_by):
    outputs, targets = training_outputs(
        1, decoder=small_decoder(aux_loss=False)
    )
    losses = small_criterion(
        boxes_weight_format=weight_by,
        weight_dict={"loss_vfl": 1, "loss_giou": 1},
        losses=["vfl", "boxes"],
    )(outputs, targets)
    query = small_criterion().matcher(outputs, targets)["indices"][0][0]
    iou, giou = (
        x.item()
        for x in iou_and_giou(
            cxcywh_to_xyxy(outputs["pred_boxes"][0, query]),
            cxcywh_to_xyxy(targets[0]["boxes"]),
        )
    )
    quality = {"iou": iou, "giou": giou}[weight_by]
    assert losses["loss_giou"].item() == pytest.approx(
        (1 - giou) * quality, rel=1e-4
    )


# ---- corner cases ----


@pytest.mark.parametrize("counts", [(0,), (0, 0)])
def test_a_batch_without_any_object_has_finite_terms_and_gradients(counts):
    decoder = small_decoder()
    losses = small_criterion()(*training_outputs(*counts, decoder=decoder))
    assert set(losses) == expected_names(3) and all(
        loss.isfinite() for loss in losses.values()
    )
    sum(losses.values()).backward()
    assert all(
        p.grad is None or p.grad.isfinite().all() for p in decoder.parameters()
    )


def test_every_trained_parameter_gets_a_gradient_even_without_objects():
    decoder = small_decoder()
    sum(
        small_criterion()(*training_outputs(0, 0, decoder=decoder)).values()
    ).backward()
    assert [
        name
        for name, p in decoder.named_parameters()
        if p.requires_grad and p.grad is None
    ] == []


def test_nothing_is_left_behind_by_a_call():
    criterion, (outputs, targets) = small_criterion(), training_outputs(3, 1)
    first = criterion(outputs, targets)
    criterion(*training_outputs(5, 5))
    again = criterion(outputs, targets)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_arguments_are_not_changed():
    outputs, targets = training_outputs(3, 1)
    before = {
        key: value.clone()
        for key, value in outputs.items()
        if isinstance(value, torch.Tensor)
    }
    sum(small_criterion()(outputs, targets).values()).backward()
    assert all(
        torch.equal(outputs[key], value) for key, value in before.items()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_are_computed_in_single_precision_under_autocast(dtype):
    outputs, targets = training_outputs(3, 1)
    expected = small_criterion()(outputs, targets)
    with torch.autocast("cpu", dtype=dtype):
        losses = small_criterion()(outputs, targets)
    assert all(
        losses[name].dtype == torch.float32 and torch.equal(losses[name], value)
        for name, value in expected.items()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_terms_of_boxes_in_another_precision_are_computed_in_single(dtype):
    outputs, targets = training_outputs(3, 1)
    rounded = [
        t | {"boxes": t["boxes"].to(torch.bfloat16).float()} for t in targets
    ]
    given = [t | {"boxes": t["boxes"].to(dtype)} for t in rounded]
    losses = small_criterion()(outputs, given)
    for name, value in small_criterion()(outputs, rounded).items():
        assert losses[name].dtype == torch.float32 and torch.equal(
            losses[name], value
        )


@pytest.mark.parametrize(
    ("head", "key", "term"),
    [
        ("pre_outputs", "pred_logits", "cost_class"),
        ("pre_outputs", "pred_boxes", "cost_bbox"),
    ],
)
def test_a_prediction_that_is_not_finite_is_reported(head, key, term):
    outputs, targets = training_outputs(3, 1)
    outputs[head][key] = torch.full_like(outputs[head][key], torch.nan)
    with pytest.raises(
        NumericsError,
        match=f"matching {term} is not finite for image 0 of 2 in the batch",
    ):
        small_criterion()(outputs, targets)


def test_focal_loss_can_take_the_place_of_the_varifocal_one():
    losses = small_criterion(losses=["focal"], weight_dict={"loss_focal": 1})(
        *training_outputs(3, 1)
    )
    assert {
        name for name in losses if "enc" in name or name == "loss_focal"
    } == {
        "loss_focal",
        "loss_focal_enc_0",
    }


def test_matchability_aware_loss_can_take_the_place_of_the_varifocal_one():
    outputs, targets = training_outputs(3, 1)
    losses = small_criterion(losses=["mal"], weight_dict={"loss_mal": 1})(
        outputs, targets
    )
    half = small_criterion(
        losses=["mal"], weight_dict={"loss_mal": 1}, mal_alpha=0.5
    )(outputs, targets)
    assert "loss_mal_aux_0" in losses and "loss_mal_dn_pre" in losses
    assert half["loss_mal"] < losses["loss_mal"]


def test_the_matcher_learns_which_epoch_it_is():
    criterion = small_criterion()
    criterion.matcher.matcher_change_epoch = 3
    criterion.set_epoch(3)
    assert criterion.matcher.late
