"""Faults of annotation files (F38, F55 to F67) stop a run before a model is built, or are fixed."""

import json

import pytest
import torch
from PIL import Image

from src.core.yaml_config import YAMLConfig
from src.solver.class_tables import class_table
from src.solver.model_selection import BestModel
from tests.fixtures.commands import write_tiny_config
from tests.fixtures.tiny import SyntheticData, tiny_config
from tests.fixtures.train_here import (
    change_labels,
    image_path,
    private_copy,
    train_here,
)


@pytest.fixture
def own_data(tiny_data, tmp_path) -> SyntheticData:
    """A data set of the test's own."""
    return private_copy(tiny_data, tmp_path / "data")


@pytest.fixture
def fault(own_data, tmp_path, monkeypatch):
    """Return a function that changes labels, trains, and returns the error line; no model is built before."""
    monkeypatch.setattr(
        YAMLConfig,
        "model",
        property(lambda _: pytest.fail("the model was built")),
    )

    def of(change, part: str = "train") -> str:
        if isinstance(change, bytes):
            (own_data.folder / f"{part}.json").write_bytes(change)
        else:
            change_labels(own_data, change, part)
        ended = train_here("-c", write_tiny_config(tmp_path, own_data))
        assert ended.code == 3, ended
        assert ended.err.startswith("error[3]: ") and ended.err.count("\n") == 1
        return ended.err

    return of


@pytest.fixture
def evaluation(own_data, tmp_path):
    """Return a function that changes the evaluation's labels, evaluates, and returns the output."""

    def of(change) -> str:
        change_labels(own_data, change, "val")
        ended = train_here(
            "-c",
            write_tiny_config(tmp_path, own_data),
            "--test-only",
            "--seed=0",
        )
        assert (ended.code, ended.err) == (0, "")
        return ended.out

    return of


def set_values(part: str, index: int, **values):
    """Return a change that sets values of a record; the value `...` removes a key."""

    def change(labels) -> None:
        record = labels[part][index]
        record.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del record[key]

    return change


# ---- what there is to find ----


def test_f38_evaluation_without_any_truth_is_refused_before_training(fault):
    assert (
        "val.json has no ground truth: none of its 8 images has a usable box"
        in fault(lambda labels: labels.update(annotations=[]), "val")
    )


def test_f38_first_evaluation_counts_as_the_best_even_with_a_score_of_zero():
    assert BestModel().consider(0, {"AP": 0.0}, {}, 1)


# ---- files ----


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            b'{"images": [',
            "is not valid JSON: Expecting value, line 1 column 13",
        ),
        (b"", "is not valid JSON: the file is empty"),
        (b'{"a": "\xff"}', "is not valid JSON: not UTF-8 at byte 7"),
        (b"null", "contains a NoneType"),
        (b"[]", "contains a list"),
        (b"[" * 200_000, "is not valid JSON: nested too deeply"),
    ],
    ids=["truncated", "empty", "not UTF-8", "null", "list", "nested"],
)
def test_f55_file_that_is_not_a_coco_file_is_refused_with_the_place(
    fault, own_data, raw, text
):
    assert f"{own_data.folder / 'train.json'} {text}" in fault(raw)


def test_f55_byte_order_mark_is_accepted(own_data):
    path = own_data.folder / "val.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(tiny_config(own_data).val_dataloader.dataset) == 8


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_f56_missing_list_is_named(fault, key):
    assert f'train.json: "{key}" is missing' in fault(
        lambda labels: labels.pop(key)
    )


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("images", "id"),
        ("images", "file_name"),
        ("annotations", "id"),
        ("annotations", "image_id"),
        ("annotations", "bbox"),
        ("annotations", "category_id"),
        ("categories", "id"),
        ("categories", "name"),
    ],
)
def test_f57_record_without_a_key_is_named(fault, part, key):
    known = "" if key == "id" else r" (id "
    assert f"{part}[2]{known}" in (
        message := fault(set_values(part, 2, **{key: ...}))
    )
    assert f'no "{key}"' in message


def test_f58_missing_area_and_crowd_flag_are_filled_in_and_counted(evaluation):
    assert (
        "missing areas, computed from the box: 1 (first: annotations[2] (id 3))"
        in evaluation(set_values("annotations", 2, area=..., iscrowd=...))
    )


# ---- ids ----


