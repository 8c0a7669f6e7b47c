"""Box arithmetic, compared with torchvision."""

import pytest
import torch
import torchvision.ops as reference

from src.ops.boxes import (
    box_area,
    box_iou,
    cxcywh_to_xyxy,
    iou_and_giou,
    pairwise_l1_and_giou,
    xyxy_to_cxcywh,
)


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return boxes, `[*shape, 4]` xyxy in 0..1, of all sizes, some of them overlapping."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 0.7
    return torch.cat(
        [
            corner,
            corner + 0.01 + torch.rand(*shape, 2, generator=generator) * 0.3,
        ],
        -1,
    )


A, B = random_boxes(40), random_boxes(30, seed=1)


def test_centre_and_size_become_corners():
    assert cxcywh_to_xyxy(
        torch.tensor([0.5, 0.4, 0.2, 0.6])
    ).tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])


def test_corners_become_centre_and_size():
    assert xyxy_to_cxcywh(
        torch.tensor([0.4, 0.1, 0.6, 0.7])
    ).tolist() == pytest.approx([0.5, 0.4, 0.2, 0.6])


def test_formats_agree_with_torchvision():
    boxes = random_boxes(2, 5)
    torch.testing.assert_close(
        xyxy_to_cxcywh(boxes), reference.box_convert(boxes, "xyxy", "cxcywh")
    )
    torch.testing.assert_close(
        cxcywh_to_xyxy(boxes), reference.box_convert(boxes, "cxcywh", "xyxy")
    )


def test_conversion_there_and_back_changes_nothing():
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(A)), A)


def test_negative_size_counts_as_zero():
    assert cxcywh_to_xyxy(
        torch.tensor([0.5, 0.5, -0.2, 0.2])
    ).tolist() == pytest.approx([0.5, 0.4, 0.5, 0.6])


def test_area_is_width_times_height():
    torch.testing.assert_close(box_area(A), reference.box_area(A))


def test_iou_of_all_pairs_agrees_with_torchvision():
    torch.testing.assert_close(
        box_iou(A[:, None], B[None]), reference.box_iou(A, B)
    )


def test_iou_and_giou_of_all_pairs_agree_with_torchvision():
    iou, giou = iou_and_giou(A[:, None], B[None])
    torch.testing.assert_close(iou, reference.box_iou(A, B))
    torch.testing.assert_close(giou, reference.generalized_box_iou(A, B))


def test_broadcast_pairs_are_the_diagonal_of_all_pairs():
    iou, giou = iou_and_giou(A[:30], B)
    torch.testing.assert_close(iou, reference.box_iou(A[:30], B).diagonal())
    torch.testing.assert_close(
        giou, reference.generalized_box_iou(A[:30], B).diagonal()
    )


def test_equal_boxes_have_iou_and_giou_of_one():
    iou, giou = iou_and_giou(A, A)
    torch.testing.assert_close(iou, torch.ones(40))
    torch.testing.assert_close(giou, torch.ones(40))


def test_boxes_that_touch_have_no_iou():
    assert (
        box_iou(torch.tensor([0.0, 0, 1, 1]), torch.tensor([1.0, 0, 2, 1])) == 0
    )


def test_giou_of_distant_boxes_nears_minus_one():
    _, giou = iou_and_giou(
        torch.tensor([0.0, 0, 1, 1]), torch.tensor([999.0, 999, 1000, 1000])
    )
    assert giou.item() == pytest.approx(2e-6 - 1, abs=1e-6)


def test_unit_of_boxes_does_not_matter():
    torch.testing.assert_close(
        box_iou(A[:, None] * 640, B[None] * 640), box_iou(A[:, None], B[None])
    )


def test_gradient_of_giou_agrees_with_torchvision():
    ours, theirs = (
        A[:30].clone().requires_grad_(),
        A[:30].clone().requires_grad_(),
    )
    iou_and_giou(ours, B)[1].sum().backward()
    reference.generalized_box_iou(theirs, B).diagonal().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_all_pairs_of_a_batch_agree_with_the_plain_forms():
    a, b = (
        xyxy_to_cxcywh(random_boxes(3, 20)),
        xyxy_to_cxcywh(random_boxes(3, 7, seed=1)),
    )
    l1, giou = pairwise_l1_and_giou(a, b)
    torch.testing.assert_close(l1, torch.cdist(a, b, p=1))
    torch.testing.assert_close(
        giou,
        iou_and_giou(cxcywh_to_xyxy(a)[:, :, None], cxcywh_to_xyxy(b)[:, None])[
            1
        ],
    )


def test_all_pairs_leave_the_arguments_as_they_were():
    a, b = (
        xyxy_to_cxcywh(random_boxes(1, 5)),
        xyxy_to_cxcywh(random_boxes(1, 4, seed=1)),
    )
    before = a.clone(), b.clone()
    pairwise_l1_and_giou(a, b)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.parametrize(("number", "other"), [(0, 3), (3, 0), (0, 0)])
def test_pairs_with_no_boxes_are_empty(number, other):
    l1, giou = pairwise_l1_and_giou(
        torch.rand(2, number, 4), torch.rand(2, other, 4)
    )
    assert l1.shape == giou.shape == (2, number, other)
