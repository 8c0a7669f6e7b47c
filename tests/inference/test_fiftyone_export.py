"""Evaluations are converted to FiftyOne samples; a stand-in takes the place of the app."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.core import ConfigError
from src.inference.detector_evaluation import (
    Evaluation,
    evaluate_detector,
    open_labelled_images,
)
from src.inference.fiftyone_export import fiftyone_samples, to_fiftyone


class DatabaseIsMissing:
    def __init__(self, *_, **__):
        raise RuntimeError("MongoDB could not be installed")


@pytest.fixture
def stand_in(monkeypatch):
    """Makes objects that are nothing but their arguments."""
    kinds = {
        name: lambda **fields: SimpleNamespace(**fields)
        for name in ("Sample", "Detection", "Detections")
    }
    monkeypatch.setitem(
        sys.modules,
        "fiftyone",
        SimpleNamespace(**kinds, Dataset=DatabaseIsMissing),
    )


@pytest.fixture(scope="module")
def evaluation(detector, tiny_data):
    return evaluate_detector(
        detector,
        open_labelled_images(
            detector, tiny_data.folder / "images", tiny_data.folder / "val.json"
        ),
    )


def test_samples_hold_truth_detections_and_what_became_of_them(
    stand_in, evaluation
):
    samples = fiftyone_samples(evaluation, 0.3)
    assert len(samples) == 8 and samples[0].filepath.endswith("val_00000.jpg")
    truth = [d for s in samples for d in s.ground_truth.detections]
    guesses = [d for s in samples for d in s.predictions.detections]
    hits = sum(d.eval == "tp" for d in guesses)
    assert (
        hits > 0
        and sum(s.missed for s in samples) == len(truth) - hits
        and sum(s.false for s in samples) == len(guesses) - hits
    )
    assert {d.label for d in truth + guesses} <= {
        "disc",
        "square",
        "triangle",
        "ring",
    }
    assert all(0 <= v <= 1 for d in truth for v in d.bounding_box) and all(
        d.confidence >= 0.3 for d in guesses
    )


def test_boxes_are_fractions_of_the_width_and_height_of_their_own_image(
    stand_in,
):
    sizes = torch.tensor([[40, 20], [10, 50]])
    ids = torch.tensor([7, 3])
    data = SimpleNamespace(
        labels=SimpleNamespace(image_ids=ids, sizes=sizes),
        image_path=lambda index: Path(f"{index}.jpg"),
    )
    objects = {7: [[4, 4, 8, 10, 0, 0]], 3: [[1, 5, 5, 10, 1, 0]]}
    detections = {7: [[4, 5, 8, 10, 0.9, 0]], 3: [[2, 5, 4, 10, 0.8, 1]]}
    seen = Evaluation(
        data,
        {0: "a", 1: "b"},
        {},
        {image: np.array(rows, float) for image, rows in objects.items()},
        {image: np.array(rows, float) for image, rows in detections.items()},
    )
    found = [
        (
            sample.image_id,
            Path(sample.filepath).name,
            [
                (one.label, pytest.approx(one.bounding_box))
                for one in sample.ground_truth.detections
                + sample.predictions.detections
            ],
        )
        for sample in fiftyone_samples(seen, 0.5)
    ]
    assert found == [
        (
            7,
            "0.jpg",
            [("a", [0.1, 0.2, 0.2, 0.5]), ("a", [0.1, 0.25, 0.2, 0.5])],
        ),
        (
            3,
            "1.jpg",
            [("b", [0.1, 0.1, 0.5, 0.2]), ("b", [0.2, 0.1, 0.4, 0.2])],
        ),
    ]


def test_a_missing_database_is_reported(stand_in, evaluation):
    with pytest.raises(
        ConfigError,
        match="FiftyOne cannot open its database: MongoDB could not be installed",
    ):
        to_fiftyone(evaluation, "name", 0.5)


def test_without_fiftyone_its_installation_is_explained(
    monkeypatch, evaluation
):
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ConfigError, match="pip install fiftyone"):
        to_fiftyone(evaluation, "name", 0.5)
