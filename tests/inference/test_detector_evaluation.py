"""A detector is evaluated on labels, with the same numbers as an evaluation by the trainer."""

import numpy as np
import pytest
import torch

from src.core import CheckpointError, ConfigError
from src.data.dataset.coco_dataset import CocoDetection
from src.inference.detector_evaluation import (
    Evaluation,
    confusion_matrix,
    count_errors,
    evaluate_detector,
    open_labelled_images,
)
from src.solver import DetSolver
from tests.fixtures.coco_files import sound_coco, write_coco
from tests.fixtures.tiny import tiny_config
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture(scope="module")
def evaluation(detector, tiny_data) -> Evaluation:
    return evaluate_detector(
        detector,
        open_labelled_images(
            detector, tiny_data.folder / "images", tiny_data.folder / "val.json"
        ),
    )


def by_hand(
    objects: list, detections: list, names: dict[int, str]
) -> Evaluation:
    """Return the evaluation of one image with id 1."""
    return Evaluation(
        None,
        names,
        {},
        {1: np.array(objects, float).reshape(-1, 6)},
        {1: np.array(detections, float).reshape(-1, 6)},
    )


def test_the_numbers_are_those_of_test_only(evaluation, tiny_data, tmp_path):
    expected = DetSolver(
        tiny_config(tiny_data, tmp_path, resume=str(TRAINED), test_only=True),
        torch.device("cpu"),
    ).val()
    assert expected["AP"] > 0.1
    for name in ("AP", "AP50", "AR100", "F1", "F1_threshold"):
        assert evaluation.metrics[name] == pytest.approx(
            expected[name], abs=1e-3
        )


def test_objects_have_the_class_names_of_the_detector(evaluation):
    assert evaluation.names == {
        0: "disc",
        1: "square",
        2: "triangle",
        3: "ring",
    }


def test_data_with_foreign_classes_is_refused(detector, tmp_path):
    with pytest.raises(CheckpointError, match="was not trained with"):
        open_labelled_images(
            detector, tmp_path, write_coco(tmp_path, sound_coco())
        )


def test_images_without_annotations_are_refused(detector, tmp_path):
    with pytest.raises(ConfigError, match="together"):
        open_labelled_images(detector, images=tmp_path)


def test_data_that_has_moved_asks_for_the_new_place(detector):
    with pytest.raises(
        ConfigError,
        match="if the data has moved, give --images and --annotations",
    ):
        open_labelled_images(detector)


def test_the_confusion_matrix_counts_hits_confusions_misses_and_false_alarms():
    objects = [
        [0, 0, 10, 10, 0, 0],
        [20, 0, 10, 10, 1, 0],
        [40, 0, 10, 10, 1, 0],
    ]
    detections = [
        [0, 0, 10, 10, 0.9, 0],
        [20, 0, 10, 10, 0.8, 0],
        [80, 0, 10, 10, 0.7, 1],
        [40, 0, 10, 10, 0.1, 1],
    ]
    assert confusion_matrix(
        by_hand(objects, detections, {0: "a", 1: "b"}), 0.5
    ).tolist() == [
        [1, 0, 0],
        [1, 0, 1],
        [0, 1, 0],
    ]


def test_an_object_goes_to_its_own_class_before_a_better_score_of_another():
    evaluation = by_hand(
        [[0, 0, 10, 10, 0, 0]],
        [[0, 0, 10, 10, 0.9, 1], [0, 0, 10, 10, 0.6, 0]],
        {0: "a", 1: "b"},
    )
    assert confusion_matrix(evaluation, 0.5).tolist() == [
        [1, 0, 0],
        [0, 0, 0],
        [0, 1, 0],
    ]


def test_detections_in_a_crowd_count_for_nothing():
    evaluation = by_hand(
        [[0, 0, 100, 100, 0, 1]], [[10, 10, 10, 10, 0.9, 0]], {0: "a"}
    )
    assert confusion_matrix(evaluation, 0.5).sum() == 0
    assert count_errors(evaluation, 1, 0.5) == (0, 0)


def test_an_image_without_objects_can_only_have_false_alarms():
    evaluation = Evaluation(
        None, {0: "a"}, {}, {}, {1: np.array([[0, 0, 5, 5, 0.9, 0.0]])}
    )
    assert count_errors(evaluation, 1, 0.5) == (0, 1) and count_errors(
        evaluation, 1, 0.95
    ) == (0, 0)
    assert confusion_matrix(evaluation, 0.5).tolist() == [[0, 0], [1, 0]]


def test_the_whole_matrix_accounts_for_every_object_and_detection(evaluation):
    matrix, threshold = confusion_matrix(evaluation, 0.2), 0.2
    objects = sum(len(rows) for rows in evaluation.objects.values())
    assert matrix[:-1].sum() == objects
    assert matrix[:, :-1].sum() == sum(
        len(evaluation.detections_above(i, threshold))
        for i in evaluation.detections
    )
    assert isinstance(evaluation.dataset, CocoDetection)
