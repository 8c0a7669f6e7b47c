import pytest
import torch
from scipy.optimize import linear_sum_assignment

from src.core import ConfigError, NumericsError
from src.ops.boxes import cxcywh_to_xyxy, iou_and_giou
from src.zoo.dfine import HungarianMatcher, matcher
from tests.fixtures.detector import (
    CLASSES,
    COST_WEIGHTS,
    random_boxes,
    random_targets,
)


def outputs(batch, queries=12):
    return {
        "pred_logits": torch.randn(batch, queries, CLASSES),
        "pred_boxes": random_boxes(batch * queries).view(batch, queries, 4),
    }


def reference(
    out, targets, use_focal_loss, weights=COST_WEIGHTS, alpha=0.25, gamma=2.0
):
    """Return the pairs of each image by the published cost and scipy."""
    indices = []
    for logits, boxes, target in zip(
        out["pred_logits"].double(), out["pred_boxes"].double(), targets
    ):
        if use_focal_loss:
            p = logits.sigmoid()[:, target["labels"]]
            class_cost = (
                alpha * (1 - p) ** gamma * -(p + 1e-8).log()
                - (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
            )
        else:
            class_cost = -logits.softmax(-1)[:, target["labels"]]
        box_cost = torch.cdist(boxes, target["boxes"].double(), p=1)
        _, giou = iou_and_giou(
            cxcywh_to_xyxy(boxes)[:, None],
            cxcywh_to_xyxy(target["boxes"].double())[None],
        )
        cost = (
            weights["cost_class"] * class_cost
            + weights["cost_bbox"] * box_cost
            - weights["cost_giou"] * giou
        )
        query, index = linear_sum_assignment(cost.numpy())
        indices.append((query.tolist(), index.tolist()))
    return indices


def as_lists(indices):
    return [(query.tolist(), target.tolist()) for query, target in indices]


@pytest.mark.parametrize("use_focal_loss", [True, False])
@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (1, 1, 1), (12,), (20, 3)])
def test_pairs_are_those_of_the_published_cost(counts, use_focal_loss):
    out, targets = outputs(len(counts)), random_targets(*counts)
    ours = HungarianMatcher(COST_WEIGHTS, use_focal_loss=use_focal_loss)(
        out, targets
    )["indices"]
    assert as_lists(ours) == reference(out, targets, use_focal_loss)


def targets_of_different_classes(*counts):
    """Return targets without two of a class in an image: with class costs alone they would be equal."""
    return [
        target | {"labels": torch.randperm(CLASSES)[:count]}
        for target, count in zip(random_targets(*counts), counts)
    ]


@pytest.mark.parametrize("name", COST_WEIGHTS)
def test_each_cost_counts_by_its_weight(name):
    weights = {other: 3.0 if other == name else 0.0 for other in COST_WEIGHTS}
    out, targets = outputs(2), targets_of_different_classes(4, 3)
    assert as_lists(
        HungarianMatcher(weights, use_focal_loss=True)(out, targets)["indices"]
    ) == reference(out, targets, True, weights)


def test_focal_cost_follows_alpha_and_gamma():
    out, targets, weights = (
        outputs(2),
        targets_of_different_classes(5, 5),
        {"cost_class": 1, "cost_bbox": 0, "cost_giou": 0},
    )
    ours = HungarianMatcher(weights, use_focal_loss=True, alpha=0.9, gamma=0.5)(
        out, targets
    )["indices"]
    assert as_lists(ours) == reference(
        out, targets, True, weights, alpha=0.9, gamma=0.5
    )


def test_images_without_objects_have_no_pairs():
    assert as_lists(
        HungarianMatcher(COST_WEIGHTS)(outputs(2), random_targets(0, 0))[
            "indices"
        ]
    ) == [
        ([], []),
        ([], []),
    ]


