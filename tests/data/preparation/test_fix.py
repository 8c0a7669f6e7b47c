"""Copies are free of faults: unusable records are dropped, the others fixed, and all of them counted."""

import json

import pytest
from PIL import Image

from src.core.errors import ConfigError, DataError
from src.data.dataset.box_formats import COCO, BoxFormat
from src.data.dataset.coco_format import load_coco
from src.data.dataset.segmentation import box_of_segmentation
from src.data.preparation.check import check
from src.data.preparation.data_set import DataSet
from src.data.preparation.fix import fix
from src.data.preparation.image_file_check import ImageCheck
from tests.data.preparation.test_check import faulty  # noqa: F401 - a fixture
from tests.fixtures.coco_files import sound_coco, write_coco
from tests.fixtures.commands import write_tiny_config
from tests.fixtures.tools_here import tool_here
from tests.fixtures.train_here import (
    change_labels,
    image_path,
    private_copy,
    train_here,
)


def fixed(folder, content, **settings):
    """Fix labels beside their images; return the changes and the copy."""
    path = write_coco(folder, content, draw=False)
    changes = fix(
        DataSet(path, folder), folder / "clean.json", ImageCheck(), **settings
    )
    copy = json.loads((folder / "clean.json").read_text())
    report = check([DataSet(folder / "clean.json", folder)], ImageCheck())
    assert report.num_faults == 0, list(report.lines())
    assert load_coco(folder / "clean.json")
    return dict(changes), copy


@pytest.fixture
def folder(tmp_path):
    """Return a folder with three sound images."""
    write_coco(tmp_path, sound_coco())
    return tmp_path


def labels(**changes):
    """Return sound labels with records changed: annotations={2: {...}}."""
    content = sound_coco()
    for part, records in changes.items():
        for index, values in records.items():
            content[part][index].update(values)
    return content


# ---- whole files ----


def test_copy_of_a_file_with_one_of_each_fault_is_free_of_faults(
    faulty,  # noqa: F811
    tmp_path,
):
    folder, _ = faulty
    before = (folder / "labels.json").read_bytes()
    ended = tool_here(
        "dataset.check",
        "--annotations",
        folder / "labels.json",
        "--images",
        folder,
        "--fix",
        tmp_path / "clean",
    )
    assert ended.code == 3, (
        ended.out
    )  # a duplicate category under two names must be resolved by the user
    assert (
        ended.err == f"error[3]: 1 fault in {tmp_path / 'clean/train.json'}\n"
    )
    assert (
        "categories[3]: id 3 is used twice"
        in ended.out.partition("what is left")[2]
    )
    assert (folder / "labels.json").read_bytes() == before
    content = json.loads((folder / "labels.json").read_text())
    content["categories"][3]["id"] = 33
    (folder / "labels.json").write_text(json.dumps(content))
    ended = tool_here(
        "dataset.check",
        "--annotations",
        folder / "labels.json",
        "--images",
        folder,
        "--fix",
        tmp_path / "clean",
    )
    assert (
        ended.code == 2
        and f"{tmp_path / 'clean/train.json'} already exists and would be replaced"
        in ended.err
    )
    ended = tool_here(
        "dataset.check",
        "--annotations",
        folder / "labels.json",
        "--images",
        folder,
        "--fix",
        tmp_path / "clean2",
    )
    assert (ended.code, ended.err) == (0, ""), ended.out
    again = tool_here(
        "dataset.check",
        "--annotations",
        tmp_path / "clean2/train.json",
        "--images",
        folder,
    )
    assert again.code == 0 and again.out.endswith("0 faults\n")
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == [
        "train.json"
    ]


def test_sound_file_is_copied_as_it_is_with_what_detection_does_not_use(folder):
    content = labels(
        annotations={0: {"segmentation": [[1, 2, 3, 4, 5, 6]], "note": "ü"}}
    )
    content["info"] = {"by": "us"}
    assert fixed(folder, content) == ({}, content)


