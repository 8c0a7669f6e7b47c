"""`dfine predict` takes a run folder and any number of images and folders."""

import json
import shutil

import pytest

from src.cli import convert, convert_weights, predict
from tests.fixtures.run_here import call_here
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "runs/my run"
    folder.mkdir(parents=True)
    shutil.copy(TRAINED, folder / "best.pth")
    return folder


def test_images_of_several_folders_get_one_file_of_results(
    run_folder, tmp_path, tiny_data
):
    image = tiny_data.folder / "images/val_00000.jpg"
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
        shutil.copy(image, place)
    found = tmp_path / "found"
    ended = call_here(
        predict.main,
        "dfine predict",
        *(run_folder, places[0] / image.name, places[1]),
        *("--output", found, "--threshold", "0.05", "-d", "cpu"),
    )
    assert ended.code == 0, ended.err
    entries = json.loads((found / "predictions.json").read_text())
    names = {entry["file_name"] for entry in entries}
    assert names == {f"a/{image.name}", f"b/{image.name}"}
    assert (found / "a" / image.name).is_file()


def test_the_model_may_be_a_flag_and_the_input_too(
    run_folder, tmp_path, tiny_data
):
    image = tiny_data.folder / "images/val_00000.jpg"
    common = ("--output", tmp_path / "found", "--no-draw", "-d", "cpu")
    for words in (("-r", run_folder, "-i", image), ("-r", run_folder, image)):
        ended = call_here(predict.main, "torch_inf.py", *words, *common)
        assert ended.code == 0, ended.err


def test_a_camera_among_images_is_refused(run_folder, tiny_data):
    image = tiny_data.folder / "images/val_00000.jpg"
    ended = call_here(predict.main, "dfine", run_folder, image, "camera:0")
    assert ended.code == 2
    assert "predict it in a command of its own" in ended.err


def test_a_missing_source_is_named(run_folder):
    ended = call_here(predict.main, "dfine predict", run_folder)
    assert ended.code == 2
    assert "the following arguments are required: SOURCE" in ended.err


def test_convert_hands_checkpoints_on(monkeypatch):
    seen = []
    monkeypatch.setattr(convert_weights, "main", lambda *a: seen.append(a))
    convert.main(["best.pth", "--to", "transformers"], prog="dfine convert")
    assert seen == [(["best.pth", "--to", "transformers"], "dfine convert")]
