"""Clean copies of annotation files: the findings of `check` are fixed record by record.

This is repeated until nothing is left to fix. Records without a finding are copied byte for byte, including
data that detection does not use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count, cycle
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import msgspec
import numpy as np

from ...core.errors import ConfigError, DataError
from ...runtime.files import refuse_replacing, write_atomically
from ..dataset.box_formats import (
    COCO,
    LIKELY_FRACTION,
    BoxFormat,
    fitting,
    to_coco,
)
from ..dataset.coco_format import Examination, examine_records
from ..dataset.coco_records import (
    LISTS,
    is_box_missing,
    is_id,
    meant_id,
    parse_record,
    read_annotation_file,
    sound_records,
    split_records,
    unsafe_file_name,
)
from ..dataset.decoding import ImageError, image_size
from ..dataset.findings import Findings, Kind
from ..dataset.image_names import FileIndex
from ..dataset.misplaced_files import find_misplaced
from ..dataset.segmentation import box_of_segmentation, mask_size
from .check import DataSet, look_at_images
from .coco_json import encoded, write_records
from .image_file_check import ImageCheck
from .labelled_images import DECIMALS

MAX_ROUNDS = 12
"""Maximum number of rounds: fixing one fault can reveal another, for example when an image is found."""

SAME_FACTOR = 0.02
"""Maximum relative difference of the factors of width and height in a resized image, due to rounding."""

RIGHT_SIZE_FRACTION = 0.9
"""Fraction of boxes that fit the files if the sizes in the labels were written wrong."""

Record = dict[str, Any]


def _scale(
    record: Record,
    x: float,
    y: float,
) -> None:
    """Scale the box of an annotation, its area and its polygons, in place."""
    if not is_box_missing(record):
        left, top, width, height = record["bbox"]
        scaled = [left * x, top * y, width * x, height * y]
        record["bbox"] = [round(value, DECIMALS) for value in scaled]
    if isinstance(record.get("area"), int | float):
        record["area"] = record["area"] * x * y
    rings = record.get("segmentation")
    if not isinstance(rings, list):
        return
    if all(isinstance(ring, list) for ring in rings):
        record["segmentation"] = [_scaled_ring(ring, x, y) for ring in rings]


def _scaled_ring(
    ring: list[float],
    x: float,
    y: float,
) -> list[float]:
    """Return a polygon x1, y1, x2, y2, ... scaled by a factor for each axis."""
    factors = cycle((x, y))
    return [value * factor for value, factor in zip(ring, factors)]


def _were_resized(
    boxes: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
) -> bool:
    """Return whether images were resized after their boxes were made.

    Args:
        boxes: `[M, 4]`, x, y, width, height in pixels.
        old: `[M, 2]`, (width, height) of each box's image in the labels.
        new: `[M, 2]`, the same of the image file.
    """
    if fitting(boxes, old) < LIKELY_FRACTION:
        return False
    factors = new / old
    ratios = factors[:, 0] / factors[:, 1]
    same_factor = (np.abs(ratios - 1) < SAME_FACTOR).mean()
    if same_factor >= LIKELY_FRACTION:
        return True
    return fitting(boxes, new) < RIGHT_SIZE_FRACTION


class _Dropped(Exception):  # noqa: N818 - no error, the end of a record
    """A record cannot be used."""


def fix(
    data: DataSet,
    output: Path,
    images: ImageCheck,
    *,
    box_format: BoxFormat | None = None,
) -> Counter[str]:
    """Write a clean copy of an annotation file; images are neither changed nor copied.

    Faulty records are repaired if possible, and dropped otherwise.

    Args:
        data: data set to fix.
        output: path of the copy.
        images: check of the image files.
        box_format: format of `bbox` if it is not COCO's x, y, width, height in pixels; it is converted.

    Returns:
        The number of changes of each kind.

    Raises:
        ConfigError: if the copy would replace a file of the data.
        DataError: if the file cannot be read as COCO, or its boxes look like another format and none is
            given.
    """
    _refuse_replacing(data.annotations, output)
    box_format = box_format or data.box_format
    content = split_records(
        read_annotation_file(data.annotations), data.annotations
    )
    fixing = _Fixing(data, content)
    if box_format not in (None, COCO):
        fixing.convert_boxes(box_format)
    for _ in range(MAX_ROUNDS):
        findings = Findings(data.annotations)
        examined = examine_records(
            sound_records(content, findings),
            findings,
            images.true_sizes(data.images, data.follow_links),
            None if box_format is None else COCO,
        )
        if box_format is None and fixing.rescale(examined):
            continue
        _refuse_other_format(findings)
        if fixing.fix_records(examined):
            continue
        if not fixing.fix_images(examined, images):
            break
    write_atomically(output, lambda file: write_records(file, content))
    return fixing.changes


def _refuse_other_format(findings: Findings) -> None:
    """Raise `DataError` if boxes look like another format."""
    for fault in findings.faults:
        if fault.kind == Kind.BOX_FORMAT:
            raise DataError(
                f"{findings.path}: {fault.what}; --boxes xywh --units pixels declares that they are in "
                "COCO's format, and clips and drops them as they are"
            )


class _Fixing:
    """The records of a file while they are being fixed."""

    def __init__(self, data: DataSet, content: dict[str, Any]) -> None:
        self.data = data
        self.content = content
        self.changes: Counter[str] = Counter()
        self._examined: Examination | None = None
        self._new_ids: Iterator[int] | None = None
        self.sizes: dict[int, tuple[int, int]] = {}
        self.first_names: dict[int, str] = {}
        self.dropped_images: set[int] = set()
        self.files = FileIndex(data.images)
        self.renumbered = {
            where: self._new_numbers(where)
            for where in ("images", "categories")
        }

    def convert_boxes(self, given: BoxFormat) -> None:
        """Convert all boxes to x, y, width, height in pixels, except boxes that are not four numbers."""
        sizes = self._sizes_of_images()
        for index, raw in enumerate(self.content["annotations"]):
            record = parse_record(raw)
            box = record.get("bbox") if isinstance(record, dict) else None
            if not _is_four_numbers(box):
                continue
            size = sizes.get(meant_id(record.get("image_id")))
            if size is None:
                if given.unit != "pixels":
                    continue  # the image is not listed; the box is dropped later
                size = (1, 1)  # not used by formats in pixels
            boxes = np.array([box], float)
            converted = to_coco(boxes, np.array([size], float), given)[
                0
            ].tolist()
            record["bbox"] = [round(value, DECIMALS) for value in converted]
            record.pop("area", None)  # it belonged to the wrong box
            self._close("annotations", index, record)
            self.changes[f"boxes converted from {given}"] += 1

    def _new_numbers(self, where: str) -> dict[str, int]:
        """Return new ids, by the text of the old id.

        Only records whose ids do not represent non-negative integers get a new one.
        """
        used = set()
        texts: dict[str, None] = {}
        for record in self.objects_of(where):
            old = record.get("id")
            meant = meant_id(old)
            used.add(meant)
            if meant is not None or not isinstance(old, str | int | float):
                continue
            if old != "":
                texts[str(old)] = None
        free = (number for number in count(1) if number not in used)
        return dict(zip(texts, free))

    def objects_of(self, where: str) -> Iterator[Record]:
        """Yield the records of a list that are JSON objects."""
        for record in map(parse_record, self.content[where]):
            if isinstance(record, dict):
                yield record

    def _sizes_of_images(self) -> dict[int | None, tuple[int, int]]:
        """Return (width, height) by image id, for the records that have all three."""
        sizes = {}
        for record in self.objects_of("images"):
            width = record.get("width")
            height = record.get("height")
            if is_id(width) and is_id(height):
                sizes[meant_id(record.get("id"))] = (width, height)
        return sizes

    def rescale(self, examined: Examination) -> bool:
        """Scale the boxes of images that were resized after they were labelled; return whether there are any.

        If the sizes of files and labels differ, either the labels have wrong sizes, or the files were
        resized. In the second case the boxes fit the labelled sizes, and they do not fit the files, or width
        and height differ by the same factor.
        """
        resized = []
        for note in examined.findings.notes:
            if note.kind == Kind.TRUE_SIZE:
                resized += note.index.tolist()
        if not resized:
            return False
        true_sizes = _sizes_by_id(examined)
        written: dict[int, tuple[int, int]] = {}
        for index in resized:
            record = self._open("images", index)
            written[record["id"]] = (record["width"], record["height"])
        boxes = examined.content.annotations
        rows = np.flatnonzero(np.isin(boxes.image_id, list(written)))
        if not len(rows):
            return False
        ids = boxes.image_id[rows].tolist()
        old = np.array([written[image_id] for image_id in ids], float)
        new = np.array([true_sizes[image_id] for image_id in ids], float)
        if not _were_resized(boxes.bbox[rows], old, new):
            return False
        places = examined.content.places["annotations"][rows]
        self._scale_boxes(places.tolist(), (new / old).tolist())
        for index in resized:
            record = self._open("images", index)
            record["width"], record["height"] = true_sizes[record["id"]]
            self._close("images", index, record)
            self.changes["sizes of images taken from their files"] += 1
        return True

    def _scale_boxes(
        self, places: Sequence[int], factors: Sequence[Sequence[float]]
    ) -> None:
        """Scale annotations.

        Args:
            places: positions of the annotations in the file.
            factors: factors along x and y for each of them.
        """
        change = (
            "boxes scaled to the size of their image file, which was resized"
        )
        for place, (x, y) in zip(places, factors):
            record = self._open("annotations", place)
            _scale(record, x, y)
            self._close("annotations", place, record)
            self.changes[change] += 1

    def fix_records(self, examined: Examination) -> bool:
        """Fix the findings of the annotation file; return whether anything was changed."""
        before = self.changes.total()
        self.sizes = _sizes_by_id(examined)
        self.first_names = {}
        for image in examined.content.images:
            self.first_names.setdefault(image.id, image.file_name)
        self.dropped_images = set()
        self._examined = examined
        self._new_ids = None
        for fault in examined.findings.faults:
            if fault.where:
                self._fix(fault.where, fault.index, fault.kind)
        for note in examined.findings.notes:
            for index in note.index.tolist():
                self._fix(note.where, index, note.kind)
        self._drop_boxes_of_dropped_images(examined)
        self._remove_dropped()
        return self.changes.total() > before

    def fix_images(self, examined: Examination, images: ImageCheck) -> bool:
        """Fix the findings of the image files; return whether anything was changed."""
        before = self.changes.total()
        checked = look_at_images(self.data, examined, images)
        places = examined.content.places["images"]
        self.dropped_images = set()
        for index in checked.missing:
            self._correct_name(int(places[index]))
        if (
            self.changes.total() > before
        ):  # look again before anything is dropped
            return True
        change = "images dropped: no file that can be read"
        for index in (*checked.missing, *checked.leaving, *checked.unreadable):
            self.dropped_images.add(examined.content.images[index].id)
            self._drop("images", int(places[index]), change)
        self._drop_boxes_of_dropped_images(examined)
        self._remove_dropped()
        return self.changes.total() > before

    def _correct_name(self, index: int) -> None:
        """Correct the name of an image whose file does not exist, if it clearly refers to another file.

        A file with another suffix is accepted if no other image has it.
        """
        record = self._open("images", index)
        found = self.files.meant_by(record["file_name"])
        if found is None:
            found = self.files.with_other_suffix(record["file_name"])
            if found in self._listed_names:
                found = None
        if found is not None:
            record["file_name"] = found
            self._close("images", index, record)
            self.changes["file names corrected"] += 1

    @cached_property
    def _listed_names(self) -> set[str]:
        """All file names in the annotation file before fixing."""
        names = set()
        for record in self.objects_of("images"):
            name = record.get("file_name")
            if isinstance(name, str):
                names.add(name)
        return names

    def new_id(self) -> int:
        """Return an annotation id that is not used."""
        if self._new_ids is None:
            assert self._examined is not None, (
                "ids are needed after an examination"
            )
            content = self._examined.content
            used = set(content.annotations.id.tolist())
            used |= content.lost["annotations"]
            self._new_ids = (i for i in count(1) if i not in used)
        return next(self._new_ids)

    def _fix(
        self,
        where: str,
        index: int,
        kind: str,
    ) -> None:
        if kind == Kind.NO_OBJECT:
            self._drop(
                where, index, f"{_CALLED[where]} dropped: not a JSON object"
            )
        fixer = _FIXERS.get((where, kind))
        if fixer is None or self.content[where][index] is None:
            return
        try:
            record = self._open(where, index)
            for change in fixer(self, record):
                self.changes[change] += 1
            self._close(where, index, record)
        except _Dropped as reason:
            self._drop(where, index, f"{_CALLED[where]} dropped: {reason}")

    def _open(self, where: str, index: int) -> Record:
        """Return a record as a dictionary that may be changed."""
        return parse_record(self.content[where][index])

    def _close(
        self,
        where: str,
        index: int,
        record: Record,
    ) -> None:
        """Store a changed record in the form that needs the least memory."""
        self.content[where][index] = msgspec.Raw(encoded(record))

    def _drop(
        self,
        where: str,
        index: int,
        change: str,
    ) -> None:
        if self.content[where][index] is not None:
            self.content[where][index] = None
            self.changes[change] += 1

    def _drop_boxes_of_dropped_images(self, examined: Examination) -> None:
        content = examined.content
        orphaned = np.isin(
            content.annotations.image_id, list(self.dropped_images)
        )
        for place in content.places["annotations"][orphaned].tolist():
            self._drop(
                "annotations", place, "boxes dropped: their image was dropped"
            )
        change = "images dropped: two of them have one id"
        places = content.places["images"].tolist()
        for image, place in zip(content.images, places):
            if image.id in self.dropped_images:
                self._drop("images", place, change)

    def _remove_dropped(self) -> None:
        for where in LISTS:
            kept = [
                record for record in self.content[where] if record is not None
            ]
            self.content[where] = kept


def _sizes_by_id(examined: Examination) -> dict[int, tuple[int, int]]:
    """Return (width, height) of each valid image by its id."""
    sizes = {}
    for image in examined.content.images:
        sizes[image.id] = (image.width, image.height)
    return sizes


# ---- one kind of finding, one record ----


_Fixer = Callable[[_Fixing, Record], Iterable[str]]
"""Repairs a record in place; returns what it changed, or raises `_Dropped`."""


def _numeric_ids(**keys: str | None) -> _Fixer:
    """Return a function that fixes ids, given the list that each of them refers to."""

    def fix_record(fixing: _Fixing, record: Record) -> Iterator[str]:
        for key, where in keys.items():
            value = meant_id(record.get(key))
            change = f"{key} made an integer"
            if value is None and where is not None:
                value = fixing.renumbered[where].get(str(record.get(key)))
                change = f"{key} given a new number"
                if key == "id":
                    change = f"{where} given new ids"
            if value is None:
                raise _Dropped(f"no {key} that could be meant")
            if value is not record[key]:
                record[key] = value
                yield change

    return fix_record


def _annotation_ids(fixing: _Fixing, record: Record) -> Iterator[str]:
    if meant_id(record.get("id")) is None:
        record["id"] = fixing.new_id()
        yield "annotation ids replaced"
    fix_ids = _numeric_ids(id=None, image_id="images", category_id="categories")
    yield from fix_ids(fixing, record)


def _new_annotation_id(fixing: _Fixing, record: Record) -> Iterator[str]:
    record["id"] = fixing.new_id()
    yield "annotation ids replaced"


def _box(fixing: _Fixing, record: Record) -> Iterator[str]:
    numbers = _four_numbers(record.get("bbox"))
    if numbers is not None:
        record["bbox"] = numbers
        yield "boxes made four numbers"
        return
    yield from _box_from_segmentation(fixing, record)


def _four_numbers(box: Any) -> list[float] | None:
    """Return the four finite numbers of a box in another notation, or None.

    These are texts, one text, a list in a list, and named numbers.
    """
    if isinstance(box, dict):
        box = _values_of_names(box)
    if isinstance(box, str):
        box = box.strip("[]() ").replace(",", " ").split()
    if isinstance(box, list) and len(box) == 1:
        box = box[0]
    if not isinstance(box, list) or len(box) != 4:
        return None
    if any(isinstance(value, bool) for value in box):
        return None
    try:
        numbers = [float(value) for value in box]
    except (TypeError, ValueError, OverflowError):
        return None
    if all(abs(value) < 1e300 for value in numbers):  # False for NaN
        return numbers
    return None


def _values_of_names(box: dict[str, Any]) -> list[Any] | None:
    """Return x, y, width and height of a box whose numbers have names."""
    for keys in _BOX_KEYS:
        if set(keys) <= box.keys():
            return [box[key] for key in keys]
    return None


_BOX_KEYS = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
)
"""Names of x, y, width and height in the output of some tools."""


def _usable_box(fixing: _Fixing, record: Record) -> list[float] | None:
    """Return the box of the polygon, or of a mask with the size of the image."""
    segmentation = record.get("segmentation")
    masked = mask_size(segmentation)
    size = None
    if "image_id" in record:
        size = fixing.sizes.get(record["image_id"])
    if masked is not None and size is not None and masked != size:
        return None
    return box_of_segmentation(segmentation)


def _box_from_segmentation(fixing: _Fixing, record: Record) -> Iterator[str]:
    box = _usable_box(fixing, record)
    if box is None:
        raise _Dropped(
            "no four finite numbers, and no polygon or mask of its image"
        )
    record["bbox"] = box
    yield "boxes computed from their polygon or mask"


def _flat(fixing: _Fixing, record: Record) -> Iterator[str]:
    """Turn around a box with negative width or height; a box without area cannot be fixed."""
    x, y, w, h = record["bbox"]
    if w == 0 or h == 0:
        raise _Dropped("no area")
    left = min(x, x + w)
    top = min(y, y + h)
    record["bbox"] = [left, top, abs(w), abs(h)]
    record.pop("area", None)
    yield "reversed boxes turned over"


def _outside(fixing: _Fixing, record: Record) -> Iterator[str]:
    """Use the box of the polygon or mask if it lies in the image."""
    box = box_of_segmentation(record.get("segmentation"))
    width, height = fixing.sizes[record["image_id"]]
    if (
        box is None
        or box == record["bbox"]
        or box[0] >= width
        or box[1] >= height
    ):
        raise _Dropped("outside their image")
    record["bbox"] = box
    yield "boxes computed from their polygon or mask"


def _ignore(_: _Fixing, record: Record) -> Iterator[str]:
    record["ignore"] = _flag(record.get("ignore"))
    yield "ignore flags set to 0 or 1"


def _flag(value: Any) -> int:
    """Return 0 or 1 for a flag in any form.

    Unknown values become 1, so that a flagged object is not learned.
    """
    text = str(value).strip().lower()
    return int(text not in ("", "none", "null", "false", "no", "0", "0.0"))


def _file_name(fixing: _Fixing, record: Record) -> Iterator[str]:
    name = record.get("file_name")
    found = None
    if isinstance(name, str) and name:
        found = fixing.files.meant_by(name)
    if found is None:
        raise _Dropped("no file name that can be used")
    record["file_name"] = found
    yield "file names corrected"


def _clip(fixing: _Fixing, record: Record) -> Iterator[str]:
    width, height = fixing.sizes[record["image_id"]]
    x, y, w, h = record["bbox"]
    x1 = max(x, 0)
    y1 = max(y, 0)
    clipped_width = min(x + w, width) - x1
    clipped_height = min(y + h, height) - y1
    record["bbox"] = [x1, y1, clipped_width, clipped_height]
    if isinstance(record.get("area"), int | float):
        record["area"] = min(record["area"], clipped_width * clipped_height)
    yield "boxes clipped to their image"


def _area(_: _Fixing, record: Record) -> Iterator[str]:
    record.pop("area", None)
    box = record.get("bbox")
    if _is_four_numbers(box):
        record["area"] = box[2] * box[3]
    yield "areas computed from the box"


def _is_four_numbers(box: Any) -> TypeGuard[list[float]]:
    """Return whether a value is a list of four numbers."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(isinstance(value, int | float) for value in box)


