"""Repairs of single records: for each kind of finding in each list, the function that fixes it.

A function changes one record in place and yields what it changed, or raises `DroppedRecord` if the record
cannot be used. The order of the repairs is that of `fix`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from ..dataset.decoding import ImageError, image_size
from ..dataset.findings import Kind
from ..dataset.image_names import unsafe_file_name
from ..dataset.misplaced_files import find_misplaced
from ..dataset.record_faults import is_id, meant_id
from ..dataset.segmentation import box_of_segmentation, mask_size
from .data_set import DataSet
from .records_in_repair import Record, RecordsInRepair, is_four_numbers


class DroppedRecord(Exception):  # noqa: N818 - no error, the end of a record
    """A record cannot be used."""


Repair = Callable[[RecordsInRepair, Record], Iterable[str]]
"""Repairs a record in place; returns what it changed, or raises `DroppedRecord`."""


def _numeric_ids(**keys: str | None) -> Repair:
    """Return a function that fixes ids, given the list that each of them refers to."""

    def fix_record(records: RecordsInRepair, record: Record) -> Iterator[str]:
        for key, where in keys.items():
            value = meant_id(record.get(key))
            change = f"{key} made an integer"
            if value is None and where is not None:
                value = records.renumbered[where].get(str(record.get(key)))
                change = f"{key} given a new number"
                if key == "id":
                    change = f"{where} given new ids"
            if value is None:
                raise DroppedRecord(f"no {key} that could be meant")
            if value is not record[key]:
                record[key] = value
                yield change

    return fix_record


def _annotation_ids(records: RecordsInRepair, record: Record) -> Iterator[str]:
    if meant_id(record.get("id")) is None:
        record["id"] = records.new_id()
        yield "annotation ids replaced"
    fix_ids = _numeric_ids(id=None, image_id="images", category_id="categories")
    yield from fix_ids(records, record)


def _new_annotation_id(
    records: RecordsInRepair, record: Record
) -> Iterator[str]:
    record["id"] = records.new_id()
    yield "annotation ids replaced"


def _box(records: RecordsInRepair, record: Record) -> Iterator[str]:
    numbers = _four_numbers(record.get("bbox"))
    if numbers is not None:
        record["bbox"] = numbers
        yield "boxes made four numbers"
        return
    yield from _box_from_segmentation(records, record)


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


def _usable_box(records: RecordsInRepair, record: Record) -> list[float] | None:
    """Return the box of the polygon, or of a mask with the size of the image."""
    segmentation = record.get("segmentation")
    masked = mask_size(segmentation)
    size = None
    if "image_id" in record:
        size = records.sizes.get(record["image_id"])
    if masked is not None and size is not None and masked != size:
        return None
    return box_of_segmentation(segmentation)


def _box_from_segmentation(
    records: RecordsInRepair, record: Record
) -> Iterator[str]:
    box = _usable_box(records, record)
    if box is None:
        raise DroppedRecord(
            "no four finite numbers, and no polygon or mask of its image"
        )
    record["bbox"] = box
    yield "boxes computed from their polygon or mask"


def _flat(records: RecordsInRepair, record: Record) -> Iterator[str]:
    """Turn around a box with negative width or height; a box without area cannot be fixed."""
    x, y, w, h = record["bbox"]
    if w == 0 or h == 0:
        raise DroppedRecord("no area")
    left = min(x, x + w)
    top = min(y, y + h)
    record["bbox"] = [left, top, abs(w), abs(h)]
    record.pop("area", None)
    yield "reversed boxes turned over"


def _outside(records: RecordsInRepair, record: Record) -> Iterator[str]:
    """Use the box of the polygon or mask if it lies in the image."""
    box = box_of_segmentation(record.get("segmentation"))
    width, height = records.sizes[record["image_id"]]
    if (
        box is None
        or box == record["bbox"]
        or box[0] >= width
        or box[1] >= height
    ):
        raise DroppedRecord("outside their image")
    record["bbox"] = box
    yield "boxes computed from their polygon or mask"


def _ignore(_: RecordsInRepair, record: Record) -> Iterator[str]:
    record["ignore"] = _flag(record.get("ignore"))
    yield "ignore flags set to 0 or 1"


def _flag(value: Any) -> int:
    """Return 0 or 1 for a flag in any form.

    Unknown values become 1, so that a flagged object is not learned.
    """
    text = str(value).strip().lower()
    return int(text not in ("", "none", "null", "false", "no", "0", "0.0"))


def _file_name(records: RecordsInRepair, record: Record) -> Iterator[str]:
    name = record.get("file_name")
    found = None
    if isinstance(name, str) and name:
        found = records.files.meant_by(name)
    if found is None:
        raise DroppedRecord("no file name that can be used")
    record["file_name"] = found
    yield "file names corrected"


def _clip(records: RecordsInRepair, record: Record) -> Iterator[str]:
    width, height = records.sizes[record["image_id"]]
    x, y, w, h = record["bbox"]
    x1 = max(x, 0)
    y1 = max(y, 0)
    clipped_width = min(x + w, width) - x1
    clipped_height = min(y + h, height) - y1
    record["bbox"] = [x1, y1, clipped_width, clipped_height]
    if isinstance(record.get("area"), int | float):
        record["area"] = min(record["area"], clipped_width * clipped_height)
    yield "boxes clipped to their image"


def _area(_: RecordsInRepair, record: Record) -> Iterator[str]:
    record.pop("area", None)
    box = record.get("bbox")
    if is_four_numbers(box):
        record["area"] = box[2] * box[3]
    yield "areas computed from the box"


def _crowd(_: RecordsInRepair, record: Record) -> Iterator[str]:
    record["iscrowd"] = _flag(record.get("iscrowd"))
    yield "crowd flags set to 0 or 1"


def _dropped(reason: str) -> Repair:
    def fix_record(*_: Any) -> NoReturn:
        raise DroppedRecord(reason)

    return fix_record


def _image_size(records: RecordsInRepair, record: Record) -> Iterator[str]:
    size = _size_of_file(records.data, record.get("file_name"))
    if size is None:
        raise DroppedRecord("no size, and no file that has one")
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


def _true_size(records: RecordsInRepair, record: Record) -> Iterator[str]:
    record["width"], record["height"] = records.sizes[record["id"]]
    yield "sizes of images taken from their files"


def _repeated_image(records: RecordsInRepair, record: Record) -> Iterable[str]:
    if records.first_names.get(record["id"]) == record.get("file_name"):
        raise DroppedRecord("listed twice")
    # it is unknown which of the two images the boxes belong to
    records.dropped_images.add(record["id"])
    return ()


def _category_name(_: RecordsInRepair, record: Record) -> Iterator[str]:
    name = record.get("name")
    if isinstance(name, int | float) and not isinstance(name, bool):
        record["name"] = str(name)
    else:
        record["name"] = f"class {record.get('id')}"
    yield "categories named"


def _repeated_category(
    records: RecordsInRepair, record: Record
) -> Iterable[str]:
    first = record
    for other in records.objects_of("categories"):
        if other.get("id") == record["id"]:
            first = other
            break
    if first.get("name") == record.get("name") and is_id(record["id"]):
        raise DroppedRecord("listed twice")
    return ()


REPAIRS: dict[tuple[str, str], Repair] = {
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
"""For a list and a kind of finding, the function that repairs the record; other kinds are left unchanged."""
