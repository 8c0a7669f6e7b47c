"""The evaluator's numbers are those of faster-coco-eval on the detections of all ranks, to the last bit."""

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.core.coco_metrics import METRICS
from src.data.evaluation import coco_evaluator
from src.data.evaluation.coco_evaluator import CocoEvaluator
from src.data.evaluation.true_positives import (
    best_operating_point,
    match,
    objects_of,
    operating_point_at,
)

CATEGORIES = (3, 5, 9)
"""The last one has no objects."""

SIDES = (4, 8, 12, 16, 31, 32, 33, 64, 95, 96, 97, 144)
"""Sides in pixels, also at the limits of COCO's size classes."""


def silent(*_: object) -> None:
    pass


def reference(coco_gt: dict, detections: dict) -> tuple[list, dict]:
    """Return the metrics and the AP of each class from the library; None for undefined ones."""
    truth = COCO(
        {
            **coco_gt,
            "images": [
                {**image, "id": image["id"] + 1} for image in coco_gt["images"]
            ],
            "annotations": [
                {**entry, "id": number, "image_id": entry["image_id"] + 1}
                for number, entry in enumerate(coco_gt["annotations"], 1)
            ],
        },
        print_function=silent,
    )
    records = []
    for image_id, found in sorted(detections.items()):
        corners = found["boxes"].double()
        boxes = torch.cat(
            [corners[:, :2], corners[:, 2:] - corners[:, :2]], 1
        ).tolist()
        scores = found["scores"].tolist()
        labels = found["labels"].tolist()
        for box, score, label in zip(boxes, scores, labels):
            records.append(
                {
                    "image_id": image_id + 1,
                    "bbox": box,
                    "score": score,
                    "category_id": label,
                }
            )
    run = COCOeval_faster(
        truth, truth.loadRes(records), "bbox", print_function=silent
    )
    run.evaluate()
    run.accumulate()
    run.summarize()
    by_class = {}
    precision = run.eval["precision"][:, :, :, 0, -1]
    for column, category in enumerate(run.params.catIds):
        values = precision[:, :, column]
        known = values[values > -1]
        by_class[int(category)] = known.mean() if known.size else None
    return [None if v < 0 else v for v in run.stats.tolist()], by_class


def operating_point(coco_gt: dict, evaluator: CocoEvaluator) -> dict:
    """Return F1 and the values of each class from the matching of one image after the other."""
    matches = match(objects_of(coco_gt), evaluator.detections)
    best = best_operating_point(matches)
    if best is None:
        return {"F1": 0.0}
    precisions = {}
    recalls = {}
    for category in sorted(matches.objects):
        point = operating_point_at(
            matches.of_category(category), best.threshold
        )
        precisions[category] = point.precision
        recalls[category] = point.recall
    return {
        "F1": best.f1,
        "F1_threshold": best.threshold,
        "F1_precision": best.precision,
        "F1_recall": best.recall,
        "precision_of_class": precisions,
        "recall_of_class": recalls,
    }


@st.composite
def cases(draw) -> tuple[dict, list[dict]]:
    """Draw ground truth and the detections of one to three ranks, which share some images."""
    seed = draw(st.integers(0, 2**32 - 1))
    images = draw(st.integers(1, 5))
    most_objects = draw(st.sampled_from([0, 1, 4, 12]))
    most_detections = draw(st.sampled_from([0, 3, 15, 40, 250]))
    distinct_scores = draw(st.sampled_from([1, 3, 10, 1000]))
    shift = draw(st.sampled_from([0, 1, 3, 8]))
    crowds = draw(st.sampled_from([0.0, 0.3, 1.0]))
    ranks = draw(st.integers(1, 3))
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(images):
        for _ in range(rng.integers(0, most_objects + 1)):
            width, height = rng.choice(SIDES, 2).tolist()
            x, y = rng.integers(0, 40, 2).tolist()
            area = width * height * rng.choice([1.0, 1.0, 0.5, 1e7])
            annotations.append(
                {
                    "image_id": image,
                    "category_id": int(rng.choice(CATEGORIES[:2])),
                    "bbox": [x, y, width, height],
                    "area": float(area),
                    "iscrowd": int(rng.random() < crowds),
                }
            )
    coco_gt = {
        "images": [{"id": i} for i in rng.permutation(images).tolist()],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in CATEGORIES],
    }
    detections = {}
    for image in range(images):
        own = [a for a in annotations if a["image_id"] == image]
        count = int(rng.integers(0, most_detections + 1))
        boxes = np.zeros((count, 4))
        labels = rng.choice(CATEGORIES, count)
        for row in range(count):
            if own and rng.random() < 0.7:
                entry = own[rng.integers(len(own))]
                box = np.array(entry["bbox"], float)
                labels[row] = entry["category_id"]
            else:
                box = np.concatenate(
                    [rng.integers(0, 40, 2), rng.choice(SIDES, 2)]
                ).astype(float)
            box += rng.integers(-shift, shift + 1, 4)
            boxes[row] = [*box[:2], *(box[:2] + box[2:].clip(0))]
        scores = rng.integers(0, distinct_scores, count) / distinct_scores
        detections[image] = {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "scores": torch.tensor(scores, dtype=torch.float32),
            "labels": torch.tensor(labels),
        }
    parts: list[dict] = [{} for _ in range(ranks)]
    for image in rng.permutation(images).tolist():
        holders = rng.permutation(ranks)[: rng.integers(1, ranks + 1)]
        for holder in holders.tolist():
            parts[holder][image] = detections[image]
    return coco_gt, parts


