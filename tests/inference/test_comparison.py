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
    width, height = Image.open(files[0]).size
    assert width == 2 * 320 + 8
    assert 320 + 2 * 9 <= height <= 320 + 2 * 20  # two lines of caption


def test_predictions_are_named_by_the_detector_and_the_truth_by_the_data(
    tiny_data, checkpoint, tmp_path, monkeypatch
):
    """A validation file may list its categories in another order."""
    drawn = []
    monkeypatch.setattr(
        comparison,
        "captioned_pair",
        lambda pair: drawn.append(pair) or pair.image,
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
    assert dataset.label_names != names
    (pair,) = drawn
    assert pair.outcomes.drawn.names == pair.truth.names == names
    in_file = dataset.raw_sample(0).fields["labels"].tolist()
    shown = pair.truth.labels.tolist()
    assert [names[label] for label in shown] == [
        dataset.label_names[label] for label in in_file
    ]


def test_a_class_that_the_detector_does_not_know_keeps_its_name(
    tiny_data, checkpoint, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        comparison,
        "captioned_pair",
        lambda pair: drawn.append(pair) or pair.image,
    )
    cfg = tiny_config(tiny_data)
    dataset = cfg.val_dataloader.dataset
    names = {0: "a", 1: "b", 2: "c", 3: "d"}
    draw_comparisons(
        untrained(checkpoint, cfg),
        dataset,
        tmp_path,
        count=1,
        threshold=1.0,
        class_names=names,
    )
    truth = drawn[0].truth
    in_file = dataset.raw_sample(0).fields["labels"].tolist()
    assert [truth.names[label] for label in truth.labels.tolist()] == [
        dataset.label_names[label] for label in in_file
    ]
    assert drawn[0].outcomes.missed == len(in_file)


def test_the_threshold_is_that_of_the_detector_unless_one_is_chosen(
    tiny_data, checkpoint, tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        comparison,
        "captioned_pair",
        lambda pair: drawn.append(pair.threshold) or pair.image,
    )
    cfg = tiny_config(tiny_data)
    detector = untrained(checkpoint, cfg)
    detector.threshold = 0.25
    dataset = cfg.val_dataloader.dataset
    for chosen in (None, 0.75):
        draw_comparisons(detector, dataset, tmp_path, count=1, threshold=chosen)
    assert drawn == [0.25, 0.75]


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
