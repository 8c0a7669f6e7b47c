"""COCO average precision over all ranks, each image counted once."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.core.build import create
from src.core.coco_metrics import METRICS
from src.core.errors import DataError
from src.data.dataset.coco_dataset import CocoDetection
from src.data.evaluation.coco_evaluator import CocoEvaluator
from src.runtime.distributed import rank
from tests.fixtures.coco_files import sound_coco, write_coco
from tests.fixtures.processes import on_ranks


def truth_of(seed: int = 0, images: int = 12, *, crowds: bool = True) -> dict:
    """Return random truth of three categories, objects of all three sizes."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 8)):
            width, height = np.exp(rng.uniform(np.log(8), np.log(250), 2))
            x, y = rng.uniform(0, 400 - 250, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(3)),
                    "bbox": [x, y, width, height],
                    "area": float(width * height * rng.uniform(0.5, 1)),
                    "iscrowd": int(crowds and rng.random() < 0.1),
                }
            )
    return {
        "images": [
            {"id": i, "width": 400, "height": 400} for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(3)],
    }


def random_detections(
    truth: dict, seed: int = 0, false: int = 20
) -> dict[int, dict]:
    """Return shaken copies of the truth among false alarms, best first."""
    rng, detections = np.random.default_rng(seed), {}
    for image in truth["images"]:
        own = [
            a
            for a in truth["annotations"]
            if a["image_id"] == image["id"]
            for _ in range(int(rng.integers(0, 3)))
        ]
        boxes = [
            np.array(a["bbox"]) * rng.uniform(0.85, 1.15, 4) for a in own
        ] + [
            np.concatenate([rng.uniform(0, 300, 2), rng.uniform(5, 100, 2)])
            for _ in range(false)
        ]
        labels = [
            a["category_id"] if rng.random() < 0.8 else int(rng.integers(3))
            for a in own
        ] + rng.integers(0, 3, false).tolist()
        xywh = torch.tensor(np.array(boxes), dtype=torch.float32)
        scores, order = torch.sort(
            torch.from_numpy(rng.random(len(boxes)).astype(np.float32)),
            descending=True,
        )
        detections[image["id"]] = {
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)[
                order
            ],
            "scores": scores,
            "labels": torch.tensor(labels)[order],
        }
    return detections


def perfect_detections(truth: dict) -> dict[int, dict]:
    found = {}
    for image in truth["images"]:
        own = [
            a
            for a in truth["annotations"]
            if a["image_id"] == image["id"] and not a["iscrowd"]
        ]
        xywh = torch.tensor([a["bbox"] for a in own], dtype=torch.float64).view(
            -1, 4
        )
        found[image["id"]] = {
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1),
            "scores": torch.full((len(own),), 0.9),
            "labels": torch.tensor(
                [a["category_id"] for a in own], dtype=torch.int64
            ),
        }
    return found


def scores_of(truth: dict, *parts: dict) -> dict:
    evaluator = CocoEvaluator(truth)
    for part in parts:
        evaluator.update(part)
    evaluator.synchronize()
    return evaluator.summarize()