def score_on_ranks(coco_gt: dict, parts: list[dict]) -> tuple:
    """Return the evaluator of rank 0 and its scores, with the ranks one after the other in this process."""
    gathered: list = []

    def keep(value):
        gathered.append(value)

    evaluators = []
    with pytest.MonkeyPatch.context() as patch:
        for part in [*parts[1:], parts[0]]:
            evaluator = CocoEvaluator(coco_gt)
            for image_id, found in part.items():
                evaluator.update({image_id: found})
            is_last = len(evaluators) == len(parts) - 1
            patch.setattr(
                coco_evaluator,
                "gather_on_main",
                (lambda value: [value, *gathered]) if is_last else keep,
            )
            evaluator.synchronize()
            evaluators.append(evaluator)
    return evaluators[-1], evaluators[-1].summarize()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(cases())
def test_all_numbers_are_those_of_the_library_on_the_gathered_detections(case):
    coco_gt, parts = case
    detections: dict = {}
    for part in parts:
        detections = part | detections
    evaluator, scores = score_on_ranks(coco_gt, parts)
    metrics, by_class = reference(coco_gt, detections)
    assert [scores[name] for name in METRICS] == metrics
    assert scores["AP_of_class"] == by_class
    expected = operating_point(coco_gt, evaluator)
    assert {key: scores.get(key) for key in expected} == expected
    assert evaluator.detections.keys() == detections.keys()


def test_the_first_rank_counts_if_two_ranks_have_scored_an_image():
    coco_gt = {
        "images": [{"id": 0}],
        "annotations": [
            {
                "image_id": 0,
                "category_id": 3,
                "bbox": [0, 0, 10, 10],
                "area": 100.0,
            }
        ],
        "categories": [{"id": 3, "name": "3"}],
    }

    def found(side: float) -> dict:
        return {
            0: {
                "boxes": torch.tensor([[0, 0, side, side]]),
                "scores": torch.tensor([0.5]),
                "labels": torch.tensor([3]),
            }
        }

    _, right_first = score_on_ranks(coco_gt, [found(10.0), found(2.0)])
    _, wrong_first = score_on_ranks(coco_gt, [found(2.0), found(10.0)])
    assert (right_first["AP"], wrong_first["AP"]) == (1, 0)


@pytest.mark.parametrize("second", [[0, 0, 10, 10], [4, 0, 14, 10]])
@pytest.mark.parametrize("turned", [False, True])
def test_of_equal_overlaps_the_same_object_is_taken(second, turned):
    """The first detection overlaps both objects alike; the second one overlaps one of them."""
    boxes = [[0, 0, 10, 10], [4, 0, 10, 10]]
    annotations = []
    for box in boxes[::-1] if turned else boxes:
        annotations.append(
            {"image_id": 0, "category_id": 3, "bbox": box, "area": 100.0}
        )
    coco_gt = {
        "images": [{"id": 0}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "3"}],
    }
    detections = {
        0: {
            "boxes": torch.tensor([[2.0, 0, 12, 10], second]),
            "scores": torch.tensor([0.9, 0.5]),
            "labels": torch.tensor([3, 3]),
        }
    }
    evaluator, scores = score_on_ranks(coco_gt, [detections])
    metrics, _ = reference(coco_gt, detections)
    assert [scores[name] for name in METRICS] == metrics
    expected = operating_point(coco_gt, evaluator)
    assert {key: scores[key] for key in expected} == expected


@pytest.mark.parametrize("ids", [[0, 1], [1, 0]])
@pytest.mark.parametrize("right", [0, 1])
def test_of_equal_scores_that_of_the_smaller_image_id_comes_first(ids, right):
    """The order of the images in the annotation file does not matter."""
    box = [0.0, 0, 10, 10]
    coco_gt = {
        "images": [{"id": image} for image in ids],
        "annotations": [
            {"image_id": right, "category_id": 3, "bbox": box, "area": 100.0}
        ],
        "categories": [{"id": 3, "name": "3"}],
    }
    one = {
        "boxes": torch.tensor([box]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([3]),
    }
    detections = {0: one, 1: one}
    _, scores = score_on_ranks(coco_gt, [detections])
    metrics, _ = reference(coco_gt, detections)
    assert [scores[name] for name in METRICS] == metrics
    assert scores["AP"] == pytest.approx(1.0 if right == 0 else 0.5)
