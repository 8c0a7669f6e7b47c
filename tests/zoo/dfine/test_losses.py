"""Each term is compared with its plain formula in float64, gradients with autograd or finite differences."""

import pytest
import torch
import torch.nn.functional as F

from src.ops.boxes import cxcywh_to_xyxy, iou_and_giou
from src.zoo.dfine.distribution import BinTargets
from src.zoo.dfine.losses import (
    TEMPERATURE,
    Balance,
    Matched,
    box_losses,
    decoupled_distillation_loss,
    distillation_balance,
    fine_grained_localization_loss,
    focal_loss,
    matchability_aware_loss,
    varifocal_loss,
)

K, B, Q, C, N = 3, 2, 6, 4, 9
ALPHA, GAMMA = 0.75, 2.0


def pairs():
    """Return pairs of every head: two in the first image, one in the second; the last head has none."""
    return Matched(
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([0, 0, 1, 0, 0, 1]),
        torch.tensor([4, 1, 5, 0, 1, 2]),
        torch.tensor([0, 1, 2, 1, 0, 2]),
    )


def class_inputs():
    return (
        torch.randn(K, B, Q, C, dtype=torch.float64, requires_grad=True),
        torch.randint(C, (6,)),
        torch.rand(6, dtype=torch.float64),
    )


def plain_varifocal(logits, matched, labels, quality):
    one_hot = torch.zeros_like(logits)
    target = torch.zeros_like(logits)
    for head, image, query, label, q in zip(
        matched.head, matched.image, matched.query, labels, quality
    ):
        (
            one_hot[head, image, query, label],
            target[head, image, query, label],
        ) = 1, q
    weight = ALPHA * logits.detach().sigmoid() ** GAMMA * (1 - one_hot) + target
    return (
        weight
        * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    ).sum((1, 2, 3))


def plain_focal(logits, matched, labels):
    one_hot = torch.zeros_like(logits)
    one_hot[matched.head, matched.image, matched.query, labels] = 1
    p = logits.sigmoid()
    p_true = torch.where(one_hot == 1, p, 1 - p)
    alpha = torch.where(one_hot == 1, ALPHA, 1 - ALPHA)
    return (-alpha * (1 - p_true) ** GAMMA * p_true.log()).sum((1, 2, 3))


def gradient(losses, leaf):
    """Return the gradient of a sum in which every head has another weight."""
    return torch.autograd.grad(
        (losses * torch.arange(1, len(losses) + 1)).sum(), leaf
    )[0]


def plain_matchability(logits, matched, labels, quality, alpha):
    one_hot, target = torch.zeros_like(logits), torch.zeros_like(logits)
    for head, image, query, label, q in zip(
        matched.head, matched.image, matched.query, labels, quality
    ):
        (
            one_hot[head, image, query, label],
            target[head, image, query, label],
        ) = (
            1,
            q**GAMMA,
        )
    weight = (
        alpha * logits.detach().sigmoid() ** GAMMA * (1 - one_hot) + one_hot
    )
    return (
        weight
        * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    ).sum((1, 2, 3))


# ---- classes ----


def test_varifocal_loss_equals_its_formula():
    logits, labels, quality = class_inputs()
    torch.testing.assert_close(
        varifocal_loss(logits, pairs(), labels, quality, ALPHA, GAMMA),
        plain_varifocal(logits, pairs(), labels, quality),
    )


def test_gradient_of_the_varifocal_loss_is_that_of_its_formula_with_a_constant_weight():
    logits, labels, quality = class_inputs()
    ours = gradient(
        varifocal_loss(logits, pairs(), labels, quality, ALPHA, GAMMA), logits
    )
    torch.testing.assert_close(
        ours,
        gradient(plain_varifocal(logits, pairs(), labels, quality), logits),
    )


def test_no_gradient_flows_into_the_quality_of_a_pair():
    logits, labels, quality = class_inputs()
    quality.requires_grad_(True)
    varifocal_loss(
        logits, pairs(), labels, quality, ALPHA, GAMMA
    ).sum().backward()
    assert quality.grad is None


def test_varifocal_loss_without_pairs_is_that_of_negatives_alone():
    logits, _, _ = class_inputs()
    none = Matched(*[torch.zeros(0, dtype=torch.int64)] * 4)
    empty = (
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.float64),
    )
    torch.testing.assert_close(
        varifocal_loss(logits, none, *empty, ALPHA, GAMMA),
        (ALPHA * logits.sigmoid() ** GAMMA * F.softplus(logits)).sum((1, 2, 3)),
    )


