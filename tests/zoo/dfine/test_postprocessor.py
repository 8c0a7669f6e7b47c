import pytest
import torch

from src.core import ConfigError
from src.core.coco_categories import COCO_CATEGORY_IDS
from src.zoo.dfine import DFINEPostProcessor

SIZES = torch.tensor([[200, 100], [50, 80]])  # (width, height)


def outputs(queries=6, classes=3):
    return {
        "pred_logits": torch.randn(2, queries, classes),
        "pred_boxes": torch.rand(2, queries, 4) * 0.4 + 0.2,
    }


def test_best_pairs_of_query_and_class_are_taken_best_first():
    out = outputs()
    detections = DFINEPostProcessor(num_classes=3, num_top_queries=5)(
        out, SIZES
    )
    for image, found in enumerate(detections):
        ranked = sorted(
            (
                (out["pred_logits"][image, q, c].sigmoid().item(), c)
                for q in range(6)
                for c in range(3)
            ),
            reverse=True,
        )[:5]
        assert found["scores"].tolist() == pytest.approx(
            [score for score, _ in ranked]
        )
        assert found["labels"].tolist() == [label for _, label in ranked]


def test_a_query_may_be_taken_with_several_classes():
    out = {
        "pred_logits": torch.tensor([[[5.0, 4.0], [-5.0, -5.0]]]),
        "pred_boxes": torch.rand(1, 2, 4),
    }
    (found,) = DFINEPostProcessor(num_classes=2, num_top_queries=2)(
        out, SIZES[:1]
    )
    assert torch.equal(found["boxes"][0], found["boxes"][1]) and found[
        "labels"
    ].tolist() == [0, 1]


def test_boxes_are_corners_in_pixels_of_each_original_image():
    out = {
        "pred_logits": torch.ones(2, 1, 1),
        "pred_boxes": torch.tensor([0.5, 0.5, 0.2, 0.4]).repeat(2, 1, 1),
    }
    detections = DFINEPostProcessor(num_classes=1, num_top_queries=1)(
        out, SIZES
    )
    torch.testing.assert_close(
        torch.cat([found["boxes"] for found in detections]),
        torch.tensor([[80.0, 30, 120, 70], [20, 24, 30, 56]]),
    )


def test_boxes_follow_their_queries():
    out = {
        "pred_logits": torch.tensor([[[0.0], [3.0], [1.0]]]),
        "pred_boxes": torch.rand(1, 3, 4),
    }
    top, every = (
        DFINEPostProcessor(num_classes=1, num_top_queries=n)(out, SIZES[:1])[0][
            "boxes"
        ]
        for n in (1, 3)
    )
    expected = torch.cat(
        [
            out["pred_boxes"][0, 1, :2] - out["pred_boxes"][0, 1, 2:] / 2,
            out["pred_boxes"][0, 1, :2] + out["pred_boxes"][0, 1, 2:] / 2,
        ]
    )
    torch.testing.assert_close(top[0], expected * SIZES[0].repeat(2))
    assert torch.equal(top[0], every[0])


@pytest.mark.parametrize(("asked", "given"), [(4, 4), (18, 18), (300, 18)])
def test_no_more_detections_are_given_than_there_are(asked, given):
    assert [
        len(found["scores"])
        for found in DFINEPostProcessor(num_classes=3, num_top_queries=asked)(
            outputs(), SIZES
        )
    ] == [given, given]


def test_coco_labels_become_category_ids_where_asked():
    out = outputs(classes=80)
    plain, remapped = (
        DFINEPostProcessor(num_top_queries=20, remap_mscoco_category=remap)(
            out, SIZES
        )
        for remap in (False, True)
    )
    for a, b in zip(plain, remapped):
        assert b["labels"].tolist() == [
            COCO_CATEGORY_IDS[label] for label in a["labels"].tolist()
        ]


def test_remapping_is_refused_for_other_than_80_classes():
    with pytest.raises(
        ConfigError,
        match="remap_mscoco_category is for COCO's 80 classes, but num_classes is 3; set it to False",
    ):
        DFINEPostProcessor(num_classes=3, remap_mscoco_category=True)


def test_without_focal_loss_the_last_logit_is_the_background():
    out = {
        "pred_logits": torch.tensor([[[1.0, 2.0, 9.0], [3.0, 1.0, 0.0]]]),
        "pred_boxes": torch.tensor(
            [[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.4, 0.4]]]
        ),
    }
    (found,) = DFINEPostProcessor(num_classes=2, use_focal_loss=False)(
        out, SIZES[:1]
    )
    softmax = out["pred_logits"][0].softmax(-1)
    assert found["labels"].tolist() == [0, 1]
    torch.testing.assert_close(
        found["scores"], torch.stack([softmax[1, 0], softmax[0, 1]])
    )
    torch.testing.assert_close(
        found["boxes"], torch.tensor([[60.0, 30, 140, 70], [80, 30, 120, 70]])
    )


@pytest.mark.parametrize("use_focal_loss", [True, False])
def test_deployed_form_gives_the_same_as_batched_tensors(use_focal_loss):
    processor, out = (
        DFINEPostProcessor(
            num_classes=3, num_top_queries=5, use_focal_loss=use_focal_loss
        ),
        outputs(),
    )
    for values, name in zip(
        processor.deploy()(out, SIZES), ("labels", "boxes", "scores")
    ):
        assert torch.equal(
            values,
            torch.stack([found[name] for found in processor(out, SIZES)]),
        )


def test_deployed_form_keeps_labels_from_zero():
    out = outputs(classes=80)
    labels, _, _ = DFINEPostProcessor(
        num_top_queries=20, remap_mscoco_category=True
    ).deploy()(out, SIZES)
    assert torch.equal(
        labels[0],
        DFINEPostProcessor(num_top_queries=20)(out, SIZES)[0]["labels"],
    )


def test_deploying_leaves_the_original_alone():
    processor = DFINEPostProcessor(num_classes=3)
    processor.deploy()
    assert isinstance(processor(outputs(), SIZES), list)


def test_half_precision_is_scored_in_single():
    out = {key: value.to(torch.bfloat16) for key, value in outputs().items()}
    found = DFINEPostProcessor(num_classes=3)(out, SIZES)[0]
    assert (found["scores"].dtype, found["boxes"].dtype) == (
        torch.float32,
        torch.float32,
    )
