"""Files of this project are recognized by their content, and files of others are never replaced (K7)."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from src.core.errors import ConfigError
from src.runtime.own_files import (
    DATA_IMAGE,
    LARGEST_READ,
    MARK,
    WRITER,
    YAML_HEADER,
    is_our_coco_file,
    is_our_data_image,
    is_ours,
    mark_video,
    marked_coco,
    marked_json,
    picture_names,
    refuse_foreign,
    refuse_replacing_inputs,
    write_picture,
    write_report,
)
from src.runtime.weight_files import write_tensor_file


def write_ours(folder):
    """Write one of each kind of file, as the project writes it; return their paths."""
    write_tensor_file(folder / "best.pth", {"model": {"w": torch.ones(2)}})
    (folder / "eval.json").write_text(json.dumps(marked_json({"AP": 0.5})))
    (folder / "run_status.json").write_text(
        '{"status": "done", "exit_code": 0, "message": "done"}'
    )
    (folder / "predictions.json").write_text(
        '[\n{"image_id": 1, "category_id": 3}\n]\n'
    )
    (folder / "none.json").write_text("[\n\n]\n")
    (folder / "config.yml").write_text(f"{YAML_HEADER}epochs: 3\n")
    (folder / "log.txt").write_text(
        '{"epoch": 0, "stage": 1, "best_metric": "AP"}\n{"epoch": 1}\n'
    )
    np.savez(folder / "images.train.npz", names="x", rows=np.zeros((1, 7)))
    write_picture(folder / "picture.jpg", Image.new("RGB", (8, 8)))
    (folder / "report.html").write_text(
        '<html><meta name="generator" content="dfine_dinov3"></html>'
    )
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x08moov")
    mark_video(folder / "clip.mp4")
    return sorted(folder.iterdir())


def write_foreign(folder):
    """Write files of other people under such names; return their paths."""
    torch.save({"model": {}}, folder / "best.pth")
    (folder / "eval.json").write_text(
        '{"images": [], "annotations": [], "categories": []}'
    )
    (folder / "predictions.json").write_text(
        '[{"image_id": 1, "category_id": 3, "bbox": [], "score": 1}]'
    )
    (folder / "config.yml").write_text("epochs: 3\n")
    (folder / "log.txt").write_text("my notes\n")
    np.savez(folder / "images.train.npz", other=np.zeros(3))
    Image.new("RGB", (8, 8)).save(folder / "picture.jpg")
    (folder / "report.html").write_text("<html></html>")
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x08moov")
    (folder / "model.onnx").write_bytes(b"\x08\x07")
    (folder / "notes.md").write_text("x")
    (folder / "half.json").write_text('{"written_by": ')
    return sorted(folder.iterdir())


def test_files_of_this_project_are_recognized(tmp_path):
    assert [
        path.name for path in write_ours(tmp_path) if not is_ours(path)
    ] == []


def test_files_of_other_programs_are_not_treated_as_own_files(tmp_path):
    assert [
        path.name for path in write_foreign(tmp_path) if is_ours(path)
    ] == []


def test_a_damaged_checkpoint_is_still_a_file_of_this_project(tmp_path):
    write_tensor_file(tmp_path / "last.pth", {"model": {"w": torch.ones(2000)}})
    raw = (tmp_path / "last.pth").read_bytes()
    (tmp_path / "last.pth").write_bytes(raw[: len(raw) // 2])
    assert is_ours(tmp_path / "last.pth")


@pytest.mark.parametrize("make", ["link", "folder"])
def test_links_and_folders_are_not_own_files(tmp_path, make):
    write_ours(tmp_path)
    path = tmp_path / "other.pth"
    path.symlink_to(tmp_path / "best.pth") if make == "link" else path.mkdir()
    assert not is_ours(path)


def test_foreign_files_are_named_but_own_files_and_free_names_are_not(tmp_path):
    write_ours(tmp_path)
    (tmp_path / "theirs.yml").write_text("a: 1")
    refuse_foreign(
        [tmp_path / "config.yml", tmp_path / "free.yml"], "choose another place"
    )
    with pytest.raises(ConfigError) as caught:
        refuse_foreign(
            [tmp_path / "config.yml", tmp_path / "theirs.yml"],
            "choose another place",
        )
    assert str(caught.value) == (
        f"{tmp_path / 'theirs.yml'} would be replaced, "
        "but this project did not write it; choose another place"
    )


@pytest.mark.parametrize("name", ["same", "symbolic link", "hard link"])
def test_a_result_does_not_replace_an_input_whatever_its_name(tmp_path, name):
    given = result = tmp_path / "best.pth"
    given.write_bytes(b"x")
    if name != "same":
        given = tmp_path / "start.pth"
        given.symlink_to(result) if name == "symbolic link" else os.link(
            result, given
        )
    with pytest.raises(
        ConfigError, match=f"-t names {given}, which this command would replace"
    ):
        refuse_replacing_inputs([result], {"-c": None, "-t": given})
    refuse_replacing_inputs([tmp_path / "free.pth"], {"-t": given})


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (["a.jpg", "b.png"], ["a.jpg", "b.jpg"]),
        (["a.jpg", "a.png"], ["a.jpg.jpg", "a.png.jpg"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a.jpg", "y/a.jpg"]),
        (
            ["a.jpg.png", "a.jpg", "a.png"],
            ["a.jpg.jpg", "a.jpg.jpg.jpg", "a.png.jpg"],
        ),
        (["A.png", "a.png"], ["A.png.jpg", "a.png.jpg.jpg"]),
    ],
)
def test_no_two_pictures_have_one_name(names, pictures):
    assert picture_names(names) == pictures


def test_labels_that_this_project_wrote_are_no_result_that_another_may_replace(
    tmp_path,
):
    path = tmp_path / "eval.json"
    content = marked_coco({"images": [], "info": {"year": 2026}})
    assert content["info"] == {MARK: WRITER, "year": 2026}
    path.write_text(json.dumps(content))
    assert is_our_coco_file(path) and not is_ours(path)
    path.write_text(json.dumps({"images": [], "info": {"year": 2026}}))
    assert not is_our_coco_file(path)
    write_picture(tmp_path / "a.jpg", Image.new("RGB", (8, 8)), mark=DATA_IMAGE)
    assert is_our_data_image(tmp_path / "a.jpg") and not is_ours(
        tmp_path / "a.jpg"
    )
    write_picture(tmp_path / "a.jpg", Image.new("RGB", (8, 8)))
    assert is_ours(tmp_path / "a.jpg") and not is_our_data_image(
        tmp_path / "a.jpg"
    )


def test_a_large_foreign_file_is_not_read_completely(tmp_path):
    text = "x" * LARGEST_READ
    (tmp_path / "a.json").write_text(
        json.dumps({"x": text, "written_by": "dfine_dinov3"})
    )
    assert not is_ours(tmp_path / "a.json")
    write_report(tmp_path / "b.json", {"x": text})
    assert is_ours(tmp_path / "b.json")


def test_the_mark_of_a_video_is_a_box_that_says_its_length(tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"\0\0\0\x08moov")
    mark_video(clip)
    box = clip.read_bytes()[8:]
    assert int.from_bytes(box[:4], "big") == len(box) and box[4:8] == b"free"
