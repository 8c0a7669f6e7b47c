"""Forty label files with one fault each, once silent: every box that does not reach the loss is counted (K1).

This file has the counts. Each is compared with the summary at the start of training, and with `check.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from src.core.errors import DataError
from src.data.dataset.coco_dataset import CocoDetection
from src.data.transforms import Compose, Resize, SanitizeBoundingBoxes
from tests.fixtures.run_here import run_here

IMAGES, BOXES, WIDTH, HEIGHT = 100, 300, 400, 300
"""Three boxes in each image; files are 400 x 300 pixels wide and high."""

TRAINED_AT = (64, 64)

Labels = dict[str, Any]


def sound() -> Labels:
    """Return labels without a fault: boxes of 40 x 30 pixels and more, in a few places."""
    return {
        "images": [
            {
                "id": i,
                "file_name": f"{i:03}.png",
                "width": WIDTH,
                "height": HEIGHT,
            }
            for i in range(IMAGES)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": n // 3,
                "category_id": 1 + n % 2,
                "bbox": [
                    10.0 + 140 * (n % 3) + n % 7,
                    20.0 + 40 * (n % 4),
                    80.0 + n % 11,
                    60.0 + n % 13,
                ],
                "area": 4000.0,
                "iscrowd": 0,
            }
            for n in range(BOXES)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def update(count: int, **values: Any) -> Callable[[Labels], None]:
    """Return a change of the first record of each of the first images."""

    def change(labels: Labels) -> None:
        for record in labels["annotations"][: 3 * count : 3]:
            record.update(values)

    return change


def boxes(
    convert: Callable[..., list[float]], count: int = BOXES
) -> Callable[[Labels], None]:
    """Return a change of the boxes of the first records, x, y, w, h before."""

    def change(labels: Labels) -> None:
        for record in labels["annotations"][:count]:
            record["bbox"] = convert(*record["bbox"])

    return change


def without(key: str, count: int, **values: Any) -> Callable[[Labels], None]:
    """Return a change that removes a key from the first records and sets others."""

    def change(labels: Labels) -> None:
        for record in labels["annotations"][:count]:
            del record[key]
            record.update(values)

    return change


def again(count: int, **values: Any) -> Callable[[Labels], None]:
    """Return a change that appends copies of the first records under new ids."""

    def change(labels: Labels) -> None:
        labels["annotations"] += [
            {**record, "id": BOXES + n, **values}
            for n, record in enumerate(labels["annotations"][:count])
        ]

    return change


def both(*changes: Callable[[Labels], None]) -> Callable[[Labels], None]:
    """Return several changes in turn."""

    def change(labels: Labels) -> None:
        for one in changes:
            one(labels)

    return change


POLYGON = [[20, 30, 60, 30, 60, 90]]
RUNS = {
    "size": [HEIGHT, WIDTH],
    "counts": [
        HEIGHT * 20 + 30,
        60,
        *[HEIGHT - 60, 60] * 39,
        HEIGHT * WIDTH - HEIGHT * 59 - 90,
    ],
}
_MASK = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
_MASK[30:90, 20:60] = 1
COMPRESSED = {
    "size": [HEIGHT, WIDTH],
    "counts": masks.encode(_MASK)["counts"].decode(),
}


class Counted(NamedTuple):
    """Labels that are accepted, with the expected summary: the reason and the number of boxes."""

    change: Callable[[Labels], None]
    account: dict[str, int]
    total: int = BOXES
    findings: tuple[str, ...] = ()
    """Kinds that must be listed, with their number."""


COUNTED = {
    "no width": Counted(
        update(3, bbox=[5, 5, 0, 9]), {"without area or reversed, lost": 3}
    ),
    "no height": Counted(
        update(2, bbox=[5, 5, 9, 0]), {"without area or reversed, lost": 2}
    ),
    "reversed": Counted(
        update(4, bbox=[50, 50, -9, -9]), {"without area or reversed, lost": 4}
    ),
    "half reversed": Counted(
        update(1, bbox=[50, 50, 9, -9]), {"without area or reversed, lost": 1}
    ),
    "right of the image": Counted(
        update(3, bbox=[401, 5, 9, 9]), {"outside their image, lost": 3}
    ),
    "above the image": Counted(
        update(2, bbox=[5, -20, 9, 9]), {"outside their image, lost": 2}
    ),
    "over the border": Counted(
        update(7, bbox=[380, 5, 25, 9]), {"clipped to their image, changed": 7}
    ),
    "before the corner": Counted(
        update(5, bbox=[-3, -2, 25, 9]), {"clipped to their image, changed": 5}
    ),
    "over the border by rounding": Counted(
        update(7, bbox=[380, 5, 20.4, 9]), {}
    ),
    "crowds": Counted(update(4, iscrowd=1), {"crowd regions, left out": 4}),
    "ignore 1": Counted(
        update(5, ignore=1), {"flagged to be ignored, left out": 5}
    ),
    "ignore true": Counted(
        update(2, ignore=True), {"flagged to be ignored, left out": 2}
    ),
    "ignore and crowd": Counted(
        update(3, ignore=1, iscrowd=1), {"crowd regions, left out": 3}
    ),
    "ignore 0": Counted(update(9, ignore=0), {}),
    "empty box, polygon": Counted(
        update(6, bbox=[], segmentation=POLYGON),
        {"computed from a polygon or mask, changed": 6},
    ),
    "null box, runs": Counted(
        update(2, bbox=None, segmentation=RUNS),
        {"computed from a polygon or mask, changed": 2},
    ),
    "no box, compressed mask": Counted(
        without("bbox", 2, segmentation=COMPRESSED),
        {"computed from a polygon or mask, changed": 2},
    ),
    "box without area, polygon": Counted(
        update(3, bbox=[0, 0, 0, 0], segmentation=POLYGON),
        {"computed from a polygon or mask, changed": 3},
    ),
    "the same box twice": Counted(
        again(4), {"listed more than once, changed": 4}, BOXES + 4
    ),
    "the same box thrice": Counted(
        both(again(2), again(2, id=900)),
        {"listed more than once, changed": 4},
        BOXES + 4,
    ),
    "the same box as another class": Counted(
        again(4, category_id=2),
        {"listed more than once, changed": 2},
        BOXES + 4,
    ),
    "ten tiny boxes": Counted(
        update(10, bbox=[5, 5, 3, 3]),
        {"smaller than 1 pixel at 64 x 64, lost": 10},
    ),
    "thin boxes": Counted(
        update(8, bbox=[5, 5, 200, 2]),
        {"smaller than 1 pixel at 64 x 64, lost": 8},
    ),
    "tiny, reversed and outside": Counted(
        both(
            update(6, bbox=[5, 5, 3, 3]),
            update(4, bbox=[5, 5, -3, 3]),
            update(2, bbox=[500, 5, 3, 3]),
        ),
        {
            "smaller than 1 pixel at 64 x 64, lost": 2,
            "without area or reversed, lost": 2,
            "outside their image, lost": 2,
        },
    ),
    "no area in the file": Counted(
        without("area", 5),
        {},
        findings=("missing areas, computed from the box: 5",),
    ),
    "ids twice": Counted(
        update(3, id=7), {}, findings=("annotation ids used more than once: 3",)
    ),
}


class Refused(NamedTuple):
    """Labels that must be refused, with the expected message."""

    change: Callable[[Labels], None]
    text: str


REFUSED = {
    "four of 300 outside": Refused(
        update(4, bbox=[500, 5, 9, 9]), "4 of 300 boxes lie entirely outside"
    ),
    "empty box, no polygon": Refused(
        update(1, bbox=[]),
        "annotations[0] (id 0): bbox is [], expected four numbers",
    ),
    "fractions": Refused(
        boxes(
            lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]
        ),
        "all 300 boxes have numbers from 0 to 1, expected pixels, nearly all would fit as",
    ),
    "fractions of the centre": Refused(
        boxes(
            lambda x, y, w, h: [
                (x + w / 2) / WIDTH,
                (y + h / 2) / HEIGHT,
                w / WIDTH,
                h / HEIGHT,
            ]
        ),
        "cxcywh in fraction of the image",
    ),
    "fractions of corners": Refused(
        boxes(
            lambda x, y, w, h: [
                x / WIDTH,
                y / HEIGHT,
                (x + w) / WIDTH,
                (y + h) / HEIGHT,
            ]
        ),
        "nearly all would fit as xyxy in fraction of the image",
    ),
    "percent": Refused(
        boxes(
            lambda x, y, w, h: [
                100 * x / WIDTH,
                100 * y / HEIGHT,
                100 * w / WIDTH,
                100 * h / HEIGHT,
            ]
        ),
        "all 300 boxes lie within 0 to 100 and fill this range, although most images are larger",
    ),
    "corners": Refused(
        boxes(lambda x, y, w, h: [x, y, x + w, y + h]),
        "nearly all would fit as xyxy in pixels",
    ),
    "centres": Refused(
        boxes(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]),
        "nearly all would fit as cxcywh in pixels",
    ),
    "more than half without area": Refused(
        boxes(lambda x, y, w, h: [x, y, 0, h], 151),
        "151 of 300 boxes would be lost before the loss (151 without area",
    ),
    "all too small": Refused(
        boxes(lambda x, y, w, h: [x, y, 4, 3]),
        "300 of 300 boxes would be lost before the loss (300 smaller than 1 pixel",
    ),
    "not a number": Refused(
        update(1, bbox=[math.nan, 1, 2, 3]), "expected four numbers"
    ),
    "text": Refused(
        update(1, bbox=["1", "2", "3", "4"]), "expected four numbers"
    ),
    "ignore 2": Refused(update(1, ignore=2), "ignore is 2, expected 0 or 1"),
    "a box of no image": Refused(
        update(1, image_id=999), "image_id 999 is not among the images"
    ),
}


def test_there_are_forty_files():
    assert len(COUNTED) + len(REFUSED) == 40


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with the images of all files; they are flat, so that they are small and differ."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(IMAGES):
        Image.new("RGB", (WIDTH, HEIGHT), (i, 2 * i, 255 - i)).save(
            folder / f"{i:03}.png"
        )
    return folder


def spoiled(change: Callable[[Labels], None], folder) -> str:
    labels = sound()
    change(labels)
    path = folder / "labels.json"
    path.write_text(json.dumps(labels))
    return str(path)


def opened(path: str, images) -> CocoDetection:
    transforms = Compose(
        [Resize(TRAINED_AT), SanitizeBoundingBoxes(min_size=1)]
    )
    return CocoDetection(str(images), path, transforms)


@pytest.mark.parametrize("name", COUNTED)
def test_every_box_that_is_not_learned_as_it_stands_is_counted(
    name, images, tmp_path
):
    case = COUNTED[name]
    data = opened(spoiled(case.change, tmp_path), images)
    ledger = data.ledger()
    assert {
        f"{e.reason}, {e.effect}": e.count for e in ledger.entries
    } == case.account
    assert ledger.boxes == case.total
    learned = sum(
        len(data.transforms(data.raw_sample(i)).render()[1]["labels"])
        for i in range(len(data))
    )
    assert learned == ledger.learned
    described = data.labels.findings.describe()
    assert all(
        any(kind in line for line in described) for kind in case.findings
    )


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_would_be_learned_wrongly_are_refused_with_what_helps(
    name, images, tmp_path
):
    case = REFUSED[name]
    with pytest.raises(DataError) as caught:
        opened(
            spoiled(case.change, tmp_path), images
        ).ledger().raise_if_mostly_lost()
    assert case.text in str(caught.value)


@pytest.mark.parametrize("name", [*COUNTED, *REFUSED])
def test_check_shows_the_same_account_or_fault(name, images, tmp_path):
    case = COUNTED.get(name) or REFUSED[name]
    ended = run_here(
        "tools/dataset/check.py",
        "--annotations",
        spoiled(case.change, tmp_path),
        "--images",
        images,
        "--size",
        *TRAINED_AT,
        "--quick",
    )
    assert "this is a bug" not in ended.err
    if isinstance(case, Refused):
        assert ended.code == 3 and case.text in ended.out, ended.out
        return
    assert ended.code in (0, 3), ended.err
    for reason, count in case.account.items():
        shown = (
            f"of these, {reason.removesuffix(', changed')}"
            if reason.endswith(", changed")
            else reason
        )
        sign = "" if reason.endswith(", changed") else "-"
        assert any(
            line.split() == [*shown.split(), f"{sign}{count}"]
            for line in ended.out.splitlines()
        ), ended.out


def test_a_format_that_is_declared_is_read(images, tmp_path):
    """The same boxes come out of four formats, and none of them is lost."""
    expected = opened(spoiled(lambda _: None, tmp_path), images).labels.boxes
    for order, unit, convert in (
        ("xyxy", "pixels", lambda x, y, w, h: [x, y, x + w, y + h]),
        (
            "cxcywh",
            "fraction",
            lambda x, y, w, h: [
                (x + w / 2) / 400,
                (y + h / 2) / 300,
                w / 400,
                h / 300,
            ],
        ),
        (
            "yxyx",
            "permille",
            lambda x, y, w, h: [y / 0.3, x / 0.4, (y + h) / 0.3, (x + w) / 0.4],
        ),
        ("yxhw", "percent", lambda x, y, w, h: [y / 3, x / 4, h / 3, w / 4]),
    ):
        path = spoiled(boxes(convert), tmp_path)
        data = CocoDetection(str(images), path, box_order=order, box_unit=unit)
        assert data.ledger().learned == BOXES
        np.testing.assert_allclose(data.labels.boxes, expected, atol=1e-3)
