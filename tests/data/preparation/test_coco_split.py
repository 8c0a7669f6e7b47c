"""A COCO file is split into two that together have the same records."""

import json

import pytest

from src.core.errors import DataError
from src.data.preparation.coco_split import split_coco
from src.data.preparation.find_coco import open_coco
from tests.fixtures.label_formats import write_images
from tests.fixtures.layouts import coco_content, coco_one_file
from tests.fixtures.tools_here import tool_here


def write(tmp_path, change=lambda content: None):
    """Write a COCO file, split it, and return both parts and the lines about them."""
    write_images(tmp_path / "images")
    content = coco_content("abc")
    change(content)
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    coco = open_coco(path, tmp_path)
    lines = list(split_coco(coco, tmp_path, 0.3, 0))
    parts = []
    for part in ("train", "val"):
        parts.append(json.loads((tmp_path / f"{part}.json").read_text()))
    return content, parts, lines


def test_every_record_is_in_one_part_with_all_its_keys(tmp_path):
    def add_keys(content):
        content["licenses"] = [{"id": 1}]
        content["images"][0]["weather"] = "rain"
        content["annotations"][0]["segmentation"] = [[3, 5, 20, 5, 20, 30]]

    content, parts, _ = write(tmp_path, add_keys)
    for key in ("images", "annotations"):
        records = [record for part in parts for record in part[key]]
        assert sorted(records, key=lambda record: record["id"]) == content[key]
    for part in parts:
        assert part["categories"] == content["categories"]
        assert part["licenses"] == [{"id": 1}]
        ids = {image["id"] for image in part["images"]}
        assert {box["image_id"] for box in part["annotations"]} <= ids


def test_file_that_is_listed_twice_is_in_one_part(tmp_path):
    def repeat(content):
        image = content["images"][0]
        content["images"].append(image | {"id": 9})

    _, parts, lines = write(tmp_path, repeat)
    names = [{image["file_name"] for image in p["images"]} for p in parts]
    assert names[0] & names[1] == set()
    assert any("of 4 were set aside" in line for line in lines)


def test_faulty_labels_are_refused_with_all_faults(tmp_path):
    def spoil(content):
        content["annotations"][0]["image_id"] = 99
        content["annotations"][1]["category_id"] = 99

    with pytest.raises(DataError, match="2 faults"):
        write(tmp_path, spoil)


def test_convert_splits_a_coco_file_without_validation(tmp_path):
    coco_one_file(tmp_path / "data")
    output = tmp_path / "coco"
    ended = tool_here("dataset.convert", tmp_path / "data", "--output", output)
    assert ended.code == 0, ended
    assert "1 of 3 were set aside" in ended.out
    assert f"ann_file={output}/val.json" in ended.out
    assert (output / "train.json").is_file()


def test_convert_leaves_nothing_to_do_for_coco_with_validation(tmp_path):
    coco_one_file(tmp_path)
    (tmp_path / "annotations.json").rename(tmp_path / "train.json")
    (tmp_path / "val.json").write_text((tmp_path / "train.json").read_text())
    ended = tool_here("dataset.convert", tmp_path, "--output", tmp_path / "o")
    assert ended.code == 3
    assert f"need no conversion: train with --data {tmp_path}" in ended.err
