"""Matching of detections and objects, and the best threshold."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.data.evaluation.true_positives import (
    best_operating_point,
    match,
    objects_of,
    operating_point_at,
    operating_points,
)
from src.detection.matching import CROWD
from tests.data.evaluation.test_coco_evaluator import (
    random_detections,
    truth_of,
)


def rows_of(detections: dict) -> dict[int, np.ndarray]:
    """Return detections as the evaluator keeps them."""
    return {
        image: np.column_stack(
            [
                found["boxes"][:, :2],
                found["boxes"][:, 2:] - found["boxes"][:, :2],
                found["scores"],
                found["labels"],
            ]
        ).astype(float)
        for image, found in detections.items()
    }


def objects(*rows) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 6)


def found(*rows) -> np.ndarray:
    return np.array(rows, float).reshape(-1, 6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hits_and_crowds_are_those_that_pycocotools_counts_at_half_overlap(
    seed, capsys
):
    truth = truth_of(seed)
    detections = rows_of(random_detections(truth, seed))
    coco = COCO()
    coco.dataset = {
        **truth,
        "annotations": [dict(a) for a in truth["annotations"]],
    }
    coco.createIndex()
    results = coco.loadRes(
        [
            {
                "image_id": i,
                "bbox": row[:4].tolist(),
                "score": row[4],
                "category_id": int(row[5]),
            }
            for i, rows in detections.items()
            for row in rows
        ]
    )
    run = COCOeval(coco, results, "bbox")
    run.params.maxDets = [1, 10, 10_000]
    run.evaluate()
    expected = {"hit": 0, "crowd": 0}
    for entry in run.evalImgs[
        : len(run.params.catIds)
        * len(run.params.imgIds)
        * len(run.params.areaRng)
    ]:
        if entry is not None and entry["aRng"] == run.params.areaRng[0]:
            ignored = entry["dtIgnore"][0].astype(bool)
            expected["hit"] += int(
                ((entry["dtMatches"][0] > 0) & ~ignored).sum()
            )
            expected["crowd"] += int(ignored.sum())
    capsys.readouterr()
    matches = match(objects_of(truth), detections)
    assert int((matches.found >= 0).sum()) == expected["hit"] > 0
    assert int((matches.found == CROWD).sum()) == expected["crowd"] > 0
    assert sum(matches.objects.values()) == sum(
        not a["iscrowd"] for a in truth["annotations"]
    )


def test_the_best_threshold_is_that_of_the_highest_f1():
    truth = {
        1: objects(
            [0, 0, 10, 10, 1, 0], [20, 0, 10, 10, 1, 0], [40, 0, 10, 10, 1, 0]
        )
    }
    detections = {
        1: found(
            [0, 0, 10, 10, 0.9, 1],
            [20, 0, 10, 10, 0.6, 1],
            [70, 0, 10, 10, 0.5, 1],
            [80, 0, 10, 10, 0.4, 1],
            [40, 0, 10, 10, 0.1, 1],
        )
    }
    best = best_operating_point(match(truth, detections))
    assert best.threshold == 0.6 and best.precision == 1.0
    assert best.recall == pytest.approx(2 / 3) and best.f1 == pytest.approx(0.8)
    assert operating_point_at(match(truth, detections), 0.6) == pytest.approx(
        best
    )


def test_detections_of_equal_score_count_together():
    truth = {1: objects([0, 0, 10, 10, 1, 0])}
    points = operating_points(
        match(
            truth, {1: found([0, 0, 10, 10, 0.5, 1], [50, 50, 10, 10, 0.5, 1])}
        )
    )
    assert (
        points.threshold.tolist() == [0.5]
        and points.precision.tolist() == [0.5]
        and points.recall.tolist() == [1.0]
    )


def test_without_objects_or_detections_there_is_no_best_threshold():
    assert (
        best_operating_point(match({}, {1: found([0, 0, 10, 10, 0.5, 1])}))
        is None
    )
    assert (
        best_operating_point(match({1: objects([0, 0, 10, 10, 1, 0])}, {}))
        is None
    )


def test_the_part_of_a_category_keeps_its_own_objects():
    truth = {1: objects([0, 0, 10, 10, 1, 0], [20, 0, 10, 10, 2, 0])}
    part = match(
        truth, {1: found([0, 0, 10, 10, 0.5, 1], [20, 0, 10, 10, 0.4, 2])}
    ).of_category(2)
    assert (
        part.scores.tolist() == [0.4]
        and part.found.tolist() == [1]
        and part.objects == {2: 1}
    )
