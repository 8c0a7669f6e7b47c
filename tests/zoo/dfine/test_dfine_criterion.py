import pytest
import torch
import torch.nn.functional as F

from src.core import ConfigError, NumericsError
from src.core.contracts import LearnsDetections, TaughtDetections
from src.ops.boxes import cxcywh_to_xyxy, iou_and_giou
from src.zoo.dfine.dfine_criterion import Normalizers, all_rank_normalizers
from src.zoo.dfine.distribution import box_to_bins, weighting_sequence
from tests.fixtures.detector import (
    BINS,
    CLASSES,
    LOSS_WEIGHTS,
    QUERIES,
    random_boxes,
    small_criterion,
    small_decoder,
    training_outputs,
)
from tests.fixtures.golden import SIZES, coco_config

ALPHA, GAMMA = 0.75, 2.0


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


def union(head_pairs):
    """Return an image's pairs that most heads agree on: the first of each query by count, query, target."""
    counts = {}
    for pairs in head_pairs:
        for pair in pairs:
            counts[pair] = counts.get(pair, 0) + 1
    kept = {}
    for (query, target), _ in sorted(
        counts.items(), key=lambda item: (-item[1], item[0])
    ):
        kept.setdefault(query, target)
    return sorted(kept.items())


def reference_losses(outputs, targets, *, use_uni_set=True):
    """Return all weighted terms, head by head, image by image and pair by pair."""
    matcher, losses, images = small_criterion().matcher, {}, range(len(targets))
    total = max(sum(len(t["labels"]) for t in targets), 1)

    def matched(head):
        indices = matcher(
            {key: head[key].detach() for key in ("pred_logits", "pred_boxes")},
            targets,
        )["indices"]
        return [
            list(zip(query.tolist(), target.tolist()))
            for query, target in indices
        ]

    layers = [*outputs["aux_outputs"], outputs]
    heads = {
        **{f"_aux_{i}": head for i, head in enumerate(layers[:-1])},
        "": outputs,
        "_pre": outputs["pre_outputs"],
        "_enc_0": outputs["enc_aux_outputs"][0],
    }
    own = {suffix: matched(head) for suffix, head in heads.items()}
    united = [union([own[suffix][image] for suffix in own]) for image in images]
    total_united = max(sum(map(len, united)), 1)
    for suffix, head in heads.items():
        add_class_terms(losses, suffix, head, own[suffix], targets, total)
        boxes, normalizer = united, total_united
        if not use_uni_set:
            boxes, normalizer = own[suffix], total
        add_box_terms(losses, suffix, head, boxes, targets, normalizer, outputs)
    counts = edge_counts(united, QUERIES, len(targets))
    for i, head in enumerate(layers[:-1]):
        losses[f"loss_ddf_aux_{i}"] = 1.5 * distillation(
            head, united, targets, counts
        )
    groups = outputs["dn_meta"]["dn_num_group"]
    objects = [
        range(len(targets[image]["labels"])) if few is None else few.tolist()
        for image, few in zip(images, outputs["dn_meta"]["dn_chosen"])
    ]
    pairs = [
        [
            (int(query), own[index % len(own)])
            for index, query in enumerate(
                outputs["dn_meta"]["dn_positive_idx"][image]
            )
        ]
        for image, own in zip(images, objects)
    ]
    for suffix, head in {
        **{f"_dn_{i}": head for i, head in enumerate(outputs["dn_outputs"])},
        "_dn_pre": outputs["dn_pre_outputs"],
    }.items():
        add_class_terms(losses, suffix, head, pairs, targets, total * groups)
        add_box_terms(
            losses, suffix, head, pairs, targets, total * groups, outputs
        )
    for i, head in enumerate(outputs["dn_outputs"]):
        is_teacher = i == len(layers) - 1
        losses[f"loss_ddf_dn_{i}"] = (
            torch.zeros(())
            if is_teacher
            else 1.5 * distillation(head, pairs, targets, counts)
        )
    return losses


def overlaps(head, image, pairs, targets):
    """Return IoU and GIoU of an image's pairs."""
    query, target = (
        (torch.tensor(column, dtype=torch.int64) for column in zip(*pairs))
        if pairs
        else [torch.zeros(0, dtype=torch.int64)] * 2
    )
    return iou_and_giou(
        cxcywh_to_xyxy(head["pred_boxes"][image, query]),
        cxcywh_to_xyxy(targets[image]["boxes"][target]),
    )


