"""Predictions of an exported model are compared with those of its checkpoint."""

import logging
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from src.core import ConfigError, DataError, ExportError
from src.inference import Detector, Preprocessing
from src.inference.agreement import (
    check_agreement,
    compare_predictions,
    images_for_check,
)
from tests.fixtures.exported import shift_boxes, spoil
from tests.fixtures.tiny import tiny_config

needs_runtime = pytest.mark.skipif(
    find_spec("onnxruntime") is None,
    reason="onnxruntime is not installed (tools/requirements.txt)",
)


@needs_runtime
def test_the_check_passes_on_batches_of_1_2_and_5(
    detector, exported, val_images, caplog
):
    with caplog.at_level(logging.INFO, "dfine"):
        found = check_agreement(
            detector,
            Detector.from_onnx(exported),
            val_images,
            list(map(str, val_images)),
        )
    assert len(found) == 8 and all(one.compared >= 10 for one in found)
    assert (
        max(one.box_px for one in found) < 0.01
        and max(one.score for one in found) < 1e-4
    )
    assert "the outputs of 8 images agree" in caplog.text


class FailsAt:
    """An exported engine that gives nothing right in batches of one size, and records the size of each."""

    batch_size = None

    def __init__(self, engine, size: int) -> None:
        self.engine, self.size, self.sizes = engine, size, []

    def __call__(self, images, sizes):
        self.sizes.append(len(images))
        labels, boxes, scores = self.engine(images, sizes)
        return labels, boxes, 0 * scores if len(images) == self.size else scores


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_check_tries_batches_of_1_2_and_5_whatever_the_number_of_images(
    detector, val_images, caplog, count
):
    def check(size: int) -> list[int]:
        """Compare with an engine that fails at a size; return the sizes of the batches it was given."""
        engine = FailsAt(detector.engine, size)
        settings = detector.preprocessing, detector.classes, detector.threshold
        exported = Detector.from_parts(engine, *settings, {"file": "best.onnx"})
        check_agreement(detector, exported, val_images[:count], [""] * count)
        return engine.sizes

    with caplog.at_level(logging.INFO, "dfine"):
        assert check(-1)[:3] == [1, 2, 5]
    shown = "1 image" if count == 1 else f"{count} images"
    assert f"the outputs of {shown} agree in batches of 1, 2, 5" in caplog.text
    for size in (1, 2, 5):
        with pytest.raises(
            ExportError, match="gives other predictions than its model"
        ):
            check(size)


@needs_runtime
def test_the_check_names_the_worst_image_of_a_file_that_differs(
    detector, exported, val_images, tmp_path
):
    other = Detector.from_onnx(spoil(exported, tmp_path, shift_boxes))
    names = [path.name for path in val_images]
    with pytest.raises(
        ExportError,
        match=r"gives other predictions than its model: "
        r"\d of 8 images differ, worst val_\d+.jpg, where a box differs by",
    ):
        check_agreement(detector, other, val_images, names)


@needs_runtime
def test_the_check_finds_other_preprocessing(detector, exported, val_images):
    other = Detector.from_onnx(exported)
    other.preprocessing = Preprocessing(
        [
            *other.preprocessing.ops,
            {"type": "Normalize", "mean": [0.5] * 3, "std": [0.5] * 3},
        ]
    )
    with pytest.raises(ExportError, match="preprocessing is"):
        check_agreement(detector, other, val_images, [""] * 8)


def test_order_among_equals_is_no_difference_but_a_lost_an_added_and_a_renamed_object_are(
    detector, val_images
):
    found = detector.predict(val_images[0], threshold=0.0)
    assert (
        compare_predictions(
            found, found.select(np.arange(len(found))[::-1]), 0.4
        ).relative
        == 0
    )
    assert (
        compare_predictions(
            found, found.select(np.arange(1, len(found))), 0.4
        ).relative
        > 1
    )
    assert (
        compare_predictions(
            found.select(np.arange(1, len(found))), found, 0.4
        ).relative
        > 1
    )
    assert (
        compare_predictions(
            found, replace(found, labels=(found.labels + 1) % 4), 0.4
        ).relative
        > 1
    )
    moved = replace(found, boxes=found.boxes + np.float32([2, 0, 0, 0]))
    assert compare_predictions(found, moved, 0.4).box_px == pytest.approx(
        2, abs=0.01
    )
    nothing = found.select(np.zeros(len(found), bool))
    assert (
        compare_predictions(nothing, nothing, 0.4).relative == 0
        and compare_predictions(found, nothing, 0.4).relative == np.inf
    )


def test_images_for_the_check_come_from_a_folder_or_the_validation_data_or_are_synthetic(
    detector, tiny_data, tmp_path
):
    files, names = images_for_check(detector, tiny_data.folder / "images", 5)
    assert len(files) == 5 and names[0].endswith(".jpg")
    drawn, names = images_for_check(
        detector, None, 3
    )  # the data that the checkpoint was trained on is not kept
    assert [image.shape for image in drawn] == [(64, 64, 3)] * 3 and names[
        2
    ] == "synthetic image 3"
    own = Detector.from_parts(
        detector.engine,
        detector.preprocessing,
        detector.classes,
        cfg=tiny_config(tiny_data),
    )
    files, _ = images_for_check(own, None, 100)
    assert len(files) == 8 and all(
        path.parent == tiny_data.folder / "images" for path in files
    )
    with pytest.raises(DataError, match="no image files"):
        images_for_check(detector, tmp_path, 5)
    with pytest.raises(ConfigError, match="--count is 0"):
        images_for_check(detector, None, 0)
