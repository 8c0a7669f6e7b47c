"""COCO annotation files become compact arrays, and every fault in them is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.errors import DataError
from src.data.dataset import coco_records
from src.data.dataset.coco_format import examine_coco, inspect_coco, load_coco
from src.data.dataset.findings import CHECK_HINT, Findings, Kind
from tests.fixtures.coco_files import sound_coco, write_coco


def load(folder: Path, content):
    return load_coco(write_coco(folder, content, draw=False))


def faults(folder: Path, content) -> str:
    """Return the messages about a file, with its path shortened."""
    with pytest.raises(DataError) as caught:
        load(folder, content)
    return (
        str(caught.value)
        .replace(str(folder / "labels.json"), "labels.json")
        .removesuffix(CHECK_HINT)
    )


def notes(labels) -> list[str]:
    return [
        line.replace(str(labels.path), "labels.json")
        for line in labels.findings.describe()
    ]


def coco(**changes):
    """Return a valid file with a changed record: annotations=(2, {"bbox": 5}); `...` removes a key."""
    content = sound_coco()
    for part, (index, values) in changes.items():
        for key, value in values.items():
            content[part][index][key] = value
            if value is ...:
                del content[part][index][key]
    return content


def large_coco(boxes: int, per_image: int = 10):
    """Return a file with many boxes."""
    count = boxes // per_image
    return {
        "images": [
            {
                "id": 7 * i + 3,
                "file_name": f"folder/image_{i:06}.jpg",
                "width": 640,
                "height": 480,
            }
            for i in range(count)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": 7 * (i // per_image) + 3,
                "category_id": 1 + i % 80,
                "bbox": [float(i % 500), float(i % 300), 50.5, 60.25],
                "area": 1000.5,
                "iscrowd": 0,
                "segmentation": [
                    [i % 500, i % 300, i % 500 + 50.5, i % 300 + 60.25] * 2
                ],
            }
            for i in range(boxes)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, 81)],
    }


# ---- sound files ----


def test_boxes_become_corners(tmp_path):
    assert load(tmp_path, sound_coco(1)).boxes.tolist() == [
        [4, 5, 12, 14],
        [14, 5, 22, 14],
    ]


def test_category_ids_with_gaps_become_their_positions(tmp_path):
    labels = load(tmp_path, sound_coco(1))
    assert (
        labels.category_ids,
        labels.category_names,
        labels.categories.tolist(),
    ) == (
        [3, 7],
        ["cat", "dog"],
        [0, 1],
    )


def test_categories_are_sorted_by_id_whatever_their_order(tmp_path):
    content = sound_coco(1)
    content["categories"].reverse()
    labels = load(tmp_path, content)
    assert (
        labels.category_ids,
        labels.category_names,
        labels.categories.tolist(),
    ) == (
        [3, 7],
        ["cat", "dog"],
        [0, 1],
    )


def test_unused_category_keeps_its_place(tmp_path):
    content = sound_coco(1)
    content["categories"].insert(1, {"id": 5, "name": "unused"})
    labels = load(tmp_path, content)
    assert (labels.category_ids, labels.categories.tolist()) == (
        [3, 5, 7],
        [0, 2],
    )


@pytest.mark.parametrize("ids", [(0, 1), (1, 2), (1, 90), (0, 10**6)])
def test_any_category_ids_will_do(tmp_path, ids):
    content = sound_coco(1)
    for k, category in enumerate(ids):
        content["categories"][k]["id"] = content["annotations"][k][
            "category_id"
        ] = category
    assert load(tmp_path, content).categories.tolist() == [0, 1]


def test_boxes_belong_to_their_images_whatever_their_order(tmp_path):
    content = sound_coco(3)
    content["annotations"] = [
        content["annotations"][i] for i in (5, 0, 3, 1, 4, 2)
    ]
    content["annotations"][0]["bbox"][0] = 9.0
    labels = load(tmp_path, content)
    assert [labels.boxes[labels.rows(i), 0].tolist() for i in range(3)] == [
        [4, 14],
        [14, 4],
        [9, 4],
    ]


def test_image_without_objects_is_kept(tmp_path):
    content = sound_coco(3)
    content["annotations"] = [
        a for a in content["annotations"] if a["image_id"] != 2
    ]
    labels = load(tmp_path, content)
    assert (labels.starts.tolist(), len(labels)) == ([0, 2, 2, 4], 3)


def test_file_without_any_object_is_sound(tmp_path):
    content = sound_coco(2)
    content["annotations"] = []
    labels = load(tmp_path, content)
    assert (labels.boxes.shape, labels.starts.tolist()) == ((0, 4), [0, 0, 0])


def test_image_ids_sizes_and_names_are_kept(tmp_path):
    content = coco(images=(1, {"width": 50, "file_name": "sub/größe 猫.png"}))
    labels = load(tmp_path, content)
    assert (labels.image_ids.tolist(), labels.sizes.tolist()) == (
        [1, 2, 3],
        [[40, 30], [50, 30], [40, 30]],
    )
    assert [labels.file_name(i) for i in range(3)] == [
        "1.png",
        "sub/größe 猫.png",
        "3.png",
    ]


@pytest.mark.parametrize(
    ("value", "crowd"), [(0, False), (1, True), (None, False), (..., False)]
)
def test_crowd_flag_is_kept_and_its_absence_means_no(tmp_path, value, crowd):
    assert load(
        tmp_path, coco(annotations=(2, {"iscrowd": value}))
    ).crowds.tolist() == [
        False,
        False,
        crowd,
        False,
        False,
        False,
    ]


def test_area_of_the_file_is_kept(tmp_path):
    assert (
        load(tmp_path, coco(annotations=(0, {"area": 17.5}))).areas[0] == 17.5
    )


def test_sound_file_leaves_no_notes(tmp_path):
    assert notes(load(tmp_path, sound_coco())) == []


def test_fields_that_detection_does_not_use_may_hold_anything(tmp_path):
    content = coco(
        annotations=(1, {"segmentation": {"counts": "x"}, "score": None}),
        images=(0, {"license": "x"}),
    )
    content["info"] = [1, {"x": None}]
    assert len(load(tmp_path, content).boxes) == 6


def test_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "labels.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(sound_coco()).encode()
    )
    assert len(load_coco(tmp_path / "labels.json").boxes) == 6


def test_largest_ids_are_kept(tmp_path):
    largest = (1 << 63) - 1
    content = sound_coco(1)
    content["images"][0]["id"] = content["annotations"][0][
        "image_id"
    ] = content["annotations"][1]["image_id"] = largest
    assert load(tmp_path, content).image_ids.tolist() == [largest]


# ---- size ----


@pytest.fixture(scope="module")
def large_labels(tmp_path_factory):
    return load(tmp_path_factory.mktemp("large"), large_coco(100_000))


def arrays(labels) -> list[torch.Tensor]:
    return [
        value
        for value in vars(labels).values()
        if isinstance(value, torch.Tensor)
    ]


def test_hundred_thousand_boxes_take_less_than_four_megabytes(large_labels):
    assert len(large_labels.boxes) == 100_000
    assert sum(array.nbytes for array in arrays(large_labels)) < 4e6


def test_what_is_no_array_does_not_grow_with_the_boxes(large_labels):
    rest = {
        name: value
        for name, value in vars(large_labels).items()
        if not isinstance(value, torch.Tensor)
    }
    assert len(str(rest)) < 10_000


# ---- faults that are fixed and counted ----


def test_missing_area_is_computed_and_counted(tmp_path):
    labels = load(tmp_path, coco(annotations=(2, {"area": ...})))
    assert labels.areas.tolist() == [72.0] * 6
    assert notes(labels) == [
        "labels.json: missing areas, computed from the box: 1 (first: annotations[2] (id 3))"
    ]


def test_area_of_null_counts_as_missing(tmp_path):
    assert notes(load(tmp_path, coco(annotations=(2, {"area": None})))) == [
        "labels.json: missing areas, computed from the box: 1 (first: annotations[2] (id 3))"
    ]


def test_computed_area_is_that_of_the_part_inside(tmp_path):
    labels = load(
        tmp_path,
        coco(annotations=(0, {"bbox": [30, 20, 1000, 5], "area": ...})),
    )
    assert labels.areas[0] == 50


@pytest.mark.parametrize(
    "box",
    [
        [1, 2, 0, 4],
        [1, 2, 3, 0],
        [1, 2, -5, 4],
        [1, 2, 0, 0],
        [10, 10, 1e-9, 5],
    ],
)
def test_box_without_area_is_dropped_and_counted_with_its_id(tmp_path, box):
    labels = load(tmp_path, coco(annotations=(2, {"bbox": box})))
    assert labels.starts.tolist() == [0, 2, 3, 5]
    assert notes(labels) == [
        (
            "labels.json: boxes without area, dropped: "
            f"1 (first: annotations[2] (id 3) {[float(v) for v in box]})"
        )
    ]


def test_no_kept_box_is_flat_once_it_is_stored(tmp_path):
    content, rng = large_coco(1000), np.random.default_rng(0)
    for record in content["annotations"]:
        record["bbox"][2] = float(10.0 ** rng.uniform(-12, 1))
    size = load(tmp_path, content).boxes
    assert (size[:, 2:] > size[:, :2]).all()


def test_box_partly_outside_is_clipped_and_counted(tmp_path):
    labels = load(tmp_path, coco(annotations=(2, {"bbox": [-3, 25, 10, 10]})))
    assert labels.boxes[2].tolist() == [0, 25, 7, 30]
    assert notes(labels) == [
        (
            "labels.json: boxes reaching beyond their image, clipped: "
            "1 (first: annotations[2] (id 3) [-3.0, 25.0, 10.0, 10.0])"
        )
    ]


def test_box_that_rounding_put_half_a_pixel_outside_is_clipped_without_a_note(
    tmp_path,
):
    labels = load(tmp_path, coco(annotations=(2, {"bbox": [30.2, 5, 10.2, 9]})))
    assert (labels.boxes[2, 2].item(), notes(labels)) == (40, [])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e9, 1e39, 1e308])
def test_box_of_absurd_size_is_clipped(tmp_path, size):
    assert load(
        tmp_path,
        coco(annotations=(2, {"bbox": [30, 20, size, size], "area": ...})),
    ).boxes[2].tolist() == [30, 20, 40, 30]


def test_few_boxes_outside_are_dropped_and_counted_with_their_ids(tmp_path):
    content = large_coco(1000)
    content["annotations"][41]["bbox"] = [700, 10, 5, 5]
    content["annotations"][57]["bbox"] = [10, -20, 5, 5]
    labels = load(tmp_path, content)
    assert len(labels.boxes) == 998
    assert notes(labels) == [
        (
            "labels.json: boxes outside their image, dropped: "
            "2 (first: annotations[41] (id 41) [700.0, 10.0, 5.0, 5.0])"
        )
    ]
    assert labels.findings.notes[0].ids.tolist() == [41, 57]


@pytest.mark.parametrize(("outside", "refused"), [(10, False), (11, True)])
def test_more_than_one_percent_of_boxes_outside_is_refused(
    tmp_path, outside, refused
):
    content = large_coco(1000)
    for record in content["annotations"][:outside]:
        record["bbox"] = [700, 10, 5, 5]
    assert (
        isinstance(
            inspect_coco(write_coco(tmp_path, content, draw=False)), Findings
        )
        is refused
    )


def test_corners_given_as_sizes_are_suspected(tmp_path):
    content = large_coco(100)
    for record in content["annotations"][:30]:
        record["bbox"] = [645, 100, 700, 200]
    assert faults(tmp_path, content) == (
        "labels.json has 1 fault: 30 of 100 boxes lie entirely outside their image; "
        "COCO has [x, y, width, height] in pixels, and no other format fits either: "
        "were the images resized, or do boxes belong to other images?"
    )


def test_annotation_ids_used_twice_are_counted(tmp_path):
    labels = load(tmp_path, coco(annotations=(2, {"id": 1})))
    assert (len(labels.boxes), notes(labels)) == (
        6,
        [
            "labels.json: annotation ids used more than once: 1 (first: annotations[2] (id 1))"
        ],
    )


def test_file_listed_twice_is_counted(tmp_path):
    assert notes(load(tmp_path, coco(images=(1, {"file_name": "1.png"})))) == [
        "labels.json: files listed more than once: 1 (first: images[1] (id 2) 1.png)"
    ]


def test_category_name_used_twice_is_counted(tmp_path):
    assert notes(load(tmp_path, coco(categories=(1, {"name": "cat"})))) == [
        "labels.json: category names used more than once: 2 (first: categories[0] (id 3) cat)"
    ]


# ---- faults of records ----


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"category_id": 5},
            "annotations[2] (id 3): category_id 5 is unknown; known ids: 3, 7",
        ),
        (
            {"category_id": 3.5},
            "annotations[2] (id 3): category_id is 3.5, expected a non-negative integer",
        ),
        (
            {"category_id": "3"},
            "annotations[2] (id 3): category_id is '3', expected a non-negative integer",
        ),
        (
            {"category_id": True},
            "annotations[2] (id 3): category_id is True, expected a non-negative integer",
        ),
        (
            {"category_id": ...},
            'annotations[2] (id 3): no "category_id", expected a non-negative integer',
        ),
        (
            {"image_id": 99},
            "annotations[2] (id 3): image_id 99 is not among the images",
        ),
        (
            {"image_id": "1"},
            "annotations[2] (id 3): image_id is '1', expected a non-negative integer",
        ),
        (
            {"image_id": ...},
            'annotations[2] (id 3): no "image_id", expected a non-negative integer',
        ),
        (
            {"id": "3"},
            "annotations[2]: id is '3', expected a non-negative integer",
        ),
        (
            {"id": ...},
            'annotations[2]: no "id", expected a non-negative integer',
        ),
        (
            {"id": 1 << 63},
            "annotations[2]: id is 9223372036854775808, expected a non-negative integer",
        ),
        (
            {"bbox": [1, 2, 3]},
            "annotations[2] (id 3): bbox is [1, 2, 3], expected four numbers [x, y, width, height]",
        ),
        (
            {"bbox": [1, 2, "3", 4]},
            "annotations[2] (id 3): bbox is [1, 2, '3', 4], expected four numbers [x, y, width, height]",
        ),
        (
            {"bbox": [1, 2, float("nan"), 4]},
            "annotations[2] (id 3): bbox is [1, 2, nan, 4], expected four numbers [x, y, width, height]",
        ),
        (
            {"bbox": [1, 2, float("inf"), 4]},
            "annotations[2] (id 3): bbox is [1, 2, inf, 4], expected four numbers [x, y, width, height]",
        ),
        (
            {"bbox": None},
            "annotations[2] (id 3): bbox is None, expected four numbers [x, y, width, height]",
        ),
        (
            {"bbox": {"x": 1}},
            "annotations[2] (id 3): bbox is {'x': 1}, expected four numbers [x, y, width, height]",
        ),
        (
            {"bbox": ...},
            'annotations[2] (id 3): no "bbox", expected four numbers [x, y, width, height]',
        ),
        (
            {"area": "x"},
            "annotations[2] (id 3): area is 'x', expected a non-negative number",
        ),
        (
            {"area": -1},
            "annotations[2] (id 3): area is -1, expected a non-negative number",
        ),
        (
            {"area": float("nan")},
            "annotations[2] (id 3): area is nan, expected a non-negative number",
        ),
        (
            {"iscrowd": 2},
            "annotations[2] (id 3): iscrowd is 2, expected 0 or 1",
        ),
        (
            {"iscrowd": "0"},
            "annotations[2] (id 3): iscrowd is '0', expected 0 or 1",
        ),
    ],
)
def test_faulty_annotation_is_named_with_its_place_id_and_key(
    tmp_path, change, fault
):
    assert (
        faults(tmp_path, coco(annotations=(2, change)))
        == f"labels.json has 1 fault: {fault}"
    )


@pytest.mark.parametrize(
    "junk",
    [b'"\xb2"', b"9" * 5000, b"[" * 5000 + b"]" * 5000],
    ids=["no UTF-8", "digits", "nested"],
)
def test_record_that_no_parser_reads_is_named(tmp_path, junk):
    raw = (
        json.dumps(coco(annotations=(2, {"image_id": "?"})))
        .encode()
        .replace(b'"?"', junk)
    )
    (tmp_path / "labels.json").write_bytes(raw)
    with pytest.raises(
        DataError,
        match=r"labels\.json (has 1 fault: annotations\[2\]|is not valid JSON)",
    ):
        load_coco(tmp_path / "labels.json")


def test_faults_in_blocks_of_annotations_have_their_places_in_the_file(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(coco_records, "BLOCK", 4)
    content = large_coco(20)
    content["annotations"][9] |= {"bbox": None, "segmentation": None}
    content["annotations"][17]["category_id"] = 99
    assert faults(tmp_path, content).startswith(
        "labels.json has 2 faults: annotations[9] (id 9): "
        "bbox is None, expected four numbers [x, y, width, height]; "
        "annotations[17] (id 17): category_id 99 is unknown"
    )
    content["annotations"] = content["annotations"][:9]
    assert load(tmp_path, content).areas.tolist() == [1000.5] * 9


def test_long_value_is_shown_in_part(tmp_path):
    message = faults(tmp_path, coco(annotations=(2, {"bbox": "x" * 10_000})))
    assert (
        message == "labels.json has 1 fault: annotations[2] (id 3): "
        f"bbox is '{'x' * 79}..., expected four numbers [x, y, width, height]"
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"file_name": "../secret.png"},
            "images[2] (id 3): file_name is '../secret.png', which leaves the image folder",
        ),
        (
            {"file_name": "/etc/passwd"},
            (
                "images[2] (id 3): file_name is '/etc/passwd', which is an absolute path; "
                "names are relative to the image folder"
            ),
        ),
        (
            {"file_name": ""},
            "images[2] (id 3): file_name is '', expected a file name",
        ),
        (
            {"width": 0},
            "images[2] (id 3): size is 0 x 30, expected positive integers (pixels)",
        ),
        (
            {"height": -3},
            "images[2] (id 3): size is 40 x -3, expected positive integers (pixels)",
        ),
    ],
)
def test_faulty_image_is_named_with_its_place_and_id(tmp_path, change, fault):
    content = coco(images=(2, change))
    content["annotations"] = content["annotations"][:4]
    assert faults(tmp_path, content) == f"labels.json has 1 fault: {fault}"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"id": "3"}, "images[2]: id is '3', expected a non-negative integer"),
        ({"id": -1}, "images[2]: id is -1, expected a non-negative integer"),
        ({"id": 1}, "images[2] (id 1): this id is used twice"),
        ({"id": ...}, 'images[2]: no "id", expected a non-negative integer'),
        (
            {"file_name": ...},
            'images[2] (id 3): no "file_name", expected a file name',
        ),
        (
            {"file_name": 5},
            "images[2] (id 3): file_name is 5, expected a file name",
        ),
        (
            {"width": "40"},
            "images[2] (id 3): width is '40', expected a positive integer (pixels)",
        ),
        (
            {"height": 30.5},
            "images[2] (id 3): height is 30.5, expected a positive integer (pixels)",
        ),
        (
            {"height": ...},
            'images[2] (id 3): no "height", expected a positive integer (pixels)',
        ),
    ],
)
def test_image_that_cannot_be_counted_on_is_named_first(
    tmp_path, change, fault
):
    assert fault in faults(tmp_path, coco(images=(2, change)))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"id": 3}, "categories[1]: id 3 is used twice"),
        (
            {"id": -1},
            "categories[1]: id is -1, expected a non-negative integer",
        ),
        (
            {"id": "7"},
            "categories[1]: id is '7', expected a non-negative integer",
        ),
        ({"name": ""}, "categories[1] (id 7): the name is empty"),
        ({"name": ...}, 'categories[1] (id 7): no "name", expected a name'),
        ({"name": 5}, "categories[1] (id 7): name is 5, expected a name"),
    ],
)
def test_faulty_category_is_named(tmp_path, change, fault):
    assert fault in faults(tmp_path, coco(categories=(1, change)))


def test_negative_category_id_is_named_with_its_annotation(tmp_path):
    message = "annotations[2] (id 3): category_id is -1, expected a non-negative integer"
    assert (
        faults(tmp_path, coco(annotations=(2, {"category_id": -1})))
        == f"labels.json has 1 fault: {message}"
    )


def test_faults_of_several_records_are_listed_at_once(tmp_path):
    content = coco(annotations=(0, {"bbox": None}), images=(1, {"width": "x"}))
    content["annotations"][4]["category_id"] = 8
    message = faults(tmp_path, content)
    assert all(
        part in message
        for part in (
            "annotations[0] (id 1): bbox is None",
            "images[1] (id 2): width is 'x'",
            "annotations[4] (id 5): category_id 8",
        )
    )


def test_place_is_that_in_the_file_even_after_faulty_records(tmp_path):
    content = coco(annotations=(0, {"bbox": None}))
    content["annotations"][4]["category_id"] = 8
    assert "annotations[4] (id 5): category_id 8 is unknown" in faults(
        tmp_path, content
    )


def test_many_faults_are_counted_and_the_first_shown(tmp_path):
    content = large_coco(1000)
    for record in content["annotations"]:
        record["category_id"] = 99
    message = faults(tmp_path, content)
    assert message.startswith(
        "labels.json has 1,000 faults: annotations[0] (id 0): category_id 99 is unknown; known ids: 1, 2, 3,"
    )
    assert message.endswith(" ... and 980 more")
    assert message.count("category_id 99") == 20


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_record_that_is_not_an_object_is_named(tmp_path, part):
    content = sound_coco()
    content[part].append(5)
    assert (
        f"{part}[{len(content[part]) - 1}]: a int, expected an object"
        in faults(tmp_path, content)
    )


# ---- faults of the file ----


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (..., "is missing"),
        (None, "is a NoneType"),
        ({}, "is a dict"),
        ("x", "is a str"),
    ],
)
def test_list_that_is_missing_is_named(tmp_path, part, value, text):
    content = sound_coco()
    content[part] = value
    if value is ...:
        del content[part]
    assert (
        faults(tmp_path, json.dumps(content))
        == f'labels.json: "{part}" {text}, expected a list; '
        "COCO files have images, annotations and categories"
    )


@pytest.mark.parametrize("part", ["images", "categories"])
def test_list_without_records_is_refused(tmp_path, part):
    content = sound_coco()
    content[part] = content["annotations"] = []
    assert (
        faults(tmp_path, json.dumps(content))
        == f"labels.json has 1 fault: {part} is empty"
    )


def test_truncated_file_is_refused_with_line_and_column(tmp_path):
    text = json.dumps(sound_coco(), indent=1)
    cut = text[: text.index('"file_name": "2.png"') + 12]
    line = cut.count("\n") + 1
    assert (
        faults(tmp_path, cut)
        == "labels.json is not valid JSON: Expecting value, "
        f"line {line} column {len(cut) - cut.rfind(chr(10))}"
    )


@pytest.mark.parametrize("raw", [b"", b" \n\t "])
def test_empty_file_is_refused(tmp_path, raw):
    (tmp_path / "labels.json").write_bytes(raw)
    with pytest.raises(
        DataError, match="labels.json is not valid JSON: the file is empty$"
    ):
        load_coco(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("raw", "kind"),
    [(b"null", "NoneType"), (b"[]", "list"), (b"3", "int"), (b'"x"', "str")],
)
def test_file_without_an_object_is_refused(tmp_path, raw, kind):
    (tmp_path / "labels.json").write_bytes(raw)
    with pytest.raises(
        DataError,
        match=f"labels.json contains a {kind}, expected an object with lists images, "
        "annotations and categories$",
    ):
        load_coco(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"<html>", "is not valid JSON: Expecting value, line 1 column 1"),
        (b"[" * 200_000, "is not valid JSON: nested too deeply"),
        (
            b'{"images": "' + b"\xff" + b'"}',
            "is not valid JSON: not UTF-8 at byte 12",
        ),
        (b"9" * 5000, "is not valid JSON: Exceeds the limit"),
    ],
)
def test_file_that_is_not_json_is_refused(tmp_path, raw, reason):
    (tmp_path / "labels.json").write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_coco(tmp_path / "labels.json")
    assert str(caught.value).startswith(f"{tmp_path / 'labels.json'} {reason}")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(
        DataError,
        match="^annotation file .*/absent.json cannot be read: No such file or directory$",
    ):
        load_coco(tmp_path / "absent.json")


def test_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(
        DataError, match="^annotation file .* cannot be read: Is a directory$"
    ):
        load_coco(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_garbled_files_are_read_or_refused_by_name(tmp_path, seed):
    """A byte changed here and there: no exception but a `DataError` that names the file."""
    rng, raw = np.random.default_rng(seed), json.dumps(sound_coco()).encode()
    for _ in range(300):
        garbled = bytearray(raw)
        for _ in range(rng.integers(1, 4)):
            garbled[rng.integers(len(garbled))] = rng.choice(
                list(b'0123456789-.e"[]{},: nulltrue')
            )
        (tmp_path / "labels.json").write_bytes(garbled)
        try:
            load_coco(tmp_path / "labels.json")
        except DataError as error:
            assert str(tmp_path / "labels.json") in str(error)


# ---- contradictions within a record ----


def test_area_larger_than_its_box_is_used_and_reported(tmp_path):
    labels = load(tmp_path, coco(annotations=(2, {"area": 500})))
    assert labels.areas[2] == 500
    assert notes(labels) == [
        "labels.json: areas larger than their box, used as written: 1 "
        "(first: annotations[2] (id 3) 500.0)"
    ]


def test_box_that_contradicts_its_polygon_is_used_and_reported(tmp_path):
    polygon = [[20, 20, 30, 20, 30, 30]]
    content = coco(
        annotations=(
            2,
            {"bbox": [1, 2, 8, 9], "area": 72, "segmentation": polygon},
        )
    )
    labels = load(tmp_path, content)
    assert labels.boxes[2].tolist() == [1, 2, 9, 11]
    assert notes(labels) == [
        "labels.json: boxes that contradict their polygon or mask, the box is used: 1 "
        "(first: annotations[2] (id 3) [1, 2, 8, 9], outline [20, 20, 10, 10])"
    ]


def test_only_the_first_boxes_are_compared_at_the_start_of_a_run(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(coco_records, "COMPARED", 2)
    polygon = [[20, 20, 30, 20, 30, 30]]
    content = coco(annotations=(2, {"segmentation": polygon}))
    assert notes(load(tmp_path, content)) == []
    path = write_coco(tmp_path, content, draw=False)
    findings = examine_coco(path, compares_all=True).findings
    assert [note.kind for note in findings.notes] == [Kind.OTHER_OUTLINE]