def test_training_takes_the_copy(tiny_data, tmp_path):
    data = private_copy(tiny_data, tmp_path / "data")
    change_labels(
        data,
        lambda content: [
            content["annotations"][0].update(bbox=[1, 1, 0, 0]),
            content["annotations"][2].update(image_id="1"),
            content["images"][1].update(width=999),
        ],
    )
    image_path(data, 2).write_bytes(image_path(data, 2).read_bytes()[:400])
    files = (
        "--annotations",
        data.folder / "train.json",
        "--images",
        data.folder / "images",
        "--val-annotations",
        data.folder / "val.json",
    )
    config = write_tiny_config(tmp_path, data, epochs=1)
    ended = train_here("-c", config, "--seed=0")
    assert ended.code == 3 and ended.err.endswith(
        "; tools/dataset/check.py lists all\n"
    )
    assert (
        tool_here("dataset.check", *files, "--fix", tmp_path / "clean").code
        == 0
    )
    ended = train_here(
        "-c",
        config,
        "--seed=0",
        "-u",
        *(
            f"{part}_dataloader.dataset.ann_file={tmp_path}/clean/{part}.json"
            for part in ("train", "val")
        ),
    )
    assert ended.code == 0, ended.err
    assert (
        "train.json: " not in ended.out and "val.json: " not in ended.out
    )  # no warning is about the labels


def test_input_is_never_replaced(folder):
    path = write_coco(folder, sound_coco(), "train.json", draw=False)
    with pytest.raises(ConfigError, match="would replace"):
        fix(DataSet(path, folder), path, ImageCheck())
    ended = tool_here(
        "dataset.check",
        "--annotations",
        path,
        "--images",
        folder,
        "--fix",
        folder,
    )
    assert ended.code == 2 and "--fix would replace" in ended.err


def test_file_that_is_not_json_is_refused(folder):
    with pytest.raises(DataError, match="is not valid JSON"):
        fix(
            DataSet(write_coco(folder, "{"), folder),
            folder / "clean.json",
            ImageCheck(),
        )
    assert not list(folder.glob("clean*"))


# ---- boxes ----


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"bbox": [1, 2, 0, 4]}, "boxes dropped: no area"),
        ({"bbox": [90, 2, 3, 4]}, "boxes dropped: outside their image"),
        (
            {"bbox": [1, 2, float("nan"), 4]},
            "boxes dropped: no four finite numbers, and no polygon or mask of its image",
        ),
        (
            {"bbox": None},
            "boxes dropped: no four finite numbers, and no polygon or mask of its image",
        ),
        ({"category_id": 99}, "boxes dropped: their category is not listed"),
        ({"image_id": 99}, "boxes dropped: their image is not listed"),
        ({"image_id": "one"}, "boxes dropped: no image_id that could be meant"),
    ],
    ids=str,
)
def test_box_that_cannot_be_used_is_dropped_and_counted(folder, change, what):
    content = labels(annotations={2: change})
    changes, copy = fixed(folder, content, box_format=COCO)
    assert (
        changes == {what: 1}
        and copy["annotations"]
        == sound_coco()["annotations"][:2] + sound_coco()["annotations"][3:]
    )


@pytest.mark.parametrize(
    ("change", "what", "after"),
    [
        ({"id": "3"}, "id made an integer", {}),
        ({"image_id": "2"}, "image_id made an integer", {}),
        ({"category_id": 3.0}, "category_id made an integer", {}),
        ({"id": None}, "annotation ids replaced", {"id": 3}),
        ({"id": 1}, "annotation ids replaced", {"id": 3}),
        ({"bbox": ["4", 5, "8.0", 9]}, "boxes made four numbers", {}),
        ({"area": "x"}, "areas computed from the box", {}),
        ({"area": -2}, "areas computed from the box", {}),
        ({"area": None}, "areas computed from the box", {}),
        ({"iscrowd": True}, "crowd flags set to 0 or 1", {"iscrowd": 1}),
        ({"iscrowd": 5}, "crowd flags set to 0 or 1", {"iscrowd": 1}),
        ({"iscrowd": "True"}, "crowd flags set to 0 or 1", {"iscrowd": 1}),
        ({"iscrowd": "false"}, "crowd flags set to 0 or 1", {}),
        (
            {"bbox": {"x": 4, "y": 5, "width": 8, "height": 9}},
            "boxes made four numbers",
            {},
        ),
        ({"bbox": "4, 5, 8, 9"}, "boxes made four numbers", {}),
        ({"bbox": "[4 5 8 9]"}, "boxes made four numbers", {}),
        ({"bbox": [[4, 5, 8, 9]]}, "boxes made four numbers", {}),
        (
            {"bbox": [-4, 25, 10, 10]},
            "boxes clipped to their image",
            {"bbox": [0, 25, 6, 5], "area": 30},
        ),
    ],
    ids=str,
)
def test_record_with_a_clear_meaning_is_fixed_and_counted(
    folder, change, what, after
):
    changes, copy = fixed(folder, labels(annotations={2: change}))
    assert (
        changes == {what: 1}
        and copy["annotations"][2] == sound_coco()["annotations"][2] | after
    )