@pytest.mark.parametrize("value", [-80.0, 80.0])
def test_varifocal_loss_is_finite_for_large_logits(value):
    logits = torch.full((K, B, Q, C), value, requires_grad=True)
    losses = varifocal_loss(
        logits,
        pairs(),
        torch.zeros(6, dtype=torch.int64),
        torch.ones(6),
        ALPHA,
        GAMMA,
    )
    assert losses.isfinite().all() and gradient(losses, logits).isfinite().all()


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_matchability_aware_loss_and_its_gradient_equal_the_formula(alpha):
    logits, labels, quality = class_inputs()
    ours, plain = (
        matchability_aware_loss(logits, pairs(), labels, quality, alpha, GAMMA),
        plain_matchability(logits, pairs(), labels, quality, alpha),
    )
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradient(ours, logits), gradient(plain, logits))


def test_a_pair_that_overlaps_little_pulls_in_the_matchability_aware_loss_alone():
    logits, labels = (
        torch.zeros(K, B, Q, C, dtype=torch.float64, requires_grad=True),
        torch.zeros(6, dtype=torch.long),
    )
    poor = torch.full((6,), 0.01, dtype=torch.float64)
    pull = [
        gradient(loss(logits, pairs(), labels, poor, 1.0, GAMMA), logits)[
            0, 0, 4, 0
        ].abs()
        for loss in (matchability_aware_loss, varifocal_loss)
    ]
    assert pull[0] > 10 * pull[1]


def test_focal_loss_equals_its_formula():
    logits, labels, quality = class_inputs()
    torch.testing.assert_close(
        focal_loss(logits, pairs(), labels, quality, ALPHA, GAMMA),
        plain_focal(logits, pairs(), labels),
    )


def test_gradient_of_the_focal_loss_is_that_of_differences():
    logits, labels, quality = class_inputs()
    assert torch.autograd.gradcheck(
        lambda x: focal_loss(x, pairs(), labels, quality, ALPHA, GAMMA),
        (logits,),
    )


# ---- boxes ----


def box_inputs():
    boxes = torch.rand(K, 5, 4, dtype=torch.float64) * 0.3 + 0.3
    return boxes.requires_grad_(True), torch.rand(
        5, 4, dtype=torch.float64
    ) * 0.3 + 0.3


def test_box_losses_are_sums_of_l1_distances_and_of_one_minus_giou():
    boxes, targets = box_inputs()
    losses = box_losses(boxes, targets)
    for head in range(K):
        iou, giou = iou_and_giou(
            cxcywh_to_xyxy(boxes[head]), cxcywh_to_xyxy(targets)
        )
        torch.testing.assert_close(
            losses.l1[head], (boxes[head] - targets).abs().sum()
        )
        torch.testing.assert_close(losses.giou[head], (1 - giou).sum())
        torch.testing.assert_close(losses.iou[head], iou)


@pytest.mark.parametrize("part", ["l1", "giou"])
def test_gradients_of_the_box_losses_are_those_of_differences(part):
    boxes, targets = box_inputs()
    assert torch.autograd.gradcheck(
        lambda x: getattr(box_losses(x, targets), part), (boxes,)
    )


def test_overlaps_carry_no_gradient():
    assert not box_losses(*box_inputs()).iou.requires_grad


@pytest.mark.parametrize("weight_by", ["iou", "giou"])
def test_giou_term_can_be_weighted_by_a_constant_overlap(weight_by):
    boxes, targets = box_inputs()
    iou, giou = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
    expected = (
        (1 - giou) * {"iou": iou, "giou": giou}[weight_by].detach()
    ).sum(1)
    losses = box_losses(boxes, targets, weight_by)
    torch.testing.assert_close(losses.giou, expected)
    torch.testing.assert_close(
        gradient(losses.giou, boxes), gradient(expected, boxes)
    )


# ---- localization ----


def localization_inputs(heads=K, count=5):
    corners = torch.randn(
        heads, count, 4, N, dtype=torch.float64, requires_grad=True
    )
    left_weight = torch.rand(count, 4, dtype=torch.float64)
    return (
        corners,
        BinTargets(
            torch.randint(N - 1, (count, 4)), left_weight, 1 - left_weight
        ),
        torch.rand(heads, count, dtype=torch.float64),
    )


