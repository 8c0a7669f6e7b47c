"""Pictures of predictions beside the truth."""

import pytest
import torch
from PIL import Image

from src.core import CheckpointError
from src.detection.weight_file import read_weights
from src.inference import Detector, comparison
from src.inference.comparison import draw_comparisons
from tests.fixtures.tiny import tiny_config


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(
        {"model": tiny_config(num_classes=4).model.state_dict()},
        tmp_path / "best.pth",
    )
    return tmp_path / "best.pth"


def untrained(checkpoint, cfg) -> Detector:
    return Detector.from_weights(
        read_weights(checkpoint), cfg, torch.device("cpu")
    )


def test_truth_and_predictions_of_images_spread_over_the_data_are_drawn(
    tiny_data, checkpoint, tmp_path
):
    cfg = tiny_config(tiny_data)
    files = draw_comparisons(
        untrained(checkpoint, cfg),
        cfg.val_dataloader.dataset,
        tmp_path / "pictures",
        count=3,
        threshold=0.0,
    )
    assert [file.name for file in files] == [
        "val_00000.jpg",
        "val_00004.jpg",
        "val_00007.jpg",
    ]
    assert Image.open(files[0]).size == (2 * 320 + 8, 320)


def test_predictions_are_named_by_the_detector_and_the_truth_by_the_data(
    tiny_data, checkpoint, tmp_path, monkeypatch
):
    """A validation file may list its categories in another order."""
    drawn = []
    monkeypatch.setattr(
        comparison,
        "draw_pair",
        lambda image, truth, found: (
            drawn.append((truth.names, found.names)) or [image, image]
        ),
    )
    cfg = tiny_config(tiny_data)
    dataset = cfg.val_dataloader.dataset
    names = {0: "ring", 1: "disc", 2: "square", 3: "triangle"}
    draw_comparisons(
        untrained(checkpoint, cfg),
        dataset,
        tmp_path,
        count=1,
        threshold=0.5,
        class_names=names,
    )
    assert (
        drawn == [(dataset.label_names, names)] and dataset.label_names != names
    )


def test_no_picture_is_requested_twice_if_there_are_fewer_images(
    tiny_data, checkpoint, tmp_path
):
    cfg = tiny_config(tiny_data)
    files = draw_comparisons(
        untrained(checkpoint, cfg),
        cfg.val_dataloader.dataset,
        tmp_path,
        count=100,
        threshold=0.5,
    )
    assert len(set(files)) == 8


def test_a_checkpoint_of_another_model_is_refused(tiny_data, checkpoint):
    with pytest.raises(
        CheckpointError, match="has 4 classes, the configuration has 5"
    ):
        untrained(checkpoint, tiny_config(tiny_data, num_classes=5))