def test_fault_revealed_by_a_fix_is_fixed_too(folder):
    changes, copy = fixed(
        folder,
        labels(
            annotations={
                2: {"image_id": "2", "bbox": [30, 20, 100, 100], "id": 1}
            }
        ),
    )
    assert changes == {
        "image_id made an integer": 1,
        "annotation ids replaced": 1,
        "boxes clipped to their image": 1,
    }
    assert copy["annotations"][2]["bbox"] == [30, 20, 10, 10]


def test_corners_are_converted_on_request(folder):
    content = sound_coco()
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        record["bbox"] = [x + 6, y + 6, x + w + 6, y + h + 6]
    with pytest.raises(
        DataError,
        match="--boxes xyxy --units pixels.*; --boxes xywh --units pixels declares that",
    ):
        fixed(folder, content)
    assert not (folder / "clean.json").exists()
    changes, copy = fixed(folder, content, box_format=BoxFormat("xyxy"))
    assert changes["boxes converted from xyxy in pixels"] == 6
    assert [record["bbox"] for record in copy["annotations"]] == [
        [x + 6, y + 6, w, h]
        for x, y, w, h in (r["bbox"] for r in sound_coco()["annotations"])
    ]


@pytest.mark.parametrize(
    ("order", "unit", "write"),
    [
        (
            "xyxy",
            "fraction",
            lambda x, y, w, h: [x / 40, y / 30, (x + w) / 40, (y + h) / 30],
        ),
        (
            "cxcywh",
            "percent",
            lambda x, y, w, h: [
                (x + w / 2) / 0.4,
                (y + h / 2) / 0.3,
                w / 0.4,
                h / 0.3,
            ],
        ),
        (
            "yxyx",
            "permille",
            lambda x, y, w, h: [
                y / 0.03,
                x / 0.04,
                (y + h) / 0.03,
                (x + w) / 0.04,
            ],
        ),
        ("yxhw", "pixels", lambda x, y, w, h: [y, x, h, w]),
    ],
)
def test_boxes_of_another_format_are_converted(folder, order, unit, write):
    content = sound_coco()
    for record in content["annotations"]:
        record["bbox"] = write(*record["bbox"])
    _, copy = fixed(folder, content, box_format=BoxFormat(order, unit))
    expected = sound_coco()["annotations"]
    assert [r["bbox"] for r in copy["annotations"]] == [
        pytest.approx(r["bbox"], abs=2e-3) for r in expected
    ]


