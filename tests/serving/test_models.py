"""The detectors of a server: which file an engine opens, and their names."""

import shutil

import numpy as np
import pytest

from src.core.errors import CheckpointError, ConfigError
from src.serving.models import file_for, open_models
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture
def run(tmp_path):
    """A run folder."""
    folder = tmp_path / "runs/train"
    folder.mkdir(parents=True)
    shutil.copy(TRAINED, folder / "best.pth")
    return folder


def test_a_run_folder_stands_for_its_best_checkpoint(run):
    assert file_for(str(run), None) == str(run / "best.pth")
    assert file_for(str(run), "torch") == str(run / "best.pth")


def test_an_engine_opens_the_exported_file_beside_the_checkpoint(run):
    with pytest.raises(CheckpointError, match=r"needs .*best\.onnx.*export"):
        file_for(str(run), "onnx")
    with pytest.raises(
        CheckpointError, match=r"needs .*best\.engine.*TensorRT"
    ):
        file_for(str(run), "tensorrt")
    (run / "best.onnx").write_bytes(b"x")
    assert file_for(str(run), "onnx") == str(run / "best.onnx")
    assert file_for(str(run), "openvino") == str(run / "best.onnx")
    (run / "best.xml").write_bytes(b"x")
    assert file_for(str(run), "openvino") == str(run / "best.xml")
    assert file_for(str(run / "best.onnx"), None) == str(run / "best.onnx")
    with pytest.raises(ConfigError, match="torch opens checkpoints"):
        file_for(str(run / "best.onnx"), "torch")


def test_the_command_that_writes_a_missing_file_can_be_copied(run):
    named = run.with_name("my run")
    run.rename(named)
    with pytest.raises(CheckpointError, match="dfine export '.*/my run'$"):
        file_for(str(named), "onnx")


@pytest.mark.parametrize("model", ["nowhere/best.pth", "none.onnx"])
def test_a_missing_file_is_named(model):
    with pytest.raises(CheckpointError, match=f"{model} does not exist"):
        file_for(model, None)


def test_an_address_is_not_opened():
    with pytest.raises(CheckpointError, match="http://a/best.pth"):
        file_for("http://a/best.pth", None)


def test_two_checkpoints_are_opened_with_different_names(run):
    other = run.with_name("other")
    shutil.copytree(run, other)
    files = [str(run / "best.pth"), str(other / "best.pth")]
    models = open_models(files, device="cpu", threshold=0.25)
    assert [model.name for model in models] == [
        "train/best.pth",
        "other/best.pth",
    ]
    assert [model.number for model in models] == [1, 2]
    about = models[1].describe()
    assert about["threshold"] == 0.25
    assert [entry["name"] for entry in about["classes"]][:2] == [
        "disc",
        "square",
    ]
    found = models[0].detector.predict(np.zeros((64, 64, 3), np.uint8))
    assert found.size == (64, 64)


def test_a_threshold_is_a_fraction():
    with pytest.raises(ConfigError, match="threshold is 1.5, expected 0 to 1"):
        open_models([], threshold=1.5)