def add_class_terms(losses, suffix, head, pairs, targets, normalizer):
    loss = 0.0
    for image, logits in enumerate(head["pred_logits"]):
        one_hot, soft = torch.zeros_like(logits), torch.zeros_like(logits)
        for (query, target), iou in zip(
            pairs[image],
            overlaps(head, image, pairs[image], targets)[0].detach(),
        ):
            label = (
                targets[image]["labels"][target] if logits.shape[-1] > 1 else 0
            )
            one_hot[query, label], soft[query, label] = 1, iou
        weight = (
            ALPHA * logits.detach().sigmoid() ** GAMMA * (1 - one_hot) + soft
        )
        loss = (
            loss
            + (
                weight
                * F.binary_cross_entropy_with_logits(
                    logits, soft, reduction="none"
                )
            ).sum()
            / normalizer
        )
    losses[f"loss_vfl{suffix}"] = loss


def add_box_terms(losses, suffix, head, pairs, targets, normalizer, outputs):
    l1 = giou_loss = fgl = 0.0
    scale = float(outputs["reg_scale"])
    weights = weighting_sequence(
        BINS - 1, outputs["up"].detach(), outputs["reg_scale"].detach()
    )
    for image, of_image in enumerate(pairs):
        ious, gious = overlaps(head, image, of_image, targets)
        for (query, target), iou, giou in zip(of_image, ious.detach(), gious):
            box = targets[image]["boxes"][target]
            l1 = (
                l1
                + (head["pred_boxes"][image, query] - box).abs().sum()
                / normalizer
            )
            giou_loss = giou_loss + (1 - giou) / normalizer
            if "pred_corners" not in head:
                continue
            x, y, w, h = head["ref_points"][image, query].detach().tolist()
            x1, y1, x2, y2 = cxcywh_to_xyxy(box).tolist()
            distances = [
                (x - x1) / (w / scale),
                (y - y1) / (h / scale),
                (x2 - x) / (w / scale),
                (y2 - y) / (h / scale),
            ]
            for edge, distance in enumerate(d - scale / 2 for d in distances):
                k = int((weights <= distance).sum()) - 1
                right = (
                    0.0
                    if k < 0
                    else 1.0
                    if k >= BINS - 1
                    else float(
                        (distance - weights[k]) / (weights[k + 1] - weights[k])
                    )
                )
                k = min(max(k, 0), BINS - 2)
                log_p = (
                    head["pred_corners"][image, query]
                    .view(4, BINS)[edge]
                    .log_softmax(-1)
                )
                fgl = (
                    fgl
                    - iou
                    * (log_p[k] * (1 - right) + log_p[k + 1] * right)
                    / normalizer
                )
    losses[f"loss_bbox{suffix}"], losses[f"loss_giou{suffix}"] = (
        5 * l1,
        2 * giou_loss,
    )
    if "pred_corners" in head:
        losses[f"loss_fgl{suffix}"] = 0.15 * fgl


def edge_counts(pairs, queries, batch):
    positive = 4 * sum(map(len, pairs))
    return (8 / batch * positive) ** 0.5, (
        8 / batch * (4 * queries * batch - positive)
    ) ** 0.5


def distillation(head, pairs, targets, counts):
    trust, positive = (
        head["teacher_logits"].detach().sigmoid().amax(-1),
        torch.zeros(head["pred_logits"].shape[:2], dtype=torch.bool),
    )
    for image, of_image in enumerate(pairs):
        for (query, _), iou in zip(
            of_image, overlaps(head, image, of_image, targets)[0].detach()
        ):
            trust[image, query], positive[image, query] = iou, True
    log_p, log_t = (
        (head[key].unflatten(-1, (4, BINS)) / 5).log_softmax(-1)
        for key in ("pred_corners", "teacher_corners")
    )
    log_t = log_t.detach()
    loss = trust[..., None] * 25 * (log_t.exp() * (log_t - log_p)).sum(-1)
    means = [
        loss[mask].mean() if mask.any() else 0.0
        for mask in (positive, ~positive)
    ]
    return (means[0] * counts[0] + means[1] * counts[1]) / sum(counts)


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


# ---- which queries count ----


def test_terms_of_matching_queries_do_not_see_denoising_ones():
    outputs, targets = training_outputs(3, 1)
    without = {
        key: value
        for key, value in outputs.items()
        if not key.startswith("dn_")
    }
    full, expected = (
        small_criterion()(outputs, targets),
        small_criterion()(without, targets),
    )
    assert all(
        torch.equal(full[name], value) for name, value in expected.items()
    )


def test_a_denoising_query_that_changes_changes_denoising_terms_alone():
    outputs, targets = training_outputs(3, 1)
    before = small_criterion()(outputs, targets)
    outputs["dn_outputs"][1]["pred_logits"] = (
        outputs["dn_outputs"][1]["pred_logits"] + 1
    )
    after = small_criterion()(outputs, targets)
    assert [
        name for name in before if not torch.equal(before[name], after[name])
    ] == ["loss_vfl_dn_1"]