def scores_of_pycocotools(truth: dict, detections: dict) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        rows = []
        for image_id, found in detections.items():
            for box, score, label in zip(
                found["boxes"].double().tolist(),
                found["scores"].tolist(),
                found["labels"].tolist(),
            ):
                rows.append(
                    {
                        "image_id": image_id,
                        "bbox": [
                            box[0],
                            box[1],
                            box[2] - box[0],
                            box[3] - box[1],
                        ],
                        "score": score,
                        "category_id": label,
                    }
                )
        run = COCOeval(coco, coco.loadRes(rows), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [
        None if value < 0 else pytest.approx(value, abs=1e-6)
        for value in run.stats.tolist()
    ]


def listed(scores: dict) -> list[float | None]:
    return [scores[name] for name in METRICS]


# ---- numbers ----


def test_perfect_detections_score_one():
    truth = truth_of()
    scores = scores_of(truth, perfect_detections(truth))
    assert [
        scores[name] for name in ("AP", "AP50", "AP75", "AR100")
    ] == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize("seed", range(6))
def test_random_detections_score_as_with_pycocotools(seed):
    truth = truth_of(seed)
    detections = random_detections(truth, seed)
    assert listed(scores_of(truth, detections)) == scores_of_pycocotools(
        truth, detections
    )


def test_more_than_a_hundred_detections_an_image_score_as_with_pycocotools():
    truth = truth_of(1, 4)
    detections = random_detections(truth, 1, false=300)
    assert listed(scores_of(truth, detections)) == scores_of_pycocotools(
        truth, detections
    )


def test_detections_of_one_score_keep_the_order_in_which_they_came():
    truth = truth_of(2)
    detections = random_detections(truth, 2)
    for found in detections.values():
        found["scores"] = torch.round(found["scores"], decimals=1)
    assert listed(scores_of(truth, detections)) == scores_of_pycocotools(
        truth, detections
    )


def test_image_ids_beyond_the_precision_of_floating_point_numbers_do_not_collide():
    """Detections do not match objects of another image whose id is equal as a floating-point number."""
    truth = truth_of(crowds=False)
    small, large = (
        (image["id"] for image in truth["images"][:2]),
        (2**60 + 1, 2**60 + 2),
    )
    new_id = dict(zip(small, large))
    truth["images"] = [
        {**i, "id": new_id[i["id"]]}
        for i in truth["images"]
        if i["id"] in new_id
    ]
    truth["annotations"] = [
        {**a, "image_id": new_id[a["image_id"]]}
        for a in truth["annotations"]
        if a["image_id"] in new_id
    ]
    found = perfect_detections(truth)
    assert scores_of(truth, found)["AP"] == pytest.approx(1)
    assert (
        scores_of(truth, dict(zip(large, reversed(found.values()))))["AP"] < 0.5
    )


def test_metrics_that_the_labels_cannot_define_are_known_before_anything_is_scored():
    truth = truth_of(crowds=False)
    for entry, area in zip(truth["annotations"], [32.0**2, 500.0] * 1000):
        entry["area"] = area
    undefined = CocoEvaluator(truth).undefined_metrics()
    assert set(undefined) == {"AP_large", "AR_large"}
    count = len(truth["annotations"])
    assert undefined["AP_large"] == (
        f"none of the {count} objects has an area from 9216 to 1e+10 square pixels (they have 500 to 1024)"
    )
    scores = scores_of(truth, perfect_detections(truth))
    assert {name for name in METRICS if scores[name] is None} == set(undefined)


def test_without_objects_no_metric_is_defined():
    truth = truth_of()
    truth["annotations"] = [{**a, "iscrowd": 1} for a in truth["annotations"]]
    assert set(CocoEvaluator(truth).undefined_metrics()) == set(
        CocoEvaluator.metric_names
    )


def test_scores_of_classes_stand_under_their_category_ids():
    truth = truth_of(crowds=False)
    for record in truth["annotations"]:
        record["category_id"] = (3, 7, 7)[record["category_id"]]
    truth["categories"] = [
        {"id": 3, "name": "cat"},
        {"id": 7, "name": "dog"},
        {"id": 9, "name": "unused"},
    ]
    detections = perfect_detections(truth)
    for found in detections.values():
        keep = found["labels"] == 3
        found.update({key: value[keep] for key, value in found.items()})
    assert scores_of(truth, detections)["AP_of_class"] == {
        3: 1.0,
        7: 0.0,
        9: None,
    }


def test_detections_in_half_precision_are_scored():
    truth = truth_of()
    detections = {
        i: found | {"scores": found["scores"].bfloat16()}
        for i, found in perfect_detections(truth).items()
    }
    assert scores_of(truth, detections)["AP"] == pytest.approx(1)


# ---- little or nothing to find ----


def test_no_detections_score_zero():
    truth = truth_of()
    assert scores_of(truth)["AP"] == 0


def test_images_without_detections_score_zero():
    truth = truth_of()
    empty = {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.int64),
    }
    assert (
        scores_of(truth, {image["id"]: empty for image in truth["images"]})[
            "AP"
        ]
        == 0
    )


@pytest.mark.parametrize("detect", [False, True])
def test_truth_without_objects_defines_no_metric(detect):
    truth = truth_of()
    truth["annotations"] = []
    assert (
        listed(scores_of(truth, *[random_detections(truth)] * detect))
        == [None] * 12
    )


