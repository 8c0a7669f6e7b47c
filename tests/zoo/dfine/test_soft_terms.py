"""Loss terms that compare the last layer with a teacher's detections."""

import pytest
import torch

from src.core.contracts import LearnsDetections, TaughtDetections
from src.ops.boxes import cxcywh_to_xyxy, iou_and_giou
from src.zoo.dfine.distribution import box_to_bins, weighting_sequence
from tests.fixtures.detector import (
    BINS,
    CLASSES,
    random_boxes,
    small_criterion,
    training_outputs,
)


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