def _crowd(_: _Fixing, record: Record) -> Iterator[str]:
    record["iscrowd"] = _flag(record.get("iscrowd"))
    yield "crowd flags set to 0 or 1"


def _dropped(reason: str) -> _Fixer:
    def fix_record(*_: Any) -> NoReturn:
        raise _Dropped(reason)

    return fix_record


def _image_size(fixing: _Fixing, record: Record) -> Iterator[str]:
    size = _size_of_file(fixing.data, record.get("file_name"))
    if size is None:
        raise _Dropped("no size, and no file that has one")
    record["width"], record["height"] = size
    yield "sizes of images taken from their files"


def _size_of_file(data: DataSet, name: Any) -> tuple[int, int] | None:
    """Return (width, height) of an image as displayed, or None if it must not or cannot be opened."""
    if not isinstance(name, str) or unsafe_file_name(name) is not None:
        return None
    missing, leaving = find_misplaced(data.images, [name])
    if missing or (leaving and not data.follow_links):
        return None
    try:
        _, upright = image_size(data.images / name)
    except ImageError:
        return None
    return upright


def _true_size(fixing: _Fixing, record: Record) -> Iterator[str]:
    record["width"], record["height"] = fixing.sizes[record["id"]]
    yield "sizes of images taken from their files"