def test_heads_with_one_class_are_matched_whatever_the_label():
    out, targets = outputs(2), random_targets(3, 2)
    one = HungarianMatcher(COST_WEIGHTS, use_focal_loss=True)(
        out | {"pred_logits": out["pred_logits"][..., :1]}, targets
    )["indices"]
    same = [
        target | {"labels": torch.zeros_like(target["labels"])}
        for target in targets
    ]
    assert as_lists(one) == reference(out, same, True)


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
def test_heads_matched_together_are_matched_as_each_alone(piece, monkeypatch):
    monkeypatch.setattr(matcher, "_COSTS_PER_PIECE_CPU", piece)
    targets, counts = random_targets(4, 0, 2), [4, 0, 2]
    stacks = [outputs(3) for _ in range(3)]
    heads = [
        tuple(
            torch.stack([out[key] for out in stacks[:2]])
            for key in ("pred_logits", "pred_boxes")
        ),
        tuple(stacks[2][key][None] for key in ("pred_logits", "pred_boxes")),
    ]
    module = HungarianMatcher(COST_WEIGHTS, use_focal_loss=True)
    pairs = module.match(
        heads,
        torch.cat([t["labels"] for t in targets]),
        torch.cat([t["boxes"] for t in targets]),
        counts,
    )
    for head, out in enumerate(stacks):
        for image, (query, target) in enumerate(reference(out, targets, True)):
            mine = (pairs.head == head) & (pairs.image == image)
            found = zip(
                pairs.query[mine], pairs.target[mine] - sum(counts[:image])
            )
            assert sorted(found) == sorted(zip(query, target)), (head, image)


def test_no_gradient_flows_through_a_match():
    out = {key: value.requires_grad_(True) for key, value in outputs(1).items()}
    HungarianMatcher(COST_WEIGHTS)(out, random_targets(2))
    assert all(value.grad is None for value in out.values())


def test_half_precision_is_matched_in_single():
    out, targets = outputs(2), random_targets(4, 2)
    half = {key: value.to(torch.bfloat16) for key, value in out.items()}
    ours = HungarianMatcher(COST_WEIGHTS, use_focal_loss=True)(half, targets)[
        "indices"
    ]
    assert as_lists(ours) == reference(
        {key: value.float() for key, value in half.items()}, targets, True
    )


def corrupted(key, image, value):
    out = outputs(2)
    out[key][image, 3] = value
    return out


@pytest.mark.parametrize(
    ("out", "term", "image"),
    [
        (lambda: corrupted("pred_logits", 1, torch.nan), "cost_class", 1),
        (lambda: corrupted("pred_boxes", 0, torch.nan), "cost_bbox", 0),
        (lambda: corrupted("pred_boxes", 1, torch.inf), "cost_bbox", 1),
    ],
)
@pytest.mark.parametrize("use_focal_loss", [True, False])
def test_a_cost_that_is_not_finite_is_reported_with_term_and_image(
    out, term, image, use_focal_loss
):
    with pytest.raises(NumericsError) as caught:
        HungarianMatcher(COST_WEIGHTS, use_focal_loss=use_focal_loss)(
            out(), random_targets(2, 2)
        )
    assert (
        str(caught.value)
        == f"matching {term} is not finite for image {image} of 2 in the batch"
    )


def test_boxes_without_area_on_both_sides_are_reported_as_a_giou_that_is_not_finite():
    out, targets = outputs(1), random_targets(1)
    out["pred_boxes"][:] = targets[0]["boxes"] = torch.tensor(
        [[0.5, 0.5, 0.0, 0.0]]
    )
    with pytest.raises(
        NumericsError,
        match="matching cost_giou is not finite for image 0 of 1 in the batch",
    ):
        HungarianMatcher(COST_WEIGHTS)(out, targets)


def test_a_weight_that_makes_the_sum_overflow_is_reported():
    with pytest.raises(
        NumericsError,
        match="the matching cost is not finite although each of its terms is",
    ):
        HungarianMatcher(
            COST_WEIGHTS | {"cost_bbox": 3e38}, use_focal_loss=True
        )(outputs(1, queries=50), random_targets(20))


@pytest.mark.parametrize(
    "weights",
    [
        {"cost_class": 1},
        dict.fromkeys(COST_WEIGHTS, 0),
        COST_WEIGHTS | {"cost_mask": 1},
    ],
)
def test_weights_that_are_not_those_of_the_three_costs_are_refused(weights):
    with pytest.raises(ConfigError) as caught:
        HungarianMatcher(weights)
    assert (
        str(caught.value)
        == f"HungarianMatcher.weight_dict has {weights}, expected cost_class, "
        "cost_bbox, cost_giou, not all zero"
    )


