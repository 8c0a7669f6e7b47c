"""YOLO and Pascal VOC become COCO files with the same boxes, which pass the check."""

import json
import shlex

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.core.errors import RunError
from src.data.dataset.coco_format import load_coco
from src.data.preparation.check import check
from src.data.preparation.convert import convert
from src.data.preparation.data_set import DataSet
from src.data.preparation.image_file_check import ImageCheck
from tests.fixtures.label_formats import (
    BOXES,
    NAMES,
    SIZES,
    voc_xml,
    write_voc,
    write_yolo,
    yolo_lines,
)
from tests.fixtures.tools_here import tool_here


def boxes_of(path) -> dict[str, list]:
    """Return name and corners of the boxes of each image of a COCO file, in their order."""
    content = json.loads(path.read_text())
    names = {record["id"]: record["name"] for record in content["categories"]}
    found = {
        image["file_name"].rpartition("/")[2]: [] for image in content["images"]
    }
    files = {
        image["id"]: image["file_name"].rpartition("/")[2]
        for image in content["images"]
    }
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        found[files[record["image_id"]]].append(
            (names[record["category_id"]], (x, y, x + w, y + h))
        )
    return found


@pytest.mark.parametrize(
    ("write", "folder"), [(write_yolo, "."), (write_voc, "JPEGImages")]
)
def test_boxes_are_the_same_to_a_hundredth_of_a_pixel_and_pass_the_check(
    tmp_path, write, folder
):
    source = write(tmp_path / "data")
    ended = tool_here("dataset.convert", source, "--output", tmp_path / "coco")
    assert (ended.code, ended.err) == (0, ""), ended
    for part, stems in (("train", "ab"), ("val", "c")):
        found = boxes_of(tmp_path / f"coco/{part}.json")
        assert sorted(found) == [f"{stem}.png" for stem in stems]
        for stem in stems:
            assert [name for name, _ in found[f"{stem}.png"]] == [
                NAMES[number] for number, *_ in BOXES[stem]
            ]
            if BOXES[stem]:
                assert (
                    np.abs(
                        np.array([box for _, box in found[f"{stem}.png"]])
                        - np.array([box for _, *box in BOXES[stem]])
                    ).max()
                    < 0.01
                )
        report = check(
            [
                DataSet(
                    tmp_path / f"coco/{part}.json", tmp_path / "data" / folder
                )
            ],
            ImageCheck(),
        )
        assert [
            group
            for group in report.groups
            if group.is_fault and group.kind != "no box to learn from"
        ] == []


def test_command_to_train_with_is_printed_safe_to_paste(tmp_path):
    source = write_yolo(tmp_path / "my data: #1")
    ended = tool_here("dataset.convert", source, "--output", tmp_path / "coco")
    line = next(
        line
        for line in ended.out.splitlines()
        if line.startswith("python train.py")
    )
    values = dict(word.split("=", 1) for word in shlex.split(line)[5:])
    assert yaml.safe_load(values["train_dataloader.dataset.img_folder"]) == str(
        tmp_path / "my data: #1"
    )
    assert (
        values["val_dataloader.dataset.ann_file"]
        == str(tmp_path / "coco/val.json")
        and values["num_classes"] == "3"
    )


def test_data_without_validation_images_are_split_with_a_message(tmp_path):
    source = write_voc(tmp_path / "data", sets=False)
    ended = tool_here(
        "dataset.convert",
        source,
        "--output",
        tmp_path / "coco",
        "--val-fraction",
        0.4,
        "--seed",
        5,
    )
    assert (
        "no validation images: 1 of 3 were set aside (--val-fraction 0.4 --seed 5); "
        "0 of 3 classes are in both parts" in ended.out
    )
    assert sorted(
        boxes_of(tmp_path / "coco/train.json")
        | boxes_of(tmp_path / "coco/val.json")
    ) == [
        "a.png",
        "b.png",
        "c.png",
    ]