def _repeated_image(fixing: _Fixing, record: Record) -> Iterable[str]:
    if fixing.first_names.get(record["id"]) == record.get("file_name"):
        raise _Dropped("listed twice")
    # it is unknown which of the two images the boxes belong to
    fixing.dropped_images.add(record["id"])
    return ()


def _category_name(_: _Fixing, record: Record) -> Iterator[str]:
    name = record.get("name")
    if isinstance(name, int | float) and not isinstance(name, bool):
        record["name"] = str(name)
    else:
        record["name"] = f"class {record.get('id')}"
    yield "categories named"


def _repeated_category(fixing: _Fixing, record: Record) -> Iterable[str]:
    first = record
    for other in fixing.objects_of("categories"):
        if other.get("id") == record["id"]:
            first = other
            break
    if first.get("name") == record.get("name") and is_id(record["id"]):
        raise _Dropped("listed twice")
    return ()


_CALLED = {
    "images": "images",
    "annotations": "boxes",
    "categories": "categories",
}

_FIXERS: dict[tuple[str, str], _Fixer] = {
    ("images", Kind.BAD_ID): _numeric_ids(id="images"),
    ("images", Kind.BAD_FILE_NAME): _file_name,
    ("images", Kind.BAD_SIZE): _image_size,
    ("images", Kind.TRUE_SIZE): _true_size,
    ("images", Kind.REPEATED_IMAGE): _repeated_image,
    ("categories", Kind.BAD_ID): _numeric_ids(id="categories"),
    ("categories", Kind.BAD_NAME): _category_name,
    ("categories", Kind.REPEATED_CATEGORY): _repeated_category,
    ("annotations", Kind.BAD_ID): _annotation_ids,
    ("annotations", Kind.BAD_BOX): _box,
    ("annotations", Kind.BAD_AREA): _area,
    ("annotations", Kind.BAD_CROWD): _crowd,
    ("annotations", Kind.ORPHAN): _dropped("their image is not listed"),
    ("annotations", Kind.UNKNOWN_CATEGORY): _dropped(
        "their category is not listed"
    ),
    ("annotations", Kind.REPEATED_ANNOTATION): _new_annotation_id,
    ("annotations", Kind.BAD_IGNORE): _ignore,
    ("annotations", Kind.BOX_COMPUTED): _box_from_segmentation,
    ("annotations", Kind.REPEATED_BOX): _dropped("duplicate box"),
    ("annotations", Kind.FLAT): _flat,
    ("annotations", Kind.OUTSIDE): _outside,
    ("annotations", Kind.BEYOND): _clip,
    ("annotations", Kind.NO_AREA): _area,
    ("annotations", Kind.LARGE_AREA): _area,
}
"""Functions that fix each kind of finding in a list; other kinds are left unchanged."""


def copies_of(data_sets: Sequence[DataSet], folder: Path) -> list[DataSet]:
    """Return the data sets of the clean copies in a folder.

    The files are `train.json`, and `val.json` if there are two data sets.

    Raises:
        ConfigError: if a copy would replace a file of the data.
    """
    copies = []
    for data, name in zip(data_sets, ("train.json", "val.json")):
        copies.append(replace(data, annotations=folder / name, box_format=None))
    for data in data_sets:
        for copy in copies:
            _refuse_replacing(data.annotations, copy.annotations)
    return copies


def describe(
    data: DataSet,
    output: Path,
    changes: Counter[str],
) -> Iterator[str]:
    """Yield the changes, one line per kind."""
    unchanged = "" if changes else ", nothing had to be changed"
    yield f"{output}: a clean copy of {data.annotations}{unchanged}"
    for change, number in changes.items():
        yield f"  {number:6} {change}"


def _refuse_replacing(annotations: Path, output: Path) -> None:
    if (
        output.exists()
        and annotations.exists()
        and output.samefile(annotations)
    ):
        raise ConfigError(
            f"--fix would replace {annotations}; name another folder"
        )
    refuse_replacing(output)
