"""The measurement of the first prediction in a new process."""

from src.cli.everything import start
from src.cli.everything.figures import Settings
from src.inference import Detector
from tests.fixtures.trained_tiny import TRAINED


def test_the_least_time_of_some_processes_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "write_checkpoint", lambda path, config: None)
    seconds = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(
        start, "first_prediction_seconds", lambda path: next(seconds)
    )
    (figure,) = start.measure(Settings(tmp_path, repeats=2))
    assert (figure.row, figure.value, figure.unit) == (8, 2.0, "CPU seconds")


def test_a_process_predicts_an_image():
    assert start.first_prediction_seconds(TRAINED) > 0.1


def test_the_checkpoint_contains_its_configuration(tmp_path):
    path = tmp_path / "start.pth"
    start.write_checkpoint(path, "dfine/dfine_hgnetv2_n_coco.yml")
    detector = Detector.from_checkpoint(path, device="cpu")
    assert len(detector.classes) == start.CLASSES