def test_fine_grained_loss_is_cross_entropy_against_two_bins_weighted_by_overlap():
    corners, bins, iou = localization_inputs()
    expected = torch.zeros(K, dtype=torch.float64)
    for head in range(K):
        for pair in range(5):
            for edge in range(4):
                log_p = corners[head, pair, edge].log_softmax(-1)
                k = int(bins.left_bin[pair, edge])
                expected[head] -= iou[head, pair] * (
                    log_p[k] * bins.left_weight[pair, edge]
                    + log_p[k + 1] * bins.right_weight[pair, edge]
                )
    torch.testing.assert_close(
        fine_grained_localization_loss(corners, bins, iou), expected.detach()
    )


def test_gradient_of_the_fine_grained_loss_is_that_of_differences():
    corners, bins, iou = localization_inputs(heads=2, count=1)
    assert torch.autograd.gradcheck(
        lambda x: fine_grained_localization_loss(x, bins, iou), (corners,)
    )


# ---- distillation ----


def distillation_inputs(positive):
    corners = torch.randn(
        K, B, Q, 4, N, dtype=torch.float64, requires_grad=True
    )
    teacher = torch.randn(B, Q, 4, N, dtype=torch.float64, requires_grad=True)
    return corners, teacher, torch.rand(K, B, Q, dtype=torch.float64), positive


def plain_distillation(corners, teacher, trust, positive, balance):
    teacher, losses = teacher.detach(), []
    for head in range(len(corners)):
        log_p, log_t = (
            (corners[head] / TEMPERATURE).log_softmax(-1),
            (teacher / TEMPERATURE).log_softmax(-1),
        )
        divergence = (
            trust[head][..., None]
            * TEMPERATURE**2
            * (log_t.exp() * (log_t - log_p)).sum(-1)
        )  # [B, Q, 4]
        means = [
            divergence[mask].mean() if mask.any() else torch.zeros(())
            for mask in (positive, ~positive)
        ]
        losses.append(
            (means[0] * balance.positive + means[1] * balance.negative)
            / (balance.positive + balance.negative)
        )
    return torch.stack(losses)


SOME = torch.tensor(
    [
        [True, False, False, True, False, False],
        [False, False, True, False, False, False],
    ]
)
POSITIVES = pytest.mark.parametrize(
    "positive",
    [
        SOME,
        torch.zeros(B, Q, dtype=torch.bool),
        torch.ones(B, Q, dtype=torch.bool),
    ],
    ids=["some", "no", "all queries matched"],
)


@POSITIVES
def test_distillation_loss_equals_its_formula(positive):
    inputs, balance = (
        distillation_inputs(positive),
        distillation_balance(positive),
    )
    torch.testing.assert_close(
        decoupled_distillation_loss(*inputs, balance),
        plain_distillation(*inputs, balance),
    )


@POSITIVES
def test_gradient_of_the_distillation_loss_is_that_of_its_formula(positive):
    inputs, balance = (
        distillation_inputs(positive),
        distillation_balance(positive),
    )
    ours = gradient(decoupled_distillation_loss(*inputs, balance), inputs[0])
    torch.testing.assert_close(
        ours, gradient(plain_distillation(*inputs, balance), inputs[0])
    )


def test_gradient_of_the_distillation_loss_is_that_of_differences():
    corners, teacher, trust, positive = distillation_inputs(SOME)
    few = (
        corners[:1, :, :, :1, :4].detach().requires_grad_(True)
    )  # differences take a pass for each number
    assert torch.autograd.gradcheck(
        lambda x: decoupled_distillation_loss(
            x,
            teacher[:, :, :1, :4],
            trust[:1],
            positive,
            Balance(torch.tensor(2.0), torch.tensor(3.0)),
        ),
        (few,),
    )


def test_the_teacher_gets_no_gradient():
    corners, teacher, trust, positive = distillation_inputs(SOME)
    decoupled_distillation_loss(
        corners, teacher, trust, positive, distillation_balance(positive)
    ).sum().backward()
    assert teacher.grad is None


def test_a_student_like_its_teacher_loses_nothing():
    _, teacher, trust, positive = distillation_inputs(SOME)
    losses = decoupled_distillation_loss(
        teacher[None].repeat(K, 1, 1, 1, 1),
        teacher,
        trust,
        positive,
        distillation_balance(positive),
    )
    torch.testing.assert_close(losses, torch.zeros(K, dtype=torch.float64))


def test_balance_is_the_root_of_the_edges_scaled_to_eight_images():
    balance = distillation_balance(SOME)
    assert (float(balance.positive), float(balance.negative)) == pytest.approx(
        ((8 / B * 4 * 3) ** 0.5, (8 / B * 4 * 9) ** 0.5)
    )


def test_balance_of_no_images_is_nothing():
    assert [
        float(part)
        for part in distillation_balance(torch.zeros(0, Q, dtype=torch.bool))
    ] == [0, 0]