# ---- the late cost ----


def late_matcher(epoch, **settings):
    matcher = HungarianMatcher(COST_WEIGHTS, matcher_change_epoch=5, **settings)
    matcher.set_epoch(epoch)
    return matcher


def test_before_the_change_the_published_cost_decides():
    out, targets = outputs(2), random_targets(4, 3)
    assert as_lists(
        late_matcher(4, use_focal_loss=True)(out, targets)["indices"]
    ) == reference(out, targets, True)


@pytest.mark.parametrize("use_focal_loss", [True, False])
@pytest.mark.parametrize("power", [4.0, 1.0])
def test_from_the_change_on_probability_times_a_power_of_the_overlap_decides(
    use_focal_loss, power
):
    out, targets = outputs(2, queries=40), random_targets(4, 3)
    indices = late_matcher(
        5, use_focal_loss=use_focal_loss, iou_order_alpha=power
    )(out, targets)["indices"]
    for (query, target), logits, boxes, truth in zip(
        indices, out["pred_logits"], out["pred_boxes"], targets
    ):
        p = (logits.sigmoid() if use_focal_loss else logits.softmax(-1))[
            :, truth["labels"]
        ]
        iou, _ = iou_and_giou(
            cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(truth["boxes"])[None]
        )
        gain = (p * iou**power).double()
        best_query, best_target = linear_sum_assignment(-gain.numpy())
        assert gain[query, target].sum() == pytest.approx(
            gain[best_query, best_target].sum().item()
        )


def test_the_published_values_are_the_defaults():
    matcher = HungarianMatcher(COST_WEIGHTS)
    assert (matcher.alpha, matcher.gamma, matcher.iou_order_alpha) == (
        0.25,
        2,
        4,
    )
    assert not matcher.use_focal_loss and matcher.matcher_change_epoch is None


def test_a_late_cost_that_is_not_finite_is_reported():
    out, targets = outputs(1), random_targets(2)
    out["pred_logits"][0, 3] = float("nan")
    with pytest.raises(
        NumericsError, match="matching late cost is not finite for image 0 of 1"
    ):
        late_matcher(5, use_focal_loss=True)(out, targets)


def padded(counts, rows, queries=12):
    """Return the arguments of `match_padded`: `rows` targets in each image, of which `counts` are used."""
    out = outputs(len(counts), queries=queries)
    targets = random_targets(*[rows] * len(counts))
    labels = torch.stack([target["labels"] for target in targets])
    boxes = torch.stack([target["boxes"] for target in targets])
    used = [
        {key: value[:count] for key, value in target.items()}
        for count, target in zip(counts, targets)
    ]
    arguments = (
        out["pred_logits"],
        out["pred_boxes"],
        labels,
        boxes,
        torch.tensor(counts),
    )
    return out, used, arguments


def test_padded_targets_are_matched_as_if_only_the_used_ones_were_there():
    matcher = HungarianMatcher(COST_WEIGHTS, use_focal_loss=True)
    out, used, arguments = padded([3, 0, 5], rows=5)
    pairs = matcher.match_padded(*arguments)
    found = sorted(zip(pairs.image, pairs.query, pairs.target))
    expected = []
    for image, (query, target) in enumerate(matcher(out, used)["indices"]):
        for pair in zip(query.tolist(), target.tolist()):
            expected.append((image, *pair))
    assert found == sorted(expected) and len(found) == 8


def test_without_a_used_target_there_is_no_pair():
    matcher = HungarianMatcher(COST_WEIGHTS, use_focal_loss=True)
    _, _, arguments = padded([0, 0], rows=4)
    assert len(matcher.match_padded(*arguments).query) == 0


def test_padded_costs_that_are_not_finite_are_reported_if_they_are_used():
    matcher = HungarianMatcher(COST_WEIGHTS, use_focal_loss=True)
    _, _, arguments = padded([2, 2], rows=4)
    boxes = arguments[3]
    boxes[1, 3] = float("nan")
    matcher.match_padded(*arguments)
    boxes[1, 1] = float("nan")
    with pytest.raises(NumericsError, match="for image 1 of 2 in the batch"):
        matcher.match_padded(*arguments)
