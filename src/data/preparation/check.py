"""Check of data sets: all faults and remarks in one pass, found by the same code as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.paths import did_you_mean_file
from ..dataset.coco_format import Examination, examine_coco
from ..dataset.findings import Findings, Kind, Note, place_of
from ..dataset.image_names import FileIndex, unsafe_file_name
from ..dataset.label_ledger import TOO_SMALL, LabelLedger
from ..dataset.picture import FLAG_TEXTS
from ..transforms.compose import Compose
from .check_report import (
    Checked,
    Entry,
    FileGroups,
    Group,
    Report,
    image_entries,
    image_entry,
)
from .data_set import DataSet
from .data_set_comparison import add_duplicates, compare_data_sets
from .image_file_check import CheckedImages, ImageCheck

_NOTES: dict[Kind, tuple[bool, str]] = {
    Kind.REPEATED_ANNOTATION: (True, "this id is used before"),
    Kind.FLAT: (True, "box without area"),
    Kind.OUTSIDE: (True, "box outside its image"),
    Kind.BEYOND: (False, "reaches beyond its image"),
    Kind.NO_AREA: (False, "no area"),
    Kind.LARGE_AREA: (False, "an area larger than its image"),
    Kind.BOX_COMPUTED: (False, "no box, but a polygon or mask"),
    Kind.OTHER_AREA: (False, "area larger than the box"),
    Kind.OTHER_OUTLINE: (False, "box and polygon or mask differ"),
    Kind.REPEATED_BOX: (False, "the same box as one before"),
    Kind.IGNORED: (False, "flagged to be ignored"),
    Kind.REPEATED_NAME: (False, "name used more than once"),
    Kind.TRUE_SIZE: (True, "not the size of the file"),
    Kind.REPEATED_FILE: (False, "file listed more than once"),
}
"""For the kinds that training fixes and counts: whether it is a fault here, because labels are lost or
ambiguous, and its description."""


def is_repaired(group: Group) -> bool:
    """Return whether training accepts the findings of a group: it repairs or drops them, and counts them."""
    return group.kind in {*_NOTES, Kind.OTHER_SIZE, Kind.CROWDED}


def check(
    data_sets: Sequence[DataSet],
    images: ImageCheck,
    *,
    queries: int | None = None,
    transforms: Compose | None = None,
) -> Report:
    """Find everything that training refuses, drops or fixes, in annotation files and images.

    Args:
        data_sets: one data set, or one for training and one for validation.
        images: check of the image files.
        queries: maximum number of objects that the detector can find in an image.
        transforms: transforms of the training data; the boxes that they drop in every epoch are counted.

    Raises:
        ConfigError: if an image folder does not exist.
    """
    report = Report([], [])
    for number, data in enumerate(data_sets):
        if not data.images.is_dir():
            hint = did_you_mean_file(data.images)
            raise ConfigError(
                f"{data.images} is not a folder; --images is where the files of {data.annotations} are{hint}"
            )
        learned = transforms if number == 0 else None
        checked = _check_one(data, images, queries, learned, report.groups)
        report.checked.append(checked)
    sound = [checked for checked in report.checked if checked]
    if len(sound) == 2:
        compare_data_sets(sound[0], sound[1], report.groups)
    add_duplicates(sound, report.groups)
    return report


def _check_one(
    data: DataSet,
    image_check: ImageCheck,
    queries: int | None,
    transforms: Compose | None,
    groups: list[Group],
) -> Checked | None:
    found = FileGroups(str(data.annotations), groups)
    try:
        true_sizes = image_check.true_sizes(data.images, data.follow_links)
        examined = examine_coco(
            data.annotations,
            true_sizes,
            data.box_format,
            compares_all=True,
        )
    except DataError as error:
        what = str(error).removeprefix(f"{data.annotations} ")
        what = what.removeprefix(f"{data.annotations}: ")
        found.add(Kind.NO_FILE, True, [Entry("", None, what)])
        return None
    _add_findings(found, examined.findings)
    images = look_at_images(data, examined, image_check)
    checked = Checked(data, examined, images, _ledger(examined, transforms))
    _add_images(found, checked)
    _add_objects(found, checked, queries)
    for flag, kind in FLAG_TEXTS.items():
        found.add(kind, False, image_entries(checked, images.flags[flag]))
    _add_losses(found, checked)
    return checked


def _add_findings(found: FileGroups, findings: Findings) -> None:
    """Add the faults and notes of an annotation file."""
    by_kind: dict[str, list[Entry]] = {}
    for fault in findings.faults:
        place = ""
        if fault.where:
            place = place_of(fault.where, fault.index, fault.id)
        entry = Entry(place, fault.id, fault.what)
        by_kind.setdefault(fault.kind, []).append(entry)
    for kind, entries in by_kind.items():
        found.add(kind, True, entries)
    for note in findings.notes:
        found.groups.append(_note_group(found.file, note))


def _add_images(found: FileGroups, checked: Checked) -> None:
    """Add the image files that cannot be used."""
    data = checked.data
    images = checked.images
    files = FileIndex(data.images)
    missing = []
    for index in images.missing:
        name = checked.examined.content.images[index].file_name
        what = _describe_missing(data, files, name)
        missing.append(image_entry(checked, index, what))
    found.add(Kind.MISSING, True, missing)
    leaving = []
    for index, target in images.leaving.items():
        what = f"leads out of {data.images} to {target}"
        leaving.append(image_entry(checked, index, what))
    found.add(Kind.LEAVING, True, leaving)
    unreadable = []
    for index, reason in images.unreadable.items():
        unreadable.append(image_entry(checked, index, reason))
    found.add(Kind.UNREADABLE, True, unreadable)


def _add_objects(
    found: FileGroups,
    checked: Checked,
    queries: int | None,
) -> None:
    """Add images with too many objects or none, and categories without any."""
    records = checked.examined.content.images
    rows = checked.examined.rows
    objects = rows["starts"].diff().numpy()
    if queries is not None:
        limit = f"only {queries} can be found; raise num_queries and num_top_queries, or say --queries"
        crowded = []
        for index in np.flatnonzero(objects > queries).tolist():
            what = f"{objects[index]} objects, {limit}"
            crowded.append(image_entry(checked, index, what))
        found.add(Kind.CROWDED, True, crowded)
    if not checked.examined.findings.faults and bool(rows["crowds"].all()):
        text = f"none of its {len(records)} images has a usable box"
        found.add(Kind.NOTHING, True, [Entry("", None, text)])
    empty = np.flatnonzero(objects == 0).tolist()
    found.add("images without objects", False, image_entries(checked, empty))
    used = set(rows["categories"].unique().tolist())
    unused = []
    names = checked.examined.categories.items()
    for position, (category, name) in enumerate(names):
        if position not in used:
            unused.append(Entry("", category, f"category {category} ({name})"))
    found.add("categories without a box", False, unused)


def _add_losses(found: FileGroups, checked: Checked) -> None:
    """Add the boxes that are lost between the file and the loss."""
    for entry in checked.ledger.entries:
        if entry.cause == "size":
            boxes = f"boxes {entry.reason}"
            text = f"{boxes}: {entry.count}; {TOO_SMALL}"
            found.add(boxes, False, [Entry("", None, text)])
    fault = checked.ledger.fault
    if fault and not checked.examined.findings.faults:
        found.add(Kind.LOST, True, [Entry("", None, fault)])


def _describe_missing(
    data: DataSet,
    files: FileIndex,
    name: str,
) -> str:
    similar = files.similar_to(name)
    hint = f", did you mean {similar!r}?" if similar else ""
    return f"not in {data.images}{hint}"


def _ledger(examined: Examination, transforms: Compose | None) -> LabelLedger:
    """Return the ledger of the labels from the file to the loss (as in `CocoDetection.ledger`)."""
    if transforms is None or not examined.content.images:
        return examined.ledger
    sizes = [(image.width, image.height) for image in examined.content.images]
    return examined.ledger.after(
        transforms.certain_losses, examined.rows, np.array(sizes, np.float64)
    )


def look_at_images(
    data: DataSet,
    examined: Examination,
    images: ImageCheck,
) -> CheckedImages:
    """Check the image files of a data set; file names that are faults themselves are not reported again."""
    names = []
    sizes = []
    unsafe = set()
    for index, record in enumerate(examined.content.images):
        name = record.file_name
        if unsafe_file_name(name) is not None:
            name = ""
            unsafe.add(index)
        names.append(name)
        sizes.append([_bounded(record.width), _bounded(record.height)])
    checked = images.look(
        data.images,
        names,
        np.array(sizes, np.int64).reshape(-1, 2),
        follow_links=data.follow_links,
        bit_depth=data.bit_depth,
    )
    checked.missing = [
        index for index in checked.missing if index not in unsafe
    ]
    return checked


def _bounded(side: int) -> int:
    """Return a width or height, limited to a range that an array can store."""
    return min(max(side, 0), 1 << 31)


def _note_group(file: str, note: Note) -> Group:
    is_fault, what = _NOTES.get(note.kind, (False, note.kind))
    count = len(note.index)

    def entries() -> Iterator[Entry]:
        for position in range(count):
            yield _note_entry(note, position, what)

    kind = Kind.OTHER_SIZE if note.kind == Kind.TRUE_SIZE else note.kind
    return Group(file, kind, is_fault, count, entries)


def _note_entry(
    note: Note,
    position: int,
    what: str,
) -> Entry:
    """Return the entry of one record of a note."""
    detail = note.detail(position)
    if note.kind == Kind.FLAT:
        what = "reversed box" if min(detail[2:]) < 0 else "box without area"
    if detail is not None:
        what = f"{what}: {detail}"
    record_id = int(note.ids[position])
    place = place_of(note.where, note.index[position], record_id)
    return Entry(place, record_id, what)