def test_f59_image_id_used_twice_is_refused(fault):
    assert "images[2] (id 1): this id is used twice" in fault(
        set_values("images", 2, id=1)
    )


def test_f59_annotation_ids_used_twice_are_counted_and_all_scored(
    evaluation, own_data
):
    before = len(
        tiny_config(own_data).val_dataloader.dataset.ground_truth()[
            "annotations"
        ]
    )
    assert (
        "annotation ids used more than once: 1 (first: annotations[2] (id 1))"
        in evaluation(set_values("annotations", 2, id=1))
    )
    truth = tiny_config(own_data).val_dataloader.dataset.ground_truth()[
        "annotations"
    ]
    assert len({a["id"] for a in truth}) == before


def test_f60_orphans_are_refused_with_their_count_and_the_first(fault):
    message = fault(
        lambda labels: [
            a.update(image_id=1000 + a["id"])
            for a in labels["annotations"][:25]
        ]
    )
    assert (
        "train.json has 25 faults: annotations[0] (id 1): image_id 1001 is not among the images"
        in message
        and "... and 5 more" in message
    )


def test_f60_id_of_another_type_is_refused(fault):
    assert (
        "annotations[2] (id 3): image_id is '1', expected a non-negative integer"
        in fault(set_values("annotations", 2, image_id="1"))
    )


# ---- boxes ----


@pytest.mark.parametrize(
    "box",
    [
        [1, 2, float("nan"), 4],
        [1, 2, float("inf"), 4],
        [1, 2, 3],
        [1, 2, "3", 4],
        None,
    ],
    ids=str,
)
def test_f61_malformed_box_is_refused_with_its_record(fault, box):
    assert (
        f"annotations[2] (id 3): bbox is {box}, expected four numbers [x, y, width, height]"
        in fault(set_values("annotations", 2, bbox=box))
    )


@pytest.mark.parametrize("box", [[1, 2, 0, 4], [1, 2, -3, 4]], ids=str)
def test_f61_box_without_area_is_dropped_counted_and_not_scored(
    evaluation, own_data, box
):
    before = len(
        tiny_config(own_data).val_dataloader.dataset.ground_truth()[
            "annotations"
        ]
    )
    assert (
        "boxes without area, dropped: 1 (first: annotations[2] (id 3)"
        in evaluation(set_values("annotations", 2, bbox=box))
    )
    assert (
        len(
            tiny_config(own_data).val_dataloader.dataset.ground_truth()[
                "annotations"
            ]
        )
        == before - 1
    )


def test_f62_box_partly_outside_is_clipped_and_counted(evaluation):
    assert (
        "boxes reaching beyond their image, clipped: 1 (first: annotations[2] (id 3)"
        in evaluation(set_values("annotations", 2, bbox=[50, 50, 40, 40]))
    )


def test_f62_boxes_outside_are_dropped_and_counted_while_they_are_few(
    own_data, tmp_path
):
    def change(labels):
        sound = labels["annotations"][0]
        labels["annotations"] = [{**sound, "id": i} for i in range(200)]
        labels["annotations"][7]["bbox"] = [70, 10, 5, 5]

    change_labels(own_data, change, "val")
    ended = train_here(
        "-c", write_tiny_config(tmp_path, own_data), "--test-only", "--seed=0"
    )
    assert ended.code == 0
    assert (
        "boxes outside their image, dropped: 1 (first: annotations[7] (id 7)"
        in ended.out
    )


def test_f62_many_boxes_outside_their_image_are_suspected_to_be_corners(fault):
    message = fault(
        lambda labels: [
            a.update(bbox=[70, 10, 80, 20]) for a in labels["annotations"][:5]
        ]
    )
    assert (
        "boxes lie entirely outside their image; "
        "COCO has [x, y, width, height] in pixels, and no other format fits either"
        in message
    )


# ---- categories ----


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (99, "category_id 99 is unknown; known ids: 1, 3, 7, 8"),
        (1.5, "category_id is 1.5, expected a non-negative integer"),
        (-1, "category_id is -1, expected a non-negative integer"),
        ("1", "category_id is '1', expected a non-negative integer"),
    ],
    ids=str,
)
def test_f63_malformed_category_is_refused_with_its_record(fault, value, text):
    assert f"annotations[2] (id 3): {text}" in fault(
        set_values("annotations", 2, category_id=value)
    )