@pytest.mark.parametrize(
    ("change", "what", "box"),
    [
        ({"bbox": [9, 12, -3, -4]}, "reversed boxes turned over", [6, 8, 3, 4]),
        (
            {"bbox": [], "segmentation": [[1, 2, 9, 2, 9, 7]]},
            "boxes computed from their polygon or mask",
            [1, 2, 8, 5],
        ),
        (
            {
                "bbox": [0, 0, 0, 0],
                "segmentation": {"size": [30, 40], "counts": [30, 4, 1166]},
            },
            "boxes computed from their polygon or mask",
            [1, 0, 1, 4],
        ),
        (
            {"bbox": None, "segmentation": [[1, 2], [9, 2], [9, 7]]},
            "boxes computed from their polygon or mask",
            [1, 2, 8, 5],
        ),
        (
            {"bbox": [1, 2, 3], "segmentation": [[1, 2, 9, 2, 9, 7]]},
            "boxes computed from their polygon or mask",
            [1, 2, 8, 5],
        ),
        (
            {"bbox": [90, 2, 3, 4], "segmentation": [[1, 2, 9, 2, 9, 7]]},
            "boxes computed from their polygon or mask",
            [1, 2, 8, 5],
        ),
    ],
    ids=["reversed", "empty", "no area", "points", "three numbers", "outside"],
)
def test_a_box_that_can_be_repaired_is_not_dropped(folder, change, what, box):
    changes, copy = fixed(
        folder, labels(annotations={2: change}), box_format=COCO
    )
    assert changes[what] == 1 and len(copy["annotations"]) == 6
    assert copy["annotations"][2]["bbox"] == box


def test_a_duplicate_box_is_kept_once(folder):
    content = sound_coco()
    content["annotations"].append({**content["annotations"][0], "id": 99})
    changes, copy = fixed(folder, content)
    assert changes == {"boxes dropped: duplicate box": 1}
    assert copy["annotations"] == sound_coco()["annotations"]


@pytest.mark.parametrize(
    "name",
    [
        "2.PNG",
        ".\\2.png",
        "images/2.png",
        "C:\\data\\images\\2.png",
        "/home/me/2.png",
        "%32.png",
    ],
)
def test_a_name_that_plainly_means_a_file_is_corrected(folder, name):
    changes, copy = fixed(folder, labels(images={1: {"file_name": name}}))
    assert changes == {"file names corrected": 1}
    assert [record["file_name"] for record in copy["images"]] == [
        "1.png",
        "2.png",
        "3.png",
    ]
    assert len(copy["annotations"]) == 6


@pytest.mark.parametrize("name", ["2.jpg", "2", "2.png ", " 2.png"])
def test_a_name_with_another_suffix_means_the_one_file_that_nobody_else_has(
    folder, name
):
    changes, copy = fixed(folder, labels(images={1: {"file_name": name}}))
    assert (
        changes == {"file names corrected": 1} and len(copy["annotations"]) == 6
    )
    assert copy["images"][1]["file_name"] == "2.png"
    (folder / "clean.json").unlink()
    changes, copy = fixed(folder, labels(images={1: {"file_name": "3.jpg"}}))
    assert (
        changes["images dropped: no file that can be read"] == 1
    )  # 3.png is another image's


@pytest.mark.parametrize(
    "ids",
    [["a", "b", "c"], [-1, -2, -3], [2**70, 2**71, 2**72], ["1", "x", 2]],
    ids=str,
)
@pytest.mark.parametrize("where", ["images", "categories"])
def test_ids_that_are_not_numbers_are_replaced_together_with_all_references(
    folder, where, ids
):
    content = sound_coco()
    key = {"images": "image_id", "categories": "category_id"}[where]
    new = {
        record["id"]: ids[number]
        for number, record in enumerate(content[where])
    }
    for record in content[where]:
        record["id"] = new[record["id"]]
    for record in content["annotations"]:
        record[key] = new[record[key]]
    _, copy = fixed(folder, content)
    name = {"images": "file_name", "categories": "name"}[where]
    expected = sound_coco()
    names = [
        {record["id"]: record[name] for record in one[where]}
        for one in (copy, expected)
    ]
    assert [names[0][r[key]] for r in copy["annotations"]] == [
        names[1][r[key]] for r in expected["annotations"]
    ]


