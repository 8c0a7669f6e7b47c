"""Predictions of folders and videos are written as pictures and COCO results."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.core import ConfigError, DataError
from src.inference.sources import Video, VideoWriter, open_source
from src.inference.writing import predict_source
from src.solver import DetSolver
from tests.fixtures.coco_files import write_coco
from tests.fixtures.tiny import tiny_config
from tests.fixtures.trained_tiny import TRAINED
from tests.inference.test_sources import needs_opencv


def entries(folder) -> list[dict]:
    return json.loads((folder / "predictions.json").read_text())


def test_the_results_scored_by_pycocotools_give_the_ap_of_an_evaluation(detector, tiny_data, tmp_path):
    expected = DetSolver(
        tiny_config(tiny_data, tmp_path / "run", resume=str(TRAINED), test_only=True), torch.device("cpu")
    ).val()
    results = predict_source(
        detector,
        str(tiny_data.folder / "images"),
        tmp_path / "found",
        annotations=tiny_data.folder / "val.json",
        draw=False,
        threshold=0.0,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tiny_data.folder / "val.json")
        run = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    assert expected["AP"] > 0.1
    assert run.stats[0] == pytest.approx(expected["AP"], abs=1e-3) and run.stats[1] == pytest.approx(
        expected["AP50"], abs=1e-3
    )


def test_a_folder_gives_a_picture_for_each_image_and_numbered_entries(detector, val_images, tmp_path):
    source = tmp_path / "images"
    (source / "deep").mkdir(parents=True)
    shutil.copy(val_images[0], source / "a.jpg")
    shutil.copy(val_images[1], source / "deep/b.jpg")
    Image.open(val_images[0]).save(source / "a.png")
    predict_source(detector, str(source), tmp_path / "found", threshold=0.1)
    assert sorted(str(p.relative_to(tmp_path / "found")) for p in (tmp_path / "found").rglob("*.jpg")) == [
        "a.jpg.jpg",
        "a.png.jpg",
        "deep/b.jpg",
    ]
    assert {(e["image_id"], e["file_name"]) for e in entries(tmp_path / "found")} == {
        (1, "a.jpg"),
        (2, "a.png"),
        (3, "deep/b.jpg"),
    }


def test_pictures_of_an_earlier_run_within_the_folder_are_left_out(detector, val_images, tmp_path):
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    for _ in range(2):
        predict_source(detector, str(tmp_path), tmp_path / "found", threshold=0.0)
        assert {e["file_name"] for e in entries(tmp_path / "found")} == {"a.jpg"}


def test_no_images_are_never_asked_for(detector, val_images, tmp_path):
    with pytest.raises(ConfigError, match="--frames is 0, expected at least 1"):
        predict_source(detector, str(val_images[0]), tmp_path, frames=0)


def test_one_image_may_be_asked_for(detector, val_images, tmp_path):
    predict_source(detector, str(val_images[0]), tmp_path, threshold=0.1)
    assert (tmp_path / val_images[0].name).exists() and entries(tmp_path)[0]["file_name"] == val_images[
        0
    ].name


def test_no_more_images_than_asked_for_are_looked_at(detector, val_images, tmp_path):
    predict_source(detector, str(val_images[0].parent), tmp_path, frames=2, threshold=0.0, draw=False)
    assert {e["image_id"] for e in entries(tmp_path)} == {1, 2}
    assert not list(tmp_path.glob("*.jpg"))


def test_an_unreadable_image_is_told_after_all_others_were_written(detector, val_images, tmp_path):
    source = tmp_path / "images"
    source.mkdir()
    (source / "a.jpg").write_bytes(b"not an image")
    shutil.copy(val_images[0], source / "b.jpg")
    with pytest.raises(DataError, match="1 of 2 images could not be read.*a.jpg"):
        predict_source(detector, str(source), tmp_path / "found", threshold=0.0)
    assert {e["file_name"] for e in entries(tmp_path / "found")} == {"b.jpg"}


def test_pictures_never_replace_the_images_that_they_show(detector, val_images, tmp_path):
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(ConfigError, match="among the images"):
        predict_source(detector, str(tmp_path), tmp_path)
    assert (tmp_path / "a.jpg").read_bytes() == before


@needs_opencv
def test_a_video_becomes_a_video_and_entries_by_frame(detector, val_images, tmp_path):
    writer = VideoWriter(tmp_path / "clip.mp4", 5)
    for image in val_images[:4]:
        writer.write(np.asarray(Image.open(image)))
    writer.close()
    predict_source(detector, str(tmp_path / "clip.mp4"), tmp_path / "found", threshold=0.0, frames=3)
    assert {(e["image_id"], e["file_name"]) for e in entries(tmp_path / "found")} == {
        (n, f"frame {n}") for n in (1, 2, 3)
    }
    drawn = Video(open_source(str(tmp_path / "found/clip.mp4")))
    assert drawn.rate == 5 and drawn.count == 3


@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
def test_an_image_is_turned_only_if_its_labels_say_so(detector, tmp_path, size):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (96, 64), (200, 30, 30)).save(tmp_path / "a.jpg", exif=turned)
    labels = write_coco(
        tmp_path,
        {
            "images": [{"id": 3, "file_name": "a.jpg", "width": size[0], "height": size[1]}],
            "annotations": [],
            "categories": [{"id": 1, "name": "disc"}],
        },
        draw=False,
    )
    predict_source(detector, str(tmp_path), tmp_path / "found", annotations=labels, threshold=0.0)
    assert Image.open(tmp_path / "found/a.jpg").size == (5 * size[0], 5 * size[1])


@needs_opencv
def test_a_drawn_video_never_replaces_its_source(detector, val_images, tmp_path):
    writer = VideoWriter(tmp_path / "clip.mp4", 5)
    writer.write(np.asarray(Image.open(val_images[0])))
    writer.close()
    before = (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ConfigError, match="would replace"):
        predict_source(detector, str(tmp_path / "clip.mp4"), tmp_path)
    assert (tmp_path / "clip.mp4").read_bytes() == before


def test_what_was_seen_until_ctrl_c_is_written(detector, val_images, tmp_path, monkeypatch):
    stream = detector.stream

    def interrupted(*arguments, **keywords):
        for number, seen in enumerate(stream(*arguments, **keywords)):
            if number == 2:
                raise KeyboardInterrupt
            yield seen

    monkeypatch.setattr(detector, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_source(detector, str(val_images[0].parent), tmp_path, threshold=0.0)
    assert {e["image_id"] for e in entries(tmp_path)} == {1, 2}


def test_a_very_long_image_is_drawn_as_it_is(detector, tmp_path):
    Image.new("RGB", (20000, 10)).save(tmp_path / "long.png")
    predict_source(detector, str(tmp_path / "long.png"), tmp_path / "found", threshold=0.0)
    assert Image.open(tmp_path / "found/long.jpg").size == (20000, 10)
