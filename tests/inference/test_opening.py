"""`Detector(...)` opens checkpoints, run folders, published models and exported models."""

import shutil
from pathlib import Path

import pytest

from src import Detector
from src.core import CheckpointError, ConfigError
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run folder whose only checkpoint is `last.pth`."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(TRAINED, folder / "last.pth")
    return folder


def opened_file(path: object) -> Path:
    return Path(Detector(path, device="cpu").meta["file"])


def test_a_checkpoint_is_opened_by_its_path(detector, val_images):
    own = Detector(str(TRAINED), device="cpu")
    assert own.names == {0: "disc", 1: "square", 2: "triangle", 3: "ring"}
    assert (
        own.predict(val_images[0]).boxes.tolist()
        == detector.predict(val_images[0]).boxes.tolist()
    )


def test_a_run_folder_stands_for_its_last_checkpoint_without_a_best(run_folder):
    assert opened_file(run_folder) == run_folder / "last.pth"


def test_a_run_folder_stands_for_its_best_checkpoint(run_folder):
    shutil.copy(TRAINED, run_folder / "best.pth")
    assert opened_file(f"{run_folder}/") == run_folder / "best.pth"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match="contains neither best.pth nor last.pth"
    ):
        Detector(tmp_path)


def test_a_name_of_the_table_is_looked_for_among_the_weights(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match="which is where dfine_l_coco is looked for"
    ):
        Detector("dfine_l_coco")


def test_a_url_is_refused():
    with pytest.raises(CheckpointError, match="is a URL; download"):
        Detector("https://example.org/best.pth")


def test_an_exported_model_is_opened_by_the_end_of_its_name(
    exported, detector, val_images
):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    own = Detector(exported, device="cpu")
    assert own.names == detector.names
    assert len(own.predict(val_images[0])) == len(
        detector.predict(val_images[0])
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [("input_size", (64, 64)), ("use_amp", True), ("family", "deim")],
)
def test_options_of_checkpoints_are_refused_for_exported_models(
    tmp_path, option, value
):
    with pytest.raises(ConfigError, match=f"{option} is only used with check"):
        Detector(tmp_path / "best.onnx", **{option: value})


def test_parts_have_a_constructor_of_their_own(detector):
    with pytest.raises(ConfigError, match=r"TorchEngine, expected the path"):
        Detector(detector.engine)
    parts = (detector.engine, detector.preprocessing, detector.classes)
    assert Detector.from_parts(*parts).names == detector.names
