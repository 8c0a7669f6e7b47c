"""Files of weights: their forms and their meta data."""

from pathlib import Path

import pytest
import torch

from src.core import CheckpointError
from src.core.errors import NumericsError
from src.detection.model_config import model_config
from src.detection.weight_file import WeightFile, class_count, read_weights
from tests.fixtures.trained_tiny import TRAINED

HEAD = "decoder.dec_score_head.0.bias"


def weights_of_head(classes: int = 3) -> dict[str, torch.Tensor]:
    return {
        "decoder.dec_score_head.0.weight": torch.rand(classes, 2),
        HEAD: torch.rand(classes),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model": w},
        lambda w: w,
        lambda w: {"model": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {
            "ema": {"module": w, "updates": 5},
            "model": {k: torch.zeros_like(v) for k, v in w.items()},
        },
        lambda w: {"ema": {"module": {f"module.{k}": v for k, v in w.items()}}},
        lambda w: {"ema": None, "model": w},
    ],
    ids=[
        "model",
        "bare",
        "module prefix",
        "ema over model",
        "ema with prefix",
        "no ema",
    ],
)
def test_every_form_of_official_checkpoint_is_read(path, wrap):
    weights = weights_of_head()
    torch.save(wrap(weights), path)
    read = read_weights(path).weights
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[k], weights[k]) for k in weights)


@pytest.mark.parametrize(
    "content", [{}, [1, 2], {"foo": 1}, {"model": {}}, {"model": {"w": "text"}}]
)
def test_a_file_that_is_not_a_checkpoint_is_refused(path, content):
    torch.save(content, path)
    with pytest.raises(
        CheckpointError,
        match="expected a checkpoint with 'model' or 'ema'|neither weights nor the keys 'model' or 'ema'",
    ):
        read_weights(path)


def test_weights_that_are_not_finite_are_refused_by_name(path):
    weights = weights_of_head()
    weights["decoder.dec_score_head.0.weight"][0, 0] = float("nan")
    torch.save({"model": weights}, path)
    with pytest.raises(
        NumericsError,
        match=r"tensor decoder\.dec_score_head\.0\.weight contains values that are not finite",
    ):
        read_weights(path)


def test_class_count_is_none_without_a_class_head():
    assert class_count({"w": torch.ones(3)}) is None


def test_a_checkpoint_has_its_classes_configuration_and_input_size():
    file = read_weights(TRAINED)
    assert file.num_classes == len(file.classes) == len(file.named_classes)
    assert file.input_size == (64, 64) and 0 < file.threshold < 1
    cfg = model_config(file)
    assert cfg.yaml_cfg["num_classes"] == file.num_classes
    assert cfg.yaml_cfg["DINOv3Backbone"]["pretrained"] is False


def test_a_file_that_says_nothing_about_itself_has_numbered_classes():
    file = WeightFile(Path("plain.pth"), {HEAD: torch.zeros(2)}, {})
    assert (
        file.classes,
        file.config_text,
        file.threshold,
        file.input_size,
    ) == (
        None,
        None,
        None,
        None,
    )
    assert [entry["name"] for entry in file.named_classes] == [
        "class 0",
        "class 1",
    ]
    with pytest.raises(
        CheckpointError, match="plain.pth contains no configuration"
    ):
        model_config(file)


def test_without_a_class_head_there_are_no_names():
    with pytest.raises(CheckpointError, match="no class head found"):
        _ = WeightFile(Path("vit.pth"), {"w": torch.ones(3)}, {}).named_classes