@pytest.mark.parametrize("factor", [2, 0.5, 1.1])
def test_boxes_of_images_that_were_resized_are_scaled(folder, factor):
    content = sound_coco()
    expected = [record["bbox"] for record in content["annotations"]]
    for record in content["images"]:
        record["width"], record["height"] = (
            round(record["width"] * factor),
            round(record["height"] * factor),
        )
    for record in content["annotations"]:
        record["bbox"] = [value * factor for value in record["bbox"]]
        x, y, w, h = record["bbox"]
        record["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    changes, copy = fixed(folder, content)
    assert (
        changes[
            "boxes scaled to the size of their image file, which was resized"
        ]
        == 6
    )
    for record, box in zip(copy["annotations"], expected):
        assert record["bbox"] == pytest.approx(box, abs=0.1)
        assert box_of_segmentation(record["segmentation"]) == pytest.approx(
            box, abs=0.1
        )


def test_boxes_that_are_declared_to_be_right_are_not_scaled(folder):
    content = sound_coco()
    for record in content["images"]:
        record["width"], record["height"] = (
            2 * record["width"],
            2 * record["height"],
        )
    _, copy = fixed(folder, content, box_format=COCO)
    assert copy == sound_coco()


@pytest.mark.parametrize(
    ("value", "after"), [("yes", 1), (2, 1), ("0", 0), ("", 0)]
)
def test_ignore_flags_are_made_0_or_1(folder, value, after):
    changes, copy = fixed(folder, labels(annotations={2: {"ignore": value}}))
    assert changes == {"ignore flags set to 0 or 1": 1}
    assert copy["annotations"][2]["ignore"] == after


# ---- images and categories ----


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:1500]),
        lambda path: path.write_text("x"),
    ],
    ids=["missing", "truncated", "no image"],
)
def test_image_without_a_readable_file_is_dropped_with_its_boxes(folder, spoil):
    spoil(folder / "2.png")
    changes, copy = fixed(folder, sound_coco())
    assert changes == {
        "images dropped: no file that can be read": 1,
        "boxes dropped: their image was dropped": 2,
    }
    assert (
        {record["image_id"] for record in copy["annotations"]}
        == {1, 3}
        == {image["id"] for image in copy["images"]}
    )


@pytest.mark.parametrize(
    "change",
    [{"width": 999}, {"width": 0}, {"height": "30"}, {"width": None}],
    ids=str,
)
def test_size_comes_from_the_file(folder, change):
    changes, copy = fixed(folder, labels(images={1: change}))
    assert (
        changes == {"sizes of images taken from their files": 1}
        and copy == sound_coco()
    )


def test_boxes_are_held_against_the_size_of_the_file_and_not_against_a_wrong_one(
    folder,
):
    changes, copy = fixed(folder, labels(images={1: {"width": 9}}))
    assert (
        changes == {"sizes of images taken from their files": 1}
        and copy == sound_coco()
    )


def test_images_that_share_an_id_are_dropped_with_their_ambiguous_boxes(
    folder,
):
    changes, copy = fixed(folder, labels(images={1: {"id": 1}}))
    assert changes == {
        "boxes dropped: their image is not listed": 2,
        "boxes dropped: their image was dropped": 2,
        "images dropped: two of them have one id": 2,
    }
    assert [image["id"] for image in copy["images"]] == [3]


def test_duplicate_image_is_kept_once(folder):
    content = sound_coco()
    content["images"].append(dict(content["images"][0]))
    assert fixed(folder, content) == (
        {"images dropped: listed twice": 1},
        sound_coco(),
    )


def test_name_that_leaves_the_folder_is_dropped_with_its_boxes(folder):
    Image.new("RGB", (40, 30)).save(folder.parent / "outside.png")
    changes, copy = fixed(
        folder, labels(images={1: {"file_name": "../outside.png"}})
    )
    assert changes == {
        "images dropped: no file name that can be used": 1,
        "boxes dropped: their image is not listed": 2,
    }
    assert [image["id"] for image in copy["images"]] == [1, 3]


def test_ids_of_images_and_categories_become_numbers_where_they_are_meant(
    folder,
):
    content = labels(
        images={1: {"id": "2"}}, categories={0: {"id": "3"}, 1: {"name": 5}}
    )
    changes, copy = fixed(folder, content)
    assert changes == {"id made an integer": 2, "categories named": 1}
    assert copy == labels(categories={1: {"name": "5"}})


def test_numbers_that_json_has_not_are_gone_from_the_copy(folder):
    _, copy = fixed(
        folder,
        labels(
            annotations={
                0: {"score": float("nan"), "bbox": [1, 2, 0, 4]},
                1: {"score": float("nan")},
            }
        ),
    )
    assert copy["annotations"][0]["score"] is None
