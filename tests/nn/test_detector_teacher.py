import functools

import pytest
import torch

from src.core import CheckpointError
from src.detection.weight_file import read_weights
from src.nn.detector_teacher import DetectorTeacher, detector_of
from tests.fixtures.trained_tiny import TRAINED


@functools.cache
def trained():
    return detector_of(read_weights(TRAINED), None)


def test_the_teacher_gives_the_map_and_the_predictions_of_the_detector():
    images = torch.rand(2, 3, 96, 64)
    model = trained().eval()
    with torch.no_grad():
        expected = model(images)
        maps = model.encoder.input_proj[-1](model.backbone(images)[-1])
        expected_map = model.encoder._attend(model.encoder.encoder[0], maps)
    found_map, predictions = DetectorTeacher(model)(images, detect=True)
    torch.testing.assert_close(found_map, expected_map, rtol=1e-4, atol=1e-4)
    for found, name in zip(predictions, ("pred_logits", "pred_boxes")):
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-3)


def test_the_map_is_the_same_without_predictions():
    teacher = DetectorTeacher(trained())
    images = torch.rand(1, 3, 64, 64)
    one, predictions = teacher(images, detect=True)
    two, none = teacher(images, detect=False)
    assert torch.equal(one, two) and predictions is not None and none is None


def test_the_teacher_is_a_frozen_copy():
    model = trained().train()
    teacher = DetectorTeacher(model)
    assert model.training and not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(
        p.requires_grad
        for name, p in model.named_parameters()
        if name.startswith("encoder")
    )
    assert teacher.width == 32 and teacher.num_classes == 4
    assert teacher.num_parameters > 100_000


def test_a_file_that_does_not_fit_a_configuration_is_refused():
    file = read_weights(TRAINED)
    del file.weights["encoder.lateral_convs.0.conv.weight"]
    with pytest.raises(CheckpointError, match="1 missing"):
        detector_of(file, None)