def test_f63_ids_with_gaps_are_labels_by_a_table_that_the_checkpoint_keeps(
    own_data,
):
    dataset = tiny_config(own_data).train_dataloader.dataset
    assert dataset.label_of_category.tolist() == [0, 1, 2, 3]
    assert class_table(dataset) == [
        {"id": i, "name": name}
        for i, name in (
            (1, "disc"),
            (3, "square"),
            (7, "triangle"),
            (8, "ring"),
        )
    ]


def test_f64_fewer_classes_than_the_file_has_are_a_fault_of_the_configuration(
    own_data, tmp_path
):
    ended = train_here(
        "-c", write_tiny_config(tmp_path, own_data), "-u", "num_classes=3"
    )
    assert ended.code == 2
    assert (
        "num_classes is 3, but" in ended.err
        and "has 4 categories; set it to 4 or remove it" in ended.err
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda labels: labels.update(annotations=[]),
        lambda labels: [a.update(iscrowd=1) for a in labels["annotations"]],
    ],
    ids=["no annotation", "crowds alone"],
)
def test_f65_labels_without_a_usable_box_are_refused(fault, change):
    assert "train.json has no usable box to learn from" in fault(change)


def test_f66_images_of_other_sizes_than_their_labels_say_are_counted_and_named_before_training(
    own_data, tmp_path, monkeypatch
):
    change_labels(
        own_data,
        lambda labels: (
            labels["images"][5].update(width=999),
            labels["images"][7].update(height=63),
        ),
    )
    monkeypatch.setattr(
        "src.solver.building.build_model",
        lambda *_: pytest.fail("the data were not checked first"),
    )
    ended = train_here("-c", write_tiny_config(tmp_path, own_data), "--seed=0")
    assert ended.code == 3
    assert ended.err.startswith(
        f"error[3]: 2 of 24 images of {own_data.folder}/train.json have sizes that differ from their labels: "
    )
    assert (
        f"{image_path(own_data, 5)} has 64 x 64, its labels were made for 999 x 64; "
        f"{image_path(own_data, 7)} has 64 x 64" in ended.err
    )
    assert (
        "correct width and height in the annotation file" in ended.err
        and "dataset.trust_files to True" in ended.err
    )


def test_f66_with_trust_files_sizes_come_from_the_files_and_boxes_stay(
    own_data, tmp_path
):
    before = tiny_config(own_data).train_dataloader.dataset.labels
    change_labels(
        own_data,
        lambda labels: [
            image.update(width=40, height=7) for image in labels["images"]
        ],
    )
    data = tiny_config(
        own_data, train_dataloader={"dataset": {"trust_files": True}}
    ).train_dataloader.dataset
    data.scan_images()
    assert torch.equal(data.labels.sizes, before.sizes) and torch.equal(
        data.labels.boxes, before.boxes
    )
    expected = (
        "sizes taken from the image files: 24 (first: images[0] "
        "(id 1) train_00000.jpg: 64 x 64 instead of 40 x 7)"
    )
    assert any(expected in line for line in data.labels.findings.describe())


@pytest.mark.parametrize(
    "noted",
    [False, True],
    ids=["for the pixels as stored", "for the image as it is seen"],
)
def test_f66_labels_may_be_made_for_either_way_that_a_turned_image_can_be_seen(
    own_data, noted
):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(image_path(own_data, 3), exif=exif)
    change_labels(
        own_data,
        set_values(
            "images", 3, width=48 if noted else 64, height=64 if noted else 48
        ),
    )
    tiny_config(own_data).train_dataloader.dataset.scan_images()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (set_values("categories", 0, name="disk"), "id 1: disc / disk"),
        (
            lambda labels: labels["categories"].append(
                {"id": 9, "name": "star"}
            ),
            "id 9: none / star",
        ),
    ],
    ids=["renamed", "one more"],
)
def test_f67_categories_that_differ_between_training_and_evaluation_are_listed(
    fault, change, text
):
    assert text in fault(change, "val")


def test_f67_order_of_categories_does_not_matter(evaluation, own_data):
    evaluation(lambda labels: labels["categories"].reverse())
    train, val = (
        json.loads((own_data.folder / f"{part}.json").read_text())["categories"]
        for part in ("train", "val")
    )
    assert train == val[::-1]
    cfg = tiny_config(own_data)
    assert class_table(cfg.train_dataloader.dataset) == class_table(
        cfg.val_dataloader.dataset
    )
