"""Every fault of a data set is found once, with file and id, in one pass."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.preparation.check import check
from src.data.preparation.data_set import DataSet
from src.data.preparation.image_file_check import ImageCheck
from tests.fixtures.coco_files import sound_coco, write_coco
from tests.fixtures.pictures import xmp_with
from tests.fixtures.tools_here import tool_here


def faulty_coco() -> tuple[dict, dict]:
    """Return labels of 12 images with one of each fault, and the expected findings: place and kind."""
    content = sound_coco(12)
    images, annotations, categories = (
        content["images"],
        content["annotations"],
        content["categories"],
    )
    content["categories"] += [
        {"id": 8, "name": ""},
        {"id": 3, "name": "cat again"},
        {"id": "9", "name": "cow"},
    ]
    for index, change in {
        0: {"bbox": [1, 2, 0, 5]},
        1: {"bbox": [20, 20, -4, 5]},
        3: {"id": 3},
        4: {"image_id": "3"},
        5: {"category_id": 99},
        6: {"bbox": [1, 2, float("nan"), 4]},
        7: {"bbox": [1, 2, 3]},
        8: {"image_id": 4711},
        9: {"iscrowd": 7},
        10: {"area": -3},
        11: {"category_id": "7"},
        12: {"bbox": [30, 20, 100, 100]},
        13: {"area": ...},
    }.items():
        annotations[index].update(change)
    del annotations[13]["area"]
    annotations += [{**annotations[23], "id": 100 + i} for i in range(100)]
    annotations[50]["bbox"] = [60, 5, 8, 8]
    annotations.append("no record")
    images[7]["file_name"] = "../8.png"
    images[8]["width"] = 0
    images[9]["width"] = 999
    images += [
        {**images[0], "file_name": "extra.png"},
        {"id": "77", "file_name": "77.png", "width": 40, "height": 30},
    ]
    expected = {
        "annotations[0] (id 1)": "box without area: [1.0, 2.0, 0.0, 5.0]",
        "annotations[1] (id 2)": "reversed box: [20.0, 20.0, -4.0, 5.0]",
        "annotations[3] (id 3)": "this id is used before",
        "annotations[4] (id 5)": "image_id is '3', expected a non-negative integer",
        "annotations[5] (id 6)": "category_id 99 is unknown; known ids: 3, 7",
        "annotations[6] (id 7)": "bbox is [1, 2, nan, 4], expected four numbers",
        "annotations[7] (id 8)": "bbox is [1, 2, 3], expected four numbers",
        "annotations[8] (id 9)": "image_id 4711 is not among the images",
        "annotations[9] (id 10)": "iscrowd is 7, expected 0 or 1",
        "annotations[10] (id 11)": "area is -3, expected a non-negative number",
        "annotations[11] (id 12)": "category_id is '7', expected a non-negative integer",
        "annotations[50] (id 126)": "box outside its image: [60.0, 5.0, 8.0, 8.0]",
        "annotations[124]": "a str, expected an object",
        "categories[2] (id 8)": "the name is empty",
        "categories[3]": "id 3 is used twice",
        "categories[4]": "id is '9', expected a non-negative integer",
        "images[1] (id 2)": "2.png: not in ",
        "images[2] (id 3)": "is damaged: ",
        "images[3] (id 4)": "is empty (0 bytes)",
        "images[4] (id 5)": "leads out of ",
        "images[7] (id 8)": "file_name is '../8.png', which leaves the image folder",
        "images[8] (id 9)": "size is 0 x 30, expected positive integers (pixels)",
        "images[9] (id 10)": "not the size of the file: 10.png: 40 x 30 instead of 999 x 30",
        "images[11] (id 12)": "12.png: 101 objects, only 90 can be found",
        "images[12] (id 1)": "this id is used twice",
        "images[13]": "id is '77', expected a non-negative integer",
    }
    assert len(categories) == 5
    return content, expected


@pytest.fixture
def faulty(tmp_path) -> tuple[Path, dict]:
    """Return a folder with `labels.json` and images with one of each fault, and the expected findings."""
    content, expected = faulty_coco()
    folder = tmp_path / "data"
    folder.mkdir()
    write_coco(folder, sound_coco(12))
    (folder / "labels.json").write_text(json.dumps(content))
    (folder / "2.png").unlink()
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:1500])
    (folder / "4.png").write_bytes(b"")
    (tmp_path / "elsewhere.png").write_bytes((folder / "5.png").read_bytes())
    (folder / "5.png").unlink()
    (folder / "5.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "extra.png").write_bytes((folder / "6.png").read_bytes())
    return folder, expected


def found(folder: Path, **settings) -> list[tuple[str, str]]:
    """Return place and text of all faults."""
    report = check(
        [DataSet(folder / "labels.json", folder)], ImageCheck(), **settings
    )
    return [
        (entry.place, entry.what)
        for group in report.groups
        if group.is_fault
        for entry in group.entries()
    ]


def remarks(*data_sets: DataSet) -> list[str]:
    report = check(data_sets, ImageCheck())
    assert report.num_faults == 0, list(report.lines())
    return [
        line.removeprefix("remark: ")
        for line in report.lines()
        if line.startswith("remark: ")
    ]


# ---- faults ----


def test_each_fault_is_found_once_with_its_place_and_id(faulty):
    folder, expected = faulty
    entries = found(folder, queries=90)
    assert sorted(place for place, _ in entries) == sorted(expected)
    assert [
        (place, what) for place, what in entries if expected[place] not in what
    ] == []


def test_terminal_and_report_hold_the_same_faults(faulty, tmp_path):
    folder, expected = faulty
    ended = tool_here(
        "dataset.check",
        "--annotations",
        folder / "labels.json",
        "--images",
        folder,
        "--queries",
        90,
        "--report",
        tmp_path / "report.json",
    )
    assert (
        ended.code == 3
        and ended.err
        == f"error[3]: {len(expected)} faults in {folder / 'labels.json'}\n"
    )
    lines = ended.out.splitlines()
    assert (
        sum(line.startswith(f"{folder / 'labels.json'}: ") for line in lines)
        == len(expected)
        and f"{len(expected)} faults" in lines
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_faults"] == len(expected)
    assert sorted(
        entry["place"] for entry in report["findings"] if entry["fault"]
    ) == sorted(expected)
    assert {
        entry["id"]
        for entry in report["findings"]
        if entry["place"].startswith("annotations[0]")
    } == {1}


def test_many_faults_of_a_kind_are_cut_on_the_terminal(tmp_path):
    content = sound_coco(30)
    for record in content["annotations"]:
        record["category_id"] = 99
    report = check(
        [DataSet(write_coco(tmp_path, content), tmp_path)], ImageCheck()
    )
    lines = list(report.lines(5))
    assert sum("category_id 99" in line for line in lines) == 5
    assert (
        lines[5]
        == f"{tmp_path / 'labels.json'}: ... and 55 more: boxes of categories that are not listed"
    )


def test_corners_in_place_of_sizes_are_suspected(tmp_path):
    content = sound_coco(10)
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        record["bbox"] = [x + 8, y + 8, x + w + 8, y + h + 8]
    path = write_coco(tmp_path, content)
    assert found(tmp_path) == [
        (
            "",
            "20 of 20 boxes reach out of their image, nearly all would fit as xyxy in pixels "
            "(or cxcywh in pixels); COCO has [x, y, width, height] in pixels: "
            "convert the file with tools/dataset/check.py --fix DIR --boxes xyxy --units "
            "pixels, or set dataset.box_order=xyxy and dataset.box_unit=pixels",
        )
    ]
    assert (
        tool_here(
            "dataset.check", "--annotations", path, "--images", tmp_path
        ).code
        == 3
    )


def test_boxes_of_large_objects_are_not_treated_as_corners(tmp_path):
    content = sound_coco(10)
    for record in content["annotations"]:
        record["bbox"] = [0, 0, 40.4, 30.4]
    write_coco(tmp_path, content)
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "is not valid JSON: the file is empty"),
        (b'{"images": []}', '"annotations" is missing'),
    ],
)
def test_file_that_is_not_a_coco_file_is_a_fault_and_the_other_is_still_checked(
    tmp_path, raw, what
):
    content = sound_coco()
    content["annotations"][0]["bbox"][2] = 0
    path = write_coco(tmp_path, content)
    (tmp_path / "val.json").write_bytes(raw)
    report = check(
        [DataSet(path, tmp_path), DataSet(tmp_path / "val.json", tmp_path)],
        ImageCheck(),
    )
    assert [what in line for line in report.lines()][:2] == [
        False,
        True,
    ] and report.num_faults == 2


def test_categories_that_differ_between_the_files_are_a_fault(tmp_path):
    val = sound_coco()
    val["categories"][1]["name"] = "cow"
    paths = (
        write_coco(tmp_path, sound_coco(), "train.json"),
        write_coco(tmp_path, val, "val.json"),
    )
    report = check([DataSet(path, tmp_path) for path in paths], ImageCheck())
    assert (
        list(report.lines())[0]
        == f"{paths[1]}: categories: id 7: dog / cow ({paths[0]} / {paths[1]})"
    )


def test_labels_without_a_usable_box_are_a_fault(tmp_path):
    write_coco(tmp_path, {**sound_coco(), "annotations": []})
    assert found(tmp_path) == [("", "none of its 3 images has a usable box")]


def test_quick_check_reads_headers_alone(tmp_path):
    path = write_coco(tmp_path, sound_coco())
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:1500])
    (tmp_path / "3.png").write_text("<html>")
    ended = tool_here(
        "dataset.check", "--annotations", path, "--images", tmp_path, "--quick"
    )
    assert (
        ended.code == 3
        and "images[2] (id 3): 3.png: image" in ended.out
        and "2.png" not in ended.out
    )


# ---- valid data ----


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (5, 17, 90)])
def test_any_ids_and_an_unused_parent_category_are_fine(tmp_path, ids):
    content = sound_coco()
    content["categories"] = [
        {"id": i, "name": n, "supercategory": "none"}
        for i, n in zip(ids, ("animal", "cat", "dog"))
    ]
    for record in content["annotations"]:
        record["category_id"] = {3: ids[1], 7: ids[2]}[record["category_id"]]
    path = write_coco(tmp_path, content)
    ended = tool_here(
        "dataset.check", "--annotations", path, "--images", tmp_path
    )
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-2:] == [
        f"remark: {path}: categories without a box: 1 (first: category {ids[0]} (animal))",
        "0 faults",
    ]


def test_sound_data_have_neither_faults_nor_remarks(tmp_path):
    assert remarks(DataSet(write_coco(tmp_path, sound_coco()), tmp_path)) == []


def test_what_training_fixes_without_losing_labels_is_a_remark(tmp_path):
    content = sound_coco(6)
    content["annotations"][0]["bbox"] = [30, 20, 100, 100]
    del content["annotations"][1]["area"]
    content["annotations"] = content["annotations"][:10]
    path = write_coco(tmp_path, content)
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    frames = [Image.new("RGB", (40, 30), c) for c in ("red", "blue")]
    frames[0].save(
        tmp_path / "3.png", "GIF", save_all=True, append_images=frames[1:]
    )
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(
        tmp_path / "4.png"
    )
    exif = Image.Exif()
    exif[0x0112] = 3
    frames[1].save(tmp_path / "5.png", "JPEG", exif=exif)
    assert remarks(DataSet(path, tmp_path)) == [
        f"{path}: {text}"
        for text in (
            (
                "boxes reaching beyond their image: 1 (first: annotations[0] "
                "(id 1): reaches beyond its image: [30.0, 20.0, 100.0, 100.0])"
            ),
            "missing areas: 1 (first: annotations[1] (id 2): no area)",
            "images without objects: 1 (first: images[5] (id 6): 6.png)",
            "images with several frames, of which the first is used: 1 (first: images[2] (id 3): 3.png)",
            "images rotated according to their EXIF tag: 1 (first: images[4] (id 5): 5.png)",
            "16-bit images, scaled to 8 bits: 1 (first: images[3] (id 4): 4.png)",
            (
                "images with the content of another one: "
                f"1 (first: images[1] (id 2): 2.png: has the content of {tmp_path / '1.png'})"
            ),
        )
    ]


def test_doubtful_pictures_are_remarks(tmp_path):
    content = sound_coco(6)
    path = write_coco(tmp_path, content)
    exif = Image.Exif()
    exif[0x0112] = 6
    first = Image.new("RGB", (40, 30))
    first.save(tmp_path / "1.png", "JPEG", exif=exif)
    exif[0x0112] = 3
    first.save(tmp_path / "2.png", "JPEG", exif=exif, xmp=xmp_with(1))
    grey = np.arange(1200, dtype=np.uint16).reshape(30, 40)
    Image.fromarray(grey).save(tmp_path / "3.png")
    Image.frombytes("RGBX", (40, 30), bytes(4800)).save(
        tmp_path / "4.png", "TIFF"
    )
    data = DataSet(path, tmp_path)
    found = [text.removeprefix(f"{path}: ") for text in remarks(data)]
    assert found == [
        "images rotated according to their EXIF tag: 1 (first: images[1] (id 2): 2.png)",
        "16-bit images, scaled to 8 bits: 1 (first: images[2] (id 3): 3.png)",
        "images with bands besides the colours, which are dropped: 1 (first: images[3] (id 4): 4.png)",
        (
            "images with different orientations in Exif and XMP, of which Exif is used: 1 "
            "(first: images[1] (id 2): 2.png)"
        ),
        (
            "16-bit images that are almost black, because all samples are below 16384; "
            "if the sensor has 10, 12 or 14 bits, set bit_depth: 1 (first: images[2] (id 3): 3.png)"
        ),
        (
            "images not rotated according to their EXIF tag, because their labels have the size as stored: 1 "
            "(first: images[0] (id 1): 1.png)"
        ),
    ]
    scaled = remarks(replace(data, bit_depth=12))
    assert not any("almost black" in text for text in scaled)


def test_boxes_that_contradict_their_outline_are_remarks(tmp_path):
    content = sound_coco()
    content["annotations"][0]["segmentation"] = [[30, 20, 40, 20, 40, 30]]
    content["annotations"][0]["bbox"] = [1, 1, 9, 10]
    content["annotations"][1]["area"] = 900
    data = DataSet(write_coco(tmp_path, content), tmp_path)
    area, outline = remarks(data)
    assert (
        "areas larger than their box: 1 (first: annotations[1] (id 2)" in area
    )
    assert "[1, 1, 9, 10], outline [30, 20, 10, 10]" in outline


def test_images_in_training_and_validation_are_remarks(tmp_path):
    train, val = sound_coco(), sound_coco()
    val["images"][1]["file_name"] = "renamed.png"
    data_sets = [
        DataSet(write_coco(tmp_path, content, name), tmp_path)
        for content, name in ((val, "val.json"), (train, "train.json"))
    ]
    (tmp_path / "renamed.png").write_bytes((tmp_path / "2.png").read_bytes())
    assert remarks(*data_sets) == [
        (
            f"{tmp_path / 'train.json'}: images that are used for training too: "
            "2 (first: images[0] (id 1): 1.png)"
        ),
        f"{tmp_path / 'train.json'}: images that are used for training too, under other names: "
        f"1 (first: images[1] (id 2): 2.png: has the content of {tmp_path / 'renamed.png'})",
    ]


# ---- the command ----


def test_paths_and_queries_come_from_a_configuration_too(tiny_data, tmp_path):
    from tests.fixtures.commands import write_tiny_config

    ended = tool_here(
        "dataset.check",
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "-u",
        "DFINETransformer.num_queries=1",
    )
    assert (
        ended.code == 3
        and "objects, only 1 can be found; raise num_queries and num_top_queries"
        in ended.out
    )
    assert str(tiny_data.folder / "val.json") in ended.out


def test_missing_image_folder_is_a_fault_of_the_command(tmp_path):
    ended = tool_here(
        "dataset.check",
        "--annotations",
        write_coco(tmp_path, sound_coco()),
        "--images",
        tmp_path / "none",
    )
    assert (
        ended.code == 2 and f"{tmp_path / 'none'} is not a folder" in ended.err
    )


def test_missing_arguments_are_named(tmp_path):
    ended = tool_here("dataset.check", "--images", tmp_path)
    assert (
        ended.code == 2 and "or --annotations and --images, or -c" in ended.err
    )