def test_the_last_denoising_layer_is_its_own_teacher():
    losses = small_criterion()(*training_outputs(3, 1))
    assert losses["loss_ddf_dn_2"] == 0 and losses["loss_ddf_dn_1"] != 0


def test_denoising_distillation_takes_the_balance_of_matching_queries():
    outputs, targets = training_outputs(3, 1)
    before = small_criterion()(outputs, targets)
    outputs["dn_outputs"] = [
        {
            key: value[:, :6]
            if value.ndim == 3 and value.shape[1] > 6
            else value
            for key, value in head.items()
        }
        for head in outputs["dn_outputs"]
    ]  # one group of six in place of two
    outputs["dn_pre_outputs"] = {
        key: value[:, :6] for key, value in outputs["dn_pre_outputs"].items()
    }
    outputs["dn_meta"] |= {
        "dn_num_group": 1,
        "dn_positive_idx": [
            index[index < 6] for index in outputs["dn_meta"]["dn_positive_idx"]
        ],
    }
    after, expected = (
        small_criterion()(outputs, targets),
        reference_losses(outputs, targets),
    )
    assert before["loss_ddf_dn_0"] != after["loss_ddf_dn_0"]
    assert after["loss_ddf_dn_0"].item() == pytest.approx(
        expected["loss_ddf_dn_0"].item(), rel=1e-4
    )


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


# ---- sums over parts of a batch ----


def cut(outputs, images):
    """Return the part of a decoder's outputs, without denoising, that belongs to some images."""

    def part(value):
        if isinstance(value, list):
            return [part(item) for item in value]
        if isinstance(value, dict):
            return {key: part(item) for key, item in value.items()}
        return (
            value[images]
            if isinstance(value, torch.Tensor) and value.ndim > 1
            else value
        )

    return part(outputs)


@pytest.fixture(scope="module")
def halves():
    """Losses of a batch of four and of its halves, given the counts of the whole."""
    torch.manual_seed(0)
    criterion = small_criterion()
    outputs, targets = training_outputs(3, 0, 1, 4, denoise=False)
    counts = [
        criterion.count(cut(outputs, images), targets[images])
        for images in (slice(0, 2), slice(2, 4))
    ]
    normalizers = Normalizers(
        float(sum(c[0] for c in counts)),
        float(sum(c[1] for c in counts)),
        share=0.5,
    )
    parts = [
        criterion(cut(outputs, images), targets[images], normalizers)
        for images in (slice(0, 2), slice(2, 4))
    ]
    return (
        criterion(outputs, targets),
        parts,
        counts,
        criterion.count(outputs, targets),
    )


@pytest.mark.parametrize(
    "term", ["loss_vfl", "loss_bbox", "loss_giou", "loss_fgl"]
)
def test_terms_of_two_halves_add_up_to_those_of_the_batch(term, halves):
    whole, (first, second), _, _ = halves
    names = [name for name in whole if name.startswith(term)]
    assert len(names) >= 3
    for name in names:
        torch.testing.assert_close(
            first[name] + second[name], whole[name], rtol=1e-5, atol=1e-6
        )


def test_counts_of_two_halves_add_up_to_those_of_the_batch(halves):
    _, _, counts, whole = halves
    assert (
        whole == (counts[0][0] + counts[1][0], counts[0][1] + counts[1][1])
        and whole[0] == 8
    )


def test_distillation_of_a_part_counts_by_its_share():
    outputs, targets = training_outputs(3, 1, denoise=False)
    counts = small_criterion().count(outputs, targets)
    whole, quarter = (
        small_criterion()(
            outputs, targets, Normalizers(*map(float, counts), share=share)
        )
        for share in (1.0, 0.25)
    )
    torch.testing.assert_close(
        quarter["loss_ddf_aux_0"], 0.25 * whole["loss_ddf_aux_0"]
    )


def test_normalizers_are_those_of_the_batch_if_none_are_given():
    outputs, targets = training_outputs(3, 1, denoise=False)
    given = Normalizers(*map(float, small_criterion().count(outputs, targets)))
    ours, expected = (
        small_criterion()(outputs, targets),
        small_criterion()(outputs, targets, given),
    )
    assert all(
        torch.equal(ours[name], value) for name, value in expected.items()
    )


@pytest.mark.parametrize(
    ("counts", "expected"), [((0, 0), (1.0, 1.0)), ((5, 9), (5.0, 9.0))]
)
def test_normalizers_of_one_rank_are_its_counts_but_at_least_one(
    counts, expected
):
    assert all_rank_normalizers(*counts, torch.device("cpu"))[:2] == expected


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


# ---- detections of a teacher ----


