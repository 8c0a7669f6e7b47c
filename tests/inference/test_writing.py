"""Predictions of folders and videos are written as pictures and COCO results."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.core import ConfigError, DataError, NumericsError, ResourceError
from src.inference.sources import Video, VideoWriter, open_source
from src.inference.writing import predict_source
from src.solver import DetSolver
from tests.fixtures.coco_files import write_coco
from tests.fixtures.progress import wait_until
from tests.fixtures.tiny import ROOT, tiny_config
from tests.fixtures.trained_tiny import TRAINED
from tests.fixtures.videos import write_avi
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


def test_a_file_name_of_another_encoding_loses_no_result(detector, val_images, tmp_path):
    name = b"bl\xfctter.jpg"  # Latin-1
    shutil.copy(val_images[0], os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    shutil.copy(val_images[1], tmp_path / "b.jpg")
    predict_source(detector, str(tmp_path), tmp_path / "found", threshold=0.0)
    names = {os.fsencode(entry["file_name"]) for entry in entries(tmp_path / "found")}
    assert names == {name, b"b.jpg"}
    assert len(list((tmp_path / "found").glob("*.jpg"))) == 2


def test_results_are_written_while_the_job_goes_on(detector, val_images, tmp_path, monkeypatch):
    stream, sizes = detector.stream, []

    def watched(*arguments, **keywords):
        for seen in stream(*arguments, **keywords):
            yield seen
            (file,) = tmp_path.glob(".predictions.json.*")
            sizes.append(file.stat().st_size)

    monkeypatch.setattr(detector, "stream", watched)
    monkeypatch.setattr(
        "src.inference.writing.json_bytes", lambda entry: json.dumps(entry).encode().ljust(9000)
    )
    predict_source(detector, str(val_images[0].parent), tmp_path, threshold=0.0, draw=False, frames=3)
    assert sizes[0] > 9000 * 10 and sizes == sorted(set(sizes))


def test_an_error_in_the_middle_keeps_what_was_found_before(
    detector, val_images, tmp_path, monkeypatch, caplog
):
    stream = detector.stream

    def failing(*arguments, **keywords):
        for number, seen in enumerate(stream(*arguments, **keywords)):
            if number == 1:
                raise RuntimeError("the device is gone")
            yield seen

    monkeypatch.setattr(detector, "stream", failing)
    with caplog.at_level("INFO", "dfine"), pytest.raises(RuntimeError, match="the device is gone"):
        predict_source(detector, str(val_images[0].parent), tmp_path, threshold=0.0)
    assert {entry["image_id"] for entry in entries(tmp_path)} == {1}
    assert "the job ended early; what was found until then is written" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["dec_score_head", "dec_bbox_head"])
def test_weights_that_overflow_are_an_error_and_not_no_objects(
    detector, val_images, tmp_path, monkeypatch, part, value
):
    def overflow(module, arguments, result):
        return torch.full_like(result, value)

    heads = [module for name, module in detector.engine.model.named_modules() if name.endswith(part)]
    hooks = [layer.register_forward_hook(overflow) for head in heads for layer in head]
    try:
        assert hooks
        with pytest.raises(NumericsError, match=f"that are not finite for image 1 .*{val_images[0].name}"):
            predict_source(detector, str(val_images[0]), tmp_path, draw=False)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    "annotations, source",
    [
        ({"images": [{"id": 2**60 + 1, "file_name": "a.jpg", "width": 64, "height": 64}]}, "."),
        (
            {
                "images": [{"id": 2**60 + 1, "file_name": "a.jpg", "width": 64, "height": 64}],
                "annotations": [],
            },
            ".",
        ),
    ],
    ids=["without annotations", "without boxes"],
)
def test_a_list_of_images_without_boxes_is_enough(detector, val_images, tmp_path, annotations, source):
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    (tmp_path / "labels.json").write_text(json.dumps(annotations))
    predict_source(
        detector,
        str(tmp_path / source),
        tmp_path / "found",
        annotations=tmp_path / "labels.json",
        threshold=0.0,
        draw=False,
    )
    assert {entry["image_id"] for entry in entries(tmp_path / "found")} == {2**60 + 1}


@pytest.mark.parametrize("name", ["predictions.json", "a.jpg"])
def test_files_of_others_in_the_output_folder_are_not_replaced(detector, val_images, tmp_path, name):
    (tmp_path / "images").mkdir()
    shutil.copy(val_images[0], tmp_path / "images/a.jpg")
    (tmp_path / "found").mkdir()
    foreign = tmp_path / "found" / name
    foreign.write_bytes(val_images[1].read_bytes() if name == "a.jpg" else b'{"images": []}')
    before = foreign.read_bytes()
    with pytest.raises(ConfigError, match=f"{name} would be replaced, but this project did not write it"):
        predict_source(detector, str(tmp_path / "images"), tmp_path / "found")
    assert foreign.read_bytes() == before
    foreign.unlink()
    for _ in range(2):  # results of this project may be replaced
        predict_source(detector, str(tmp_path / "images"), tmp_path / "found")


@needs_opencv
def test_a_video_that_is_cut_is_a_fault_after_its_frames_were_written(detector, tmp_path):
    content = write_avi(tmp_path / "clip.avi", frames=40).read_bytes()
    (tmp_path / "clip.avi").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataError, match="of 40: the file is cut or damaged; the results of .* frames are in"
    ) as error:
        predict_source(detector, str(tmp_path / "clip.avi"), tmp_path / "found", threshold=0.0)
    frames = {entry["image_id"] for entry in entries(tmp_path / "found")}
    assert frames == set(range(1, len(frames) + 1)) and f"the results of {len(frames)} frames" in str(
        error.value
    )
    assert Video(open_source(str(tmp_path / "found/clip.mp4"))).count == len(frames)


@pytest.mark.parametrize("settings", [{"threshold": 5}, {"nms": -1}, {"batch_size": 0}])
def test_a_wrong_setting_leaves_earlier_results_as_they_are(detector, val_images, tmp_path, settings):
    predict_source(detector, str(val_images[0]), tmp_path, threshold=0.0)
    before = (tmp_path / "predictions.json").read_bytes()
    with pytest.raises(ConfigError, match="expected"):
        predict_source(detector, str(val_images[0]), tmp_path, **settings)
    assert (tmp_path / "predictions.json").read_bytes() == before and len(before) > 100


def test_images_of_a_users_own_below_the_output_are_not_left_out(detector, val_images, tmp_path):
    (tmp_path / "2024").mkdir()
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    shutil.copy(val_images[1], tmp_path / "2024/b.jpg")
    with pytest.raises(ConfigError, match="2024; choose another --output"):
        predict_source(detector, str(tmp_path), tmp_path / "2024")
    predict_source(detector, str(tmp_path), tmp_path / "2024", draw=False, threshold=0.0)
    assert {e["file_name"] for e in entries(tmp_path / "2024")} == {"a.jpg", "2024/b.jpg"}


def test_pictures_are_not_written_through_a_link_out_of_the_output(detector, val_images, tmp_path):
    (tmp_path / "images/sub").mkdir(parents=True)
    shutil.copy(val_images[0], tmp_path / "images/sub/a.jpg")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "found").mkdir()
    (tmp_path / "found/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of .* by a symbolic link"):
        predict_source(detector, str(tmp_path / "images"), tmp_path / "found")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_image_behind_a_broken_link_is_missing_and_not_left_out(detector, val_images, tmp_path):
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="1 of 2 images could not be read.*b.jpg"):
        predict_source(detector, str(tmp_path), tmp_path / "found")


def test_an_image_with_a_long_name_is_drawn(detector, val_images, tmp_path):
    name = "x" * 250 + ".jpg"
    shutil.copy(val_images[0], tmp_path / name)
    predict_source(detector, str(tmp_path), tmp_path / "found")
    assert (tmp_path / "found" / name).exists()


@needs_opencv
def test_a_video_that_does_not_reach_the_disk_whole_is_an_error(tmp_path, monkeypatch):
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    for _ in range(5):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer._frames += 2  # as if OpenCV had lost two
    with pytest.raises(ResourceError, match="5 of 7 frames reached the disk"):
        writer.close()
    assert not list(tmp_path.iterdir())


def test_sigterm_keeps_what_was_found(val_images, tmp_path):
    source = tmp_path / "images"
    source.mkdir()
    for number in range(4000):
        (source / f"{number:04}.jpg").hardlink_to(val_images[0])
    command = [
        sys.executable,
        "tools/inference/torch_inf.py",
        "-r",
        TRAINED,
        "-i",
        source,
        "--output",
        tmp_path / "found",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--threshold=0", "--no-draw", "-d=cpu"], cwd=ROOT, stderr=subprocess.PIPE
    )
    wait_until(
        lambda: any(p.stat().st_size > 9000 for p in tmp_path.glob("found/.predictions*")),
        process.pid,
        lambda: "",
    )
    process.terminate()
    assert process.wait() == 143 and b"error[143]: stopped by SIGTERM" in process.stderr.read()
    assert entries(tmp_path / "found") and not list(tmp_path.glob("found/.*"))
