"""Objects365 is remapped and resized beside its files, which stay as they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset.coco_format import load_coco
from src.data.preparation.objects365 import resize
from src.runtime.own_files import DATA_IMAGE, write_picture
from tests.fixtures.tools_here import tool_here

CATEGORIES = [{"id": 1, "name": "Person"}, {"id": 2, "name": "Chair"}]


def write_part(
    base: Path,
    part: str,
    first_id: int,
    first_box: int,
    sizes=((100, 80), (60, 90), (1280, 640), (50, 50)),
) -> None:
    folder = base / part / "images/v1/patch0"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number, (width, height) in enumerate(sizes):
        name = f"objects365_v1_{first_id + number:08}.jpg"
        Image.fromarray(
            np.random.default_rng(number).integers(
                0, 256, (height, width, 3), np.uint8
            )
        ).save(folder / name)
        images.append(
            {
                "id": first_id + number,
                "file_name": f"images/v1/patch0/{name}",
                "width": width,
                "height": height,
                "license": 5,
            }
        )
        annotations.append(
            {
                "id": first_box + number,
                "image_id": first_id + number,
                "category_id": 1 + number % 2,
                "iscrowd": 0,
                "isfake": 0,
                "bbox": [10.0, 20.0, 30.0, 24.0],
                "area": 720.0,
            }
        )
    (base / part / f"zhiyuan_objv2_{part}.json").write_text(
        json.dumps(
            {
                "images": images,
                "annotations": annotations,
                "categories": CATEGORIES,
            }
        )
    )


@pytest.fixture
def base(tmp_path) -> Path:
    write_part(tmp_path, "train", 1, 1)
    write_part(tmp_path, "val", 101, 501)
    return tmp_path


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def contents(base: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in base.rglob("*")
        if path.is_file()
    }


# ---- remap ----


def test_first_validation_images_remain_and_the_others_are_learned_from(base):
    before = contents(base)
    ended = tool_here(
        "dataset.remap_obj365", "--base_dir", base, "--new_val_size", 1
    )
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1].endswith(
        f"cp -al {base}/val/images {base}/train/images_from_val"
    )
    train, val = (
        read(base / "train/new_zhiyuan_objv2_train.json"),
        read(base / "val/new_zhiyuan_objv2_val.json"),
    )
    assert [image["id"] for image in train["images"]] == [
        1,
        2,
        3,
        4,
        102,
        103,
        104,
    ] and [image["id"] for image in val["images"]] == [101]
    assert (
        train["images"][0]
        == read(base / "train/zhiyuan_objv2_train.json")["images"][0]
    )
    assert (
        train["images"][4]["file_name"]
        == "images_from_val/v1/patch0/objects365_v1_00000102.jpg"
    )
    assert [a["image_id"] for a in train["annotations"]] == [
        1,
        2,
        3,
        4,
        102,
        103,
        104,
    ] and [a["id"] for a in val["annotations"]] == [501]
    assert train["categories"] == val["categories"] == CATEGORIES
    assert (
        load_coco(base / "train/new_zhiyuan_objv2_train.json").findings.notes
        == []
    )
    assert {
        name: raw for name, raw in contents(base).items() if name in before
    } == before


def test_duplicate_ids_are_replaced(tmp_path):
    write_part(tmp_path, "train", 1, 1)
    write_part(tmp_path, "val", 3, 2)
    assert (
        tool_here(
            "dataset.remap_obj365",
            "--base_dir",
            tmp_path,
            "--new_val_size",
            1,
            "--output_suffix",
            "mine",
        ).code
        == 0
    )
    train = load_coco(tmp_path / "train/mine_zhiyuan_objv2_train.json")
    assert (
        len(train) == 7
        and train.findings.notes == []
        and train.starts.diff().tolist() == [1] * 7
    )


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--new_val_size", "5"], 2, "--new_val_size is 5, expected 1 to 4"),
        (["--new_val_size", "0"], 2, "--new_val_size is 0"),
        (
            ["--new_val_size", "1", "--output_suffix", "../x"],
            2,
            "--output_suffix is '../x'",
        ),
    ],
)
def test_remap_names_what_cannot_be(base, arguments, code, text):
    ended = tool_here("dataset.remap_obj365", "--base_dir", base, *arguments)
    assert ended.code == code and text in ended.err


def test_missing_files_and_other_categories_are_named(base, tmp_path):
    ended = tool_here("dataset.remap_obj365", "--base_dir", tmp_path / "none")
    assert (
        ended.code == 3
        and "train/zhiyuan_objv2_train.json is missing; --base_dir is the folder of Objects365"
        in ended.err
    )
    content = read(base / "val/zhiyuan_objv2_val.json")
    content["categories"][1]["name"] = "Table"
    (base / "val/zhiyuan_objv2_val.json").write_text(json.dumps(content))
    ended = tool_here(
        "dataset.remap_obj365", "--base_dir", base, "--new_val_size", 1
    )
    assert ended.code == 3 and "id 2: Chair / Table" in ended.err


# ---- resize ----


def test_larger_images_get_smaller_copies_with_scaled_boxes_and_the_others_stay(
    base,
):
    before = contents(base)
    ended = tool_here(
        "dataset.resize_obj365",
        "--base_dir",
        base,
        "--max_size",
        64,
        "--num_workers",
        1,
    )
    assert (ended.code, ended.err) == (0, "")
    labels = read(base / "train/zhiyuan_objv2_train_resized.json")
    assert [
        (image["width"], image["height"]) for image in labels["images"]
    ] == [
        (64, 51),
        (43, 64),
        (64, 32),
        (50, 50),
    ]
    assert [
        image["file_name"].rpartition("0000")[2] for image in labels["images"]
    ] == [
        "1_resized.jpg",
        "2_resized.jpg",
        "3_resized.jpg",
        "4.jpg",
    ]
    for image in labels["images"]:
        with Image.open(base / "train" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
    assert [
        *labels["annotations"][2]["bbox"],
        labels["annotations"][2]["area"],
    ] == pytest.approx([0.5, 1.0, 1.5, 1.2, 1.8])
    assert (
        labels["annotations"][3]
        == read(base / "train/zhiyuan_objv2_train.json")["annotations"][3]
    )
    assert (base / "val/zhiyuan_objv2_val_resized.json").exists()
    assert {
        name: raw for name, raw in contents(base).items() if name in before
    } == before


def test_files_of_remap_are_taken_if_they_are_there(base):
    tool_here("dataset.remap_obj365", "--base_dir", base, "--new_val_size", 4)
    assert (
        tool_here(
            "dataset.resize_obj365", "--base_dir", base, "--num_workers", 1
        ).code
        == 0
    )
    assert [
        image["width"]
        for image in read(base / "train/new_zhiyuan_objv2_train_resized.json")[
            "images"
        ]
    ] == [100, 60, 640, 50]


def test_stopped_run_continues_with_the_missing_files(base):
    list(resize(base, 64, 1))
    done = sorted((base / "train").rglob("*_resized.jpg"))
    done[0].unlink()
    write_picture(
        done[1], Image.new("RGB", (9, 9)), mark=DATA_IMAGE
    )  # of another --max_size
    before = done[2].stat().st_mtime_ns
    list(resize(base, 64, 1))
    assert done[2].stat().st_mtime_ns == before
    assert [Image.open(path).size for path in done] == [
        (64, 51),
        (43, 64),
        (64, 32),
    ]


def test_files_of_others_are_not_replaced(base):
    list(resize(base, 64, 1))
    picture = sorted((base / "train").rglob("*_resized.jpg"))[0]
    Image.new("RGB", (9, 9)).save(picture)
    labels = base / "val/zhiyuan_objv2_val_resized.json"
    labels.write_text('{"images": []}')
    remapped = base / "train/new_zhiyuan_objv2_train.json"
    for path, command in (
        (picture, ["resize_obj365", "--max_size", 64, "--num_workers", 1]),
        (labels, ["resize_obj365", "--max_size", 64, "--num_workers", 1]),
        (remapped, ["remap_obj365", "--new_val_size", 1]),
    ):
        if path is remapped:
            remapped.write_text('{"images": []}')
        before = path.read_bytes()
        ended = tool_here(
            f"dataset.{command[0]}", "--base_dir", base, *command[1:]
        )
        assert ended.code in (2, 3) and f"{path} " in ended.err, ended
        assert path.read_bytes() == before
        path.unlink()
    assert (
        tool_here(
            "dataset.remap_obj365", "--base_dir", base, "--new_val_size", 1
        ).code
        == 0
    )
    assert (
        tool_here(
            "dataset.remap_obj365", "--base_dir", base, "--new_val_size", 2
        ).code
        == 0
    )  # its own are


def test_images_that_cannot_be_read_are_named_and_no_labels_written(base):
    folder = base / "train/images/v1/patch0"
    (folder / "objects365_v1_00000001.jpg").write_bytes(b"x")
    (folder / "objects365_v1_00000002.jpg").unlink()
    ended = tool_here(
        "dataset.resize_obj365",
        "--base_dir",
        base,
        "--max_size",
        64,
        "--num_workers",
        1,
    )
    assert (
        ended.code == 3
        and "2 of 4 images of " in ended.err
        and "00000002.jpg is missing" in ended.err
        and "00000001.jpg is not an image file" in ended.err
    )
    assert (
        folder / "objects365_v1_00000003_resized.jpg"
    ).exists() and not list(base.rglob("*.json"))[2:]


def test_name_that_leaves_the_folder_is_refused(base):
    content = read(base / "train/zhiyuan_objv2_train.json")
    content["images"][2]["file_name"] = "../../x.jpg"
    (base / "train/zhiyuan_objv2_train.json").write_text(json.dumps(content))
    ended = tool_here(
        "dataset.resize_obj365", "--base_dir", base, "--num_workers", 1
    )
    assert ended.code == 3 and "which leaves the image folder" in ended.err