def test_only_crowds_define_no_metric():
    truth = truth_of(crowds=False)
    for record in truth["annotations"]:
        record["iscrowd"] = 1
    assert scores_of(truth, random_detections(truth))["AP"] is None


# ---- images ----


def test_duplicate_image_counts_once():
    truth = truth_of()
    detections = random_detections(truth)
    assert listed(scores_of(truth, detections, detections)) == listed(
        scores_of(truth, detections)
    )


def test_first_detections_of_an_image_count():
    truth = truth_of()
    assert scores_of(
        truth, perfect_detections(truth), random_detections(truth)
    )["AP"] == pytest.approx(1)


def test_order_of_batches_does_not_matter():
    truth = truth_of()
    detections = random_detections(truth)
    parts = [{image_id: found} for image_id, found in detections.items()]
    assert listed(scores_of(truth, *reversed(parts))) == listed(
        scores_of(truth, *parts)
    )


@pytest.mark.parametrize("image_id", [0, (1 << 53) + 1, (1 << 62) + 1])
def test_any_image_id_will_do(image_id):
    truth = truth_of(images=1, seed=3)
    truth["images"][0]["id"] = image_id
    for record in truth["annotations"]:
        record["image_id"] = image_id
    assert scores_of(truth, perfect_detections(truth))["AP"] == pytest.approx(1)


def test_detections_for_an_unknown_image_are_refused():
    truth = truth_of()
    with pytest.raises(
        DataError,
        match=r"^detections for image ids that are not in the annotation file: \[99\]$",
    ):
        scores_of(truth, {99: perfect_detections(truth)[1]})


def test_detections_are_forgotten_on_request():
    truth = truth_of()
    evaluator = CocoEvaluator(truth)
    evaluator.update(perfect_detections(truth))
    evaluator.reset()
    assert evaluator.summarize()["AP"] == 0


def test_scoring_twice_gives_the_same_and_does_not_change_the_truth():
    truth, untouched = truth_of(), truth_of()
    evaluator = CocoEvaluator(truth)
    evaluator.update(random_detections(truth))
    assert evaluator.summarize() == evaluator.summarize()
    assert truth == untouched


def test_nothing_is_printed(capsys):
    truth = truth_of()
    scores_of(truth, random_detections(truth))
    assert capsys.readouterr() == ("", "")


# ---- ranks ----


def test_two_ranks_score_what_one_does():
    truth = truth_of()
    detections = random_detections(truth)

    def work():
        return listed(
            scores_of(
                truth,
                {
                    i: found
                    for i, found in detections.items()
                    if i % 2 == rank()
                },
            )
        )

    assert on_ranks(2, work) == [listed(scores_of(truth, detections))] * 2


def test_image_seen_by_two_ranks_counts_once():
    truth = truth_of()
    detections = random_detections(truth)
    assert (
        on_ranks(2, lambda: listed(scores_of(truth, detections)))
        == [listed(scores_of(truth, detections))] * 2
    )


# ---- with the data set ----


@pytest.mark.parametrize(
    "settings", [{}, {"remap_mscoco_category": True}], ids=["labels", "remap"]
)
def test_truth_of_a_data_set_is_scored_with_the_ids_that_detections_carry(
    tmp_path, settings
):
    content = sound_coco()
    content["annotations"][3]["bbox"] = [
        4,
        5,
        0,
        9,
    ]  # dropped from training and from evaluation alike
    data = CocoDetection(
        str(tmp_path), str(write_coco(tmp_path, content)), **settings
    )
    detections, ids = {}, sorted(data.detection_names)
    for index in range(len(data)):
        _, target = data[index]
        order = sorted(data.label_names)
        labels = torch.tensor(
            [ids[order.index(label)] for label in target["labels"].tolist()]
        )
        detections[int(target["image_id"])] = {
            "boxes": target["boxes"],
            "labels": labels,
            "scores": torch.full((len(labels),), 0.5),
        }
    assert scores_of(data.ground_truth(), detections)["AP"] == pytest.approx(1)


def test_evaluator_is_built_from_a_configuration():
    evaluator = create(
        {"type": "CocoEvaluator", "iou_types": ["bbox"]}, coco_gt=truth_of()
    )
    assert evaluator.iou_types == ["bbox"]