@pytest.mark.parametrize("write", [write_yolo, write_voc])
def test_boxes_that_cannot_be_used_end_with_code_3_unless_they_may_be_dropped(
    tmp_path, write
):
    source = write(tmp_path / "data")
    if write is write_yolo:
        (tmp_path / "data/labels/train/a.txt").write_text(
            "0 0.5 0.5 0 0.5\n1 1.2 0.5 0.1 0.5\n1 0.5 0.5 0.5 0.5\n"
        )
    else:
        text = voc_xml("a").replace(
            "<xmin>4</xmin><ymin>6<", "<xmin>300</xmin><ymin>6<"
        )
        text = text.replace("<xmax>20<", "<xmax>400<")
        (tmp_path / "data/Annotations/a.xml").write_text(text)
    command = ["dataset.convert", source, "--output", tmp_path / "coco"]
    ended = tool_here(*command, "--report", tmp_path / "reports/faults.json")
    assert (
        ended.code == 3
        and "boxes without area or outside their image" in ended.err
    )
    assert not (tmp_path / "coco").exists()
    faults = json.loads((tmp_path / "reports/faults.json").read_text())[
        "faults"
    ]
    count = 2 if write is write_yolo else 1
    assert [fault["kind"] for fault in faults] == [
        "boxes without area or outside their image"
    ] * count
    assert (
        tool_here(*command, "--report", tmp_path / "reports/faults.json").code
        == 3
    )  # our own report is replaced
    ended = tool_here(*command, "--drop-boxes")
    assert (
        ended.code == 0
        and f"boxes without area or outside their image, dropped: {count}"
        in ended.out
    )
    assert len(boxes_of(tmp_path / "coco/train.json")["a.png"]) == 1


def test_a_report_replaces_nothing(tmp_path):
    source = write_yolo(tmp_path / "data")
    ended = tool_here(
        "dataset.convert",
        source,
        "--output",
        tmp_path / "coco",
        "--report",
        source,
    )
    assert (
        ended.code == 2
        and "would be replaced" in ended.err
        and source.read_text().startswith("train:")
    )


def test_a_part_that_is_listed_but_absent_is_noted(tmp_path):
    source = write_yolo(
        tmp_path / "data",
        "train: images/train\nval: images/val\ntest: ../test/images\nnames: [cat, dog, owl]\n",
    )
    ended = tool_here("dataset.convert", source, "--output", tmp_path / "coco")
    assert (
        ended.code == 0
        and "data.yaml: test is listed but does not exist" in ended.out
    ), ended.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "nowhere does not exist"),
        (
            [".", "--val-fraction", "1.5"],
            "expected a fraction above 0 and below 1",
        ),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, text):
    ended = tool_here(
        "dataset.convert", *arguments, "--output", tmp_path / "coco"
    )
    assert ended.code == 2 and text in ended.err


words = st.sampled_from(
    [
        "0",
        "2",
        "3",
        "-1",
        "0.5",
        "0.25",
        "1e-9",
        "1.2",
        "nan",
        "inf",
        "x",
        "",
        "0.1 0.9",
        "\0",
        "é",
    ]
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(lines=st.lists(st.lists(words, max_size=9).map(" ".join), max_size=3))
def test_any_label_file_is_converted_or_refused_with_its_line(
    tmp_path_factory, lines
):
    root = tmp_path_factory.mktemp("yolo")
    source = write_yolo(root / "data")
    labels = root / "data/labels/train/a.txt"
    labels.write_text("\n".join(lines))
    refused_or_sound(source, root / "coco", f"{labels} line ")


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    at=st.integers(0, len(voc_xml("a"))),
    length=st.integers(0, 12),
    junk=st.sampled_from(
        ["", "<", "&x;", "0", "nan", "</object>", "<!DOCTYPE a>", "\xe9", "\0"]
    ),
)
def test_any_annotation_file_is_converted_or_refused_with_its_name(
    tmp_path_factory, at, length, junk
):
    root = tmp_path_factory.mktemp("voc")
    source = write_voc(root / "data")
    (root / "data/Annotations/a.xml").write_text(
        voc_xml("a")[:at] + junk + voc_xml("a")[at + length :]
    )
    refused_or_sound(source, root / "coco", "a.xml: ")


def refused_or_sound(source, output, named: str) -> None:
    try:
        list(convert(source, output))
    except RunError as error:
        assert named in str(error) and not output.exists()
    else:
        assert load_coco(output / "train.json").findings.describe() == []


def test_fixture_agrees_with_itself():
    assert yolo_lines(
        "b"
    ) == "2 0.196970 0.517544 0.333333 0.964912\n" and SIZES["b"] == (33, 57)
