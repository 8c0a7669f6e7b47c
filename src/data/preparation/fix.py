"""Clean copies of annotation files: the findings of `check` are fixed record by record.

This is repeated until nothing is left to fix. Records without a finding are copied byte for byte, including
data that detection does not use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...core.errors import ConfigError, DataError
from ...runtime.files import refuse_replacing, write_atomically
from ..dataset.annotation_text import read_annotation_file, split_records
from ..dataset.box_formats import COCO, BoxFormat
from ..dataset.coco_format import Examination, examine_records
from ..dataset.coco_records import sound_records
from ..dataset.findings import Findings, Kind
from .box_conversion import convert_boxes, rescale_boxes
from .check import look_at_images
from .coco_json import write_records
from .data_set import DataSet
from .image_file_check import ImageCheck
from .record_repairs import REPAIRS, DroppedRecord
from .records_in_repair import RecordsInRepair

MAX_ROUNDS = 12
"""Maximum number of rounds: fixing one fault can reveal another, for example when an image is found."""

_CALLED = {
    "images": "images",
    "annotations": "boxes",
    "categories": "categories",
}
"""For each list, the word for its records in the names of changes."""


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
    records = RecordsInRepair(data, content)
    if box_format not in (None, COCO):
        convert_boxes(records, box_format)
    for _ in range(MAX_ROUNDS):
        findings = Findings(data.annotations)
        examined = examine_records(
            sound_records(content, findings),
            findings,
            images.true_sizes(data.images, data.follow_links),
            None if box_format is None else COCO,
        )
        if box_format is None and rescale_boxes(records, examined):
            continue
        _refuse_other_format(findings)
        if _fix_records(records, examined):
            continue
        if not _fix_images(records, examined, images):
            break
    write_atomically(output, lambda file: write_records(file, content))
    return records.changes


def _refuse_other_format(findings: Findings) -> None:
    """Raise `DataError` if boxes look like another format."""
    for fault in findings.faults:
        if fault.kind == Kind.BOX_FORMAT:
            raise DataError(
                f"{findings.path}: {fault.what}; --boxes xywh --units pixels declares that they are in "
                "COCO's format, and clips and drops them as they are"
            )


def _fix_records(records: RecordsInRepair, examined: Examination) -> bool:
    """Fix the findings of the annotation file; return whether anything was changed."""
    before = records.changes.total()
    records.begin_round(examined)
    for fault in examined.findings.faults:
        if fault.where:
            _repair(records, fault.where, fault.index, fault.kind)
    for note in examined.findings.notes:
        for index in note.index.tolist():
            _repair(records, note.where, index, note.kind)
    records.drop_boxes_of_dropped_images(examined)
    records.remove_dropped()
    return records.changes.total() > before


def _fix_images(
    records: RecordsInRepair, examined: Examination, images: ImageCheck
) -> bool:
    """Fix the findings of the image files; return whether anything was changed."""
    before = records.changes.total()
    checked = look_at_images(records.data, examined, images)
    places = examined.content.places["images"]
    records.dropped_images = set()
    for index in checked.missing:
        _correct_name(records, int(places[index]))
    if records.changes.total() > before:
        return True  # look again before anything is dropped
    change = "images dropped: no file that can be read"
    for index in (*checked.missing, *checked.leaving, *checked.unreadable):
        records.dropped_images.add(examined.content.images[index].id)
        records.drop("images", int(places[index]), change)
    records.drop_boxes_of_dropped_images(examined)
    records.remove_dropped()
    return records.changes.total() > before


def _correct_name(records: RecordsInRepair, index: int) -> None:
    """Correct the name of an image whose file does not exist, if it clearly refers to another file.

    A file with another suffix is accepted if no other image has it.
    """
    record = records.record_at("images", index)
    found = records.files.meant_by(record["file_name"])
    if found is None:
        found = records.files.with_other_suffix(record["file_name"])
        if found in records.listed_names:
            found = None
    if found is not None:
        record["file_name"] = found
        records.store("images", index, record)
        records.changes["file names corrected"] += 1


def _repair(
    records: RecordsInRepair, where: str, index: int, kind: str
) -> None:
    """Repair or drop one record because of a finding; kinds without a repair leave it unchanged."""
    if kind == Kind.NO_OBJECT:
        records.drop(
            where, index, f"{_CALLED[where]} dropped: not a JSON object"
        )
    repair = REPAIRS.get((where, kind))
    if repair is None or records.content[where][index] is None:
        return
    try:
        record = records.record_at(where, index)
        for change in repair(records, record):
            records.changes[change] += 1
        records.store(where, index, record)
    except DroppedRecord as reason:
        records.drop(where, index, f"{_CALLED[where]} dropped: {reason}")


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