def detections(counts, rows=4, known=None, normalizer=2.5) -> TaughtDetections:
    """Return detections of a teacher, of which the first rows of each image are used."""
    scores = torch.rand(len(counts), rows).sort(1, descending=True).values
    for image, count in enumerate(counts):
        scores[image, count:] = 0
    return TaughtDetections(
        scores,
        torch.tensor(counts),
        torch.rand(len(counts), rows, CLASSES),
        random_boxes(len(counts) * rows).unflatten(0, (-1, rows)),
        known,
        normalizer,
    )


def soft_reference(outputs, taught):
    """Return the soft terms of the last layer, image by image and pair by pair."""
    matcher = small_criterion().matcher
    sums = dict.fromkeys(("cls", "bbox", "giou", "fgl"), 0.0)
    up, scale = outputs["up"], outputs["reg_scale"]
    bins = weighting_sequence(BINS - 1, up, scale)
    for image, count in enumerate(taught.counts.tolist()):
        logits = outputs["pred_logits"][image]
        boxes = outputs["pred_boxes"][image]
        target = {
            "labels": taught.probabilities[image, :count].argmax(-1),
            "boxes": taught.boxes[image, :count],
        }
        head = {
            "pred_logits": logits[None].detach(),
            "pred_boxes": boxes[None].detach(),
        }
        ((queries, rows),) = matcher(head, [target])["indices"]
        for query, row in zip(queries, rows):
            score = taught.scores[image, row]
            soft = taught.probabilities[image, row]
            box = taught.boxes[image, row]
            p = logits[query].sigmoid()
            entropy = -soft * p.log() - (1 - soft) * (1 - p).log()
            if taught.known is not None:
                entropy = entropy * taught.known
            _, giou = iou_and_giou(
                cxcywh_to_xyxy(boxes[query]), cxcywh_to_xyxy(box)
            )
            distances = outputs["pred_corners"][image, query].unflatten(
                0, (4, BINS)
            )
            log_p = distances.log_softmax(-1)
            where = box_to_bins(
                outputs["ref_points"][image, query][None],
                cxcywh_to_xyxy(box)[None],
                bins,
                scale,
            )
            for edge in range(4):
                left = int(where.left_bin[0, edge])
                sums["fgl"] -= score * (
                    where.left_weight[0, edge] * log_p[edge, left]
                    + where.right_weight[0, edge] * log_p[edge, left + 1]
                )
            sums["cls"] += score * entropy.sum()
            sums["bbox"] += score * (boxes[query] - box).abs().sum()
            sums["giou"] += score * (1 - giou)
    weights = {"cls": 1, "bbox": 5, "giou": 2, "fgl": 0.15}
    return {
        f"loss_soft_{name}": weights[name] * value / taught.normalizer
        for name, value in sums.items()
    }


@pytest.mark.parametrize("known", [None, torch.tensor([1.0, 0, 1, 1, 0])])
def test_soft_terms_are_sums_over_matched_detections_weighted_by_score(known):
    outputs, _ = training_outputs(2, 1, 0)
    taught = detections([3, 0, 4], known=known)
    criterion = small_criterion()
    terms = criterion.taught_terms(outputs, taught)
    expected = soft_reference(outputs, taught)
    assert isinstance(criterion, LearnsDetections)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)


def test_without_confident_detections_the_soft_terms_are_zero():
    outputs, _ = training_outputs(2, 1)
    terms = small_criterion().taught_terms(outputs, detections([0, 0]))
    assert all(value == 0 for value in terms.values())
    sum(terms.values()).backward()


def test_soft_terms_reach_the_last_layer_only_and_not_the_teacher():
    outputs, _ = training_outputs(2, 1)
    taught = detections([3, 2])
    taught.probabilities.requires_grad_(False)
    for value in (outputs, *outputs["aux_outputs"]):
        value["pred_logits"].retain_grad()
    sum(small_criterion().taught_terms(outputs, taught).values()).backward()
    assert outputs["pred_logits"].grad.any()
    assert all(
        layer["pred_logits"].grad is None for layer in outputs["aux_outputs"]
    )


def test_soft_terms_without_a_weight_of_their_kind_are_left_out():
    outputs, _ = training_outputs(2, 1)
    weights = {"loss_vfl": 1.0, "loss_giou": 2.0}
    criterion = small_criterion(weight_dict=weights)
    terms = criterion.taught_terms(outputs, detections([3, 2]))
    assert set(terms) == {"loss_soft_cls", "loss_soft_giou"}


def test_soft_terms_of_half_precision_outputs_are_float32():
    outputs, _ = training_outputs(2, 1)
    for name in ("pred_logits", "pred_corners"):
        outputs[name] = outputs[name].to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        terms = small_criterion().taught_terms(outputs, detections([3, 2]))
    assert {value.dtype for value in terms.values()} == {torch.float32}
