"""`find_dataset` recognizes every layout, says what it found, and names what it cannot decide."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.cli.common import DATA_FORMATS
from src.core.errors import ConfigError, DataError
from src.data.dataset.coco_format import load_coco
from src.data.preparation.any_dataset import FORMATS, find_dataset
from tests.fixtures.label_formats import (
    BOXES,
    NAMES,
    voc_xml,
    write_images,
    write_voc,
    write_yolo,
    yolo_lines,
)
from tests.fixtures.layouts import (
    DIVIDED,
    UNDIVIDED,
    coco_2017,
    coco_content,
    coco_one_file,
    coco_pair,
    coco_roboflow,
    voc_labelimg,
    write_coco,
    write_labels,
    write_xml,
    yolo_flat,
    yolo_folders_without_yaml,
    yolo_roboflow,
)


def objects(annotations: Path, images: Path) -> dict[str, list]:
    """Return class name and corners of the objects of each image, by file name; the images must exist."""
    labels = load_coco(annotations)
    found = {}
    for index in range(len(labels)):
        name = labels.file_name(index)
        assert (images / name).is_file(), name
        rows = labels.rows(index)
        boxes = labels.boxes[rows].round().int().tolist()
        classes = labels.categories[rows].tolist()
        found[Path(name).stem] = [
            (labels.category_names[c], *box)
            for c, box in zip(classes, boxes, strict=True)
        ]
    return found


def expected(stems: str) -> dict[str, list]:
    return {s: [(NAMES[c], *box) for c, *box in BOXES[s]] for s in stems}


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file outside of the cache."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and ".dfine_cache" not in path.parts:
            status = path.stat()
            found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def refused(path: Path, **settings) -> str:
    with pytest.raises(DataError) as caught:
        find_dataset(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 3
    return message


@pytest.mark.parametrize("layout", DIVIDED)
def test_layouts_with_parts_give_the_same_boxes(tmp_path, layout):
    root = tmp_path / "data"
    DIVIDED[layout](root)
    before = snapshot(root)
    found = find_dataset(root)
    assert found.data_format == layout.split()[0]
    assert found.class_names == NAMES
    assert objects(found.train_ann, found.train_images) == expected("ab")
    assert objects(found.val_ann, found.val_images) == expected("c")
    assert str(root) in found.remarks[0] and not found.warnings
    assert snapshot(root) == before


@pytest.mark.parametrize("layout", UNDIVIDED)
def test_layouts_without_validation_are_split(tmp_path, layout):
    root = tmp_path / "data"
    UNDIVIDED[layout](root)
    before = snapshot(root)
    found = find_dataset(root, val_fraction=0.4)
    assert found.data_format == layout.split()[0]
    assert found.class_names == NAMES
    train = objects(found.train_ann, found.train_images)
    val = objects(found.val_ann, found.val_images)
    assert (len(train), len(val)) == (2, 1)
    assert train | val == expected("abc")
    split = [line for line in found.remarks if "--val-fraction 0.4" in line]
    assert "1 of 3 were set aside" in split[0]
    assert snapshot(root) == before


def test_flags_of_the_commands_have_the_formats_that_are_recognized():
    assert DATA_FORMATS == FORMATS


def test_split_follows_the_seed_and_the_fraction(tmp_path):
    root = tmp_path / "data"
    for number in range(20):
        (root / "images").mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"images/{number:02}.png")
        (root / "labels").mkdir(exist_ok=True)
        (root / f"labels/{number:02}.txt").write_text("0 .5 .5 .5 .5\n")

    def val(**settings) -> list[str]:
        found = find_dataset(root, **settings)
        return sorted(objects(found.val_ann, found.val_images))

    assert len(val()) == 2 and len(val(val_fraction=0.3)) == 6
    assert val(seed=0) == val() != val(seed=1)


@pytest.mark.parametrize("data_format", ["coco", "yolo", "voc"])
def test_duplicate_images_stay_together(tmp_path, data_format):
    root = tmp_path / "data"
    names = [f"{number:02}" for number in range(10)]
    (root / "images").mkdir(parents=True)
    content = coco_content("")
    for number, name in enumerate(names):
        # two files for each picture
        pixels = np.full((48, 64, 3), number // 2 * 20, np.uint8)
        Image.fromarray(pixels).save(root / f"images/{name}.png")
        if data_format == "yolo":
            (root / "labels").mkdir(exist_ok=True)
            (root / f"labels/{name}.txt").write_text(yolo_lines("a"))
        elif data_format == "voc":
            (root / "annotations").mkdir(exist_ok=True)
            (root / f"annotations/{name}.xml").write_text(voc_xml("a"))
        else:
            image = coco_content("a")["images"][0]
            changes = {"id": number, "file_name": f"{name}.png"}
            content["images"].append(image | changes)
            for box in coco_content("a")["annotations"]:
                content["annotations"].append(box | {"image_id": number})
            (root / "labels.json").write_text(json.dumps(content))
    found = find_dataset(root, val_fraction=0.4)
    val = sorted(objects(found.val_ann, found.val_images))
    assert len(val) == 4
    assert [int(n) // 2 for n in val[::2]] == [int(n) // 2 for n in val[1::2]]
    assert any("10 images show the same 5 pictures" in r for r in found.remarks)


# ---- files ----


def test_coco_file_brings_its_partner_for_validation(tmp_path):
    coco_2017(tmp_path)
    found = find_dataset(tmp_path / "annotations/instances_train2017.json")
    assert found.val_ann.name == "instances_val2017.json"
    assert found.val_images == tmp_path / "val2017"


def test_coco_file_of_roboflow_brings_its_partner(tmp_path):
    coco_roboflow(tmp_path)
    found = find_dataset(tmp_path / "train/_annotations.coco.json")
    assert found.val_ann == tmp_path / "valid/_annotations.coco.json"
    assert found.val_images == tmp_path / "valid"


def test_coco_file_without_a_partner_is_split(tmp_path):
    coco_pair(tmp_path)
    found = find_dataset(tmp_path / "val.json", split=False)
    assert found.train_ann == found.val_ann == tmp_path / "val.json"


def test_yaml_file_may_have_any_name(tmp_path):
    write_yolo(tmp_path).rename(tmp_path / "cats.yml")
    assert find_dataset(tmp_path / "cats.yml").class_names == NAMES
    assert find_dataset(tmp_path).class_names == NAMES


def test_image_folder_of_a_coco_file_can_be_given(tmp_path):
    coco_pair(tmp_path / "data")
    (tmp_path / "data/images").rename(tmp_path / "elsewhere")
    message = refused(tmp_path / "data")
    assert "lists 'a.png'" in message and "--data-images DIR" in message
    found = find_dataset(tmp_path / "data", images=tmp_path / "elsewhere")
    assert found.train_images == found.val_images == tmp_path / "elsewhere"


def test_folder_around_a_data_set_stands_for_it(tmp_path):
    voc_labelimg(tmp_path / "download/BCCD_Dataset/BCCD")
    found = find_dataset(tmp_path / "download")
    assert found.train_images == tmp_path / "download/BCCD_Dataset/BCCD/images"


# ---- evaluation ----


def test_evaluation_prefers_the_part_for_test_to_a_split(tmp_path):
    coco_roboflow(tmp_path)
    shutil.rmtree(tmp_path / "valid")
    found = find_dataset(tmp_path, for_evaluation=True)
    assert found.val_ann == tmp_path / "test/_annotations.coco.json"
    assert "part for test is evaluated" in " ".join(found.remarks)


def test_evaluation_of_yolo_prefers_the_part_for_test_to_a_split(tmp_path):
    yolo_roboflow(tmp_path)
    (tmp_path / "valid").rename(tmp_path / "test")
    found = find_dataset(tmp_path, for_evaluation=True)
    assert sorted(objects(found.val_ann, found.val_images)) == ["c"]
    found = find_dataset(tmp_path)
    assert found.val_ann.name == "val.json"


def test_evaluation_uses_all_of_a_file_that_is_not_for_training(tmp_path):
    coco_one_file(tmp_path)
    path = tmp_path / "annotations.json"
    assert find_dataset(path, for_evaluation=True).val_ann == path
    assert find_dataset(path).val_ann != path


# ---- class names ----


def test_yolo_without_names_gets_numbered_classes_with_a_remark(tmp_path):
    yolo_folders_without_yaml(tmp_path)
    (tmp_path / "labels/classes.txt").unlink()
    found = find_dataset(tmp_path)
    assert found.class_names == ["class_0", "class_1", "class_2"]
    assert "classes without a name" in " ".join(found.remarks)


def test_class_number_beyond_the_names_is_a_fault(tmp_path):
    yolo_flat(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert "class 2 is not among the 2 names" in refused(tmp_path)


def test_settings_with_train_and_val_but_no_names_do_not_describe_data(
    tmp_path,
):
    voc_labelimg(tmp_path)
    (tmp_path / "hyper.yaml").write_text("train: {lr: 1}\nval: {every: 2}\n")
    assert find_dataset(tmp_path).data_format == "voc"


# ---- what is clipped, dropped and left out ----


def test_slight_overshoot_is_clipped_and_counted_in_yolo(tmp_path):
    yolo_roboflow(tmp_path)
    labels = tmp_path / "train/labels/a.txt"
    labels.write_text("0 0.9015000 0.5 0.2 0.5\n1 0.95 0.5 0.1300000 0.5\n")
    found = find_dataset(tmp_path)
    assert found.warnings == [
        "boxes reaching beyond their image, clipped: 1",
        "boxes reaching beyond their image by at most half a pixel, clipped: 1",
    ]
    boxes = objects(found.train_ann, found.train_images)["a"]
    assert [box[3] for box in boxes] == [64, 64]


def test_rounding_to_six_digits_is_not_reported(tmp_path):
    yolo_roboflow(tmp_path)
    (tmp_path / "train/labels/a.txt").write_text("0 0.833334 .5 0.333333 .5\n")
    assert find_dataset(tmp_path).warnings == []


def test_slight_overshoot_is_clipped_and_counted_in_voc(tmp_path):
    voc_labelimg(tmp_path)
    path = tmp_path / "annotations/a.xml"
    path.write_text(path.read_text().replace("<xmax>64<", "<xmax>65<"))
    found = find_dataset(tmp_path)
    assert found.warnings == ["boxes reaching beyond their image, clipped: 1"]


def test_label_files_without_images_are_counted_and_left_out(tmp_path):
    yolo_roboflow(tmp_path)
    write_labels(tmp_path / "train/labels", "ab")
    (tmp_path / "train/labels/gone.txt").write_text(yolo_lines("a"))
    found = find_dataset(tmp_path)
    assert found.warnings == ["label files without an image, left out: 1"]


def test_annotation_files_without_images_are_counted_and_left_out(tmp_path):
    voc_labelimg(tmp_path)
    (tmp_path / "images/a.png").unlink()
    found = find_dataset(tmp_path)
    assert found.warnings == ["annotation files without an image, left out: 1"]


def test_grossly_wrong_boxes_are_faults(tmp_path):
    yolo_roboflow(tmp_path)
    (tmp_path / "train/labels/a.txt").write_text("0 30 20 10 10\n")
    assert "coordinates far outside 0 to 1" in refused(tmp_path)


def test_boxes_without_area_are_dropped_unless_they_are_most_boxes(tmp_path):
    yolo_roboflow(tmp_path)
    labels = tmp_path / "train/labels/a.txt"
    labels.write_text(yolo_lines("a") + "0 .5 .5 0 0\n")
    found = find_dataset(tmp_path)
    assert found.warnings == [
        "boxes without area or outside their image, dropped: 1"
    ]
    with pytest.raises(DataError, match="dropped: 1; tools/dataset/convert"):
        found.raise_if_dropped()
    labels.write_text(4 * "0 .5 .5 0 0\n")
    assert f"{labels} line 1: corners" in refused(tmp_path)


def test_corners_counted_from_0_are_recognized_by_a_corner_at_0(tmp_path):
    write_voc(tmp_path)
    path = tmp_path / "Annotations/b.xml"
    path.write_text(path.read_text().replace("<xmin>2<", "<xmin>0<"))
    found = find_dataset(tmp_path)
    boxes = objects(found.train_ann, found.train_images)
    assert boxes["a"][0] == ("cat", 4, 6, 20, 30)
    assert "all corners are counted from 0: 1" in " ".join(found.remarks)


# ---- what cannot be decided ----


def test_labels_in_two_formats_name_the_flags_that_decide(tmp_path):
    yolo_folders_without_yaml(tmp_path)
    write_coco(tmp_path / "annotations/train.json", "ab")
    message = refused(tmp_path)
    assert "COCO (annotations/train.json), YOLO (labels/train/*.txt)" in message
    assert "--data-format coco or yolo" in message and "--data FILE" in message
    assert find_dataset(tmp_path, data_format="yolo").data_format == "yolo"
    assert find_dataset(tmp_path, data_format="coco").data_format == "coco"


def test_unclear_coco_files_are_named(tmp_path):
    coco_one_file(tmp_path)
    write_coco(tmp_path / "old.json", "ab")
    message = refused(tmp_path)
    assert "2 COCO files that do not say which part they are for" in message
    assert (
        "(annotations.json, old.json)" in message and "--data FILE" in message
    )


def test_two_files_for_one_part_are_named(tmp_path):
    coco_pair(tmp_path)
    write_coco(tmp_path / "train_old.json", "ab")
    assert "2 COCO files that are for train" in refused(tmp_path)


def test_coco_files_without_a_part_are_ignored_beside_train_with_a_remark(
    tmp_path,
):
    coco_pair(tmp_path)
    write_coco(tmp_path / "all.json", "abc")
    found = find_dataset(tmp_path)
    assert found.train_ann.name == "train.json"
    assert f"are not used: {tmp_path / 'all.json'}" in " ".join(found.remarks)


def test_several_data_sets_in_a_folder_are_named(tmp_path):
    for name in ("VOC2007", "VOC2012"):
        write_voc(tmp_path / name)
    assert "2 data sets (VOC2007, VOC2012)" in refused(tmp_path)


def test_several_descriptions_are_named(tmp_path):
    path = write_yolo(tmp_path)
    shutil.copy(path, tmp_path / "b.yaml")
    path.rename(tmp_path / "a.yaml")
    message = refused(tmp_path)
    assert "2 files that describe a data set (a.yaml, b.yaml)" in message


# ---- hostile input ----


def empty(root: Path) -> str:
    root.mkdir()
    return "it is empty"


def images_only(root: Path) -> str:
    write_images(root / "images")
    return "it contains 3 .png"


def empty_label_files(root: Path) -> str:
    write_images(root / "images")
    (root / "labels").mkdir()
    (root / "labels/a.txt").touch()
    return "has no labels in a known layout"


def other_json(root: Path) -> str:
    write_images(root)
    for name in ("package.json", "list.json", "deep.json", "bad.json"):
        (root / name).write_text('{"images": []}')
    (root / "list.json").write_text("[1, 2]")
    (root / "deep.json").write_text("[" * 100_000)
    (root / "bad.json").write_bytes(b"\xff\xfe\x00")
    return "has no labels in a known layout"


def unreadable_yaml(root: Path) -> str:
    write_yolo(root, "train: [images\nnames: ]")
    return "data.yaml is not valid YAML"


def no_images(root: Path) -> str:
    write_yolo(root)
    for path in root.rglob("*.png"):
        path.unlink()
    return "there is no image behind train"


def no_listed_images(root: Path) -> str:
    root.mkdir()
    content = coco_content("ab") | {"images": [], "annotations": []}
    (root / "train.json").write_text(json.dumps(content))
    return "images is empty"


def one_image(root: Path) -> str:
    write_images(root / "images", "a")
    write_labels(root / "labels", "a")
    return "1 image cannot be split into training and validation; add images"


def one_image_of_coco(root: Path) -> str:
    write_images(root, "a")
    write_coco(root / "labels.json", "a")
    return "1 image cannot be split into training and validation; add images"


def loop_of_links(root: Path) -> str:
    root.mkdir()
    (root / "train").symlink_to(root)
    (root / "images").symlink_to(root / "labels")
    (root / "labels").symlink_to(root / "images")
    (root / "train.json").symlink_to(root / "train.json")
    return "has no labels in a known layout"


def xml_of_another_tool(root: Path) -> str:
    write_images(root)
    (root / "annotations.xml").write_text("<annotations></annotations>")
    return "has no labels in a known layout"


def archive(root: Path) -> str:
    root.mkdir()
    (root / "data.zip").touch()
    return "it contains 1 .zip"


@pytest.mark.parametrize(
    "write",
    [
        empty,
        images_only,
        empty_label_files,
        other_json,
        unreadable_yaml,
        no_images,
        no_listed_images,
        one_image,
        one_image_of_coco,
        loop_of_links,
        xml_of_another_tool,
        archive,
    ],
)
def test_unusable_folders_are_refused_with_one_sentence(tmp_path, write):
    text = write(tmp_path / "data")
    assert text in refused(tmp_path / "data")


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.zip").touch()
    assert "unpack the archive first" in refused(tmp_path / "data.zip")


def test_file_that_contradicts_the_format_is_refused(tmp_path):
    path = write_yolo(tmp_path)
    message = refused(path, data_format="coco")
    assert "contradicts --data-format coco" in message


def test_folder_without_the_given_format_is_refused(tmp_path):
    write_yolo(tmp_path)
    assert "Pascal VOC (--data-format voc)" in refused(
        tmp_path, data_format="voc"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"val_fraction": 1.0}, "val_fraction is 1"),
        ({"data_format": "tfrecord"}, "expected coco, yolo, voc"),
        ({"images": "none"}, "--data-images none is not a folder"),
        ({"images": "."}, "--data-images is only used with COCO files"),
    ],
)
def test_invalid_arguments_are_named(tmp_path, settings, text):
    write_yolo(tmp_path)
    with pytest.raises(ConfigError, match=text):
        find_dataset(tmp_path, **settings)


def test_missing_path_is_named_with_a_similar_one(tmp_path):
    write_yolo(tmp_path / "cats")
    with pytest.raises(ConfigError, match=r"does not exist.*did you mean"):
        find_dataset(tmp_path / "Cats")


@pytest.mark.parametrize("data_format", ["yolo", "voc"])
def test_links_out_of_the_data_set_need_trust(tmp_path, data_format):
    root = tmp_path / "data"
    write_images(root / "images", "ab")
    if data_format == "yolo":
        write_labels(root / "labels", "ab")
    else:
        write_xml(root / "annotations", "ab")
    (root / "images/a.png").rename(tmp_path / "outside.png")
    (root / "images/a.png").symlink_to(tmp_path / "outside.png")
    assert "--follow-links" in refused(root)
    found = find_dataset(root, follow_links=True)
    assert os.path.commonpath([found.train_images, root]) == str(root)
