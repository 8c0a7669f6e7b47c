"""Check of data sets: all faults and remarks in one pass, found by the same code as in training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ...core.build import create
from ...core.coco_categories import differing_categories
from ...core.errors import ConfigError, DataError
from ...core.fault_lists import FAULTS_SHOWN, count_faults
from ...core.paths import did_you_mean_file
from ...runtime.files import json_bytes, write_atomically
from ...runtime.own_files import MARK, WRITER
from ..dataset.box_formats import BoxFormat
from ..dataset.coco_format import Examination, examine_coco
from ..dataset.coco_records import unsafe_file_name
from ..dataset.decoding import FLAG_TEXTS
from ..dataset.duplicate_images import find_duplicates
from ..dataset.findings import Findings, Kind, Note, place_of
from ..dataset.image_names import FileIndex
from ..dataset.label_ledger import TOO_SMALL, LabelLedger
from ..transforms.compose import Compose
from .image_file_check import CheckedImages, ImageCheck
from .summary import summarize

_NOTES: dict[Kind, tuple[bool, str]] = {
    Kind.REPEATED_ANNOTATION: (True, "this id is used before"),
    Kind.FLAT: (True, "box without area"),
    Kind.OUTSIDE: (True, "box outside its image"),
    Kind.BEYOND: (False, "reaches beyond its image"),
    Kind.NO_AREA: (False, "no area"),
    Kind.LARGE_AREA: (False, "an area larger than its image"),
    Kind.BOX_COMPUTED: (False, "no box, but a polygon or mask"),
    Kind.REPEATED_BOX: (False, "the same box as one before"),
    Kind.IGNORED: (False, "flagged to be ignored"),
    Kind.REPEATED_NAME: (False, "name used more than once"),
    Kind.TRUE_SIZE: (True, "not the size of the file"),
    Kind.REPEATED_FILE: (False, "file listed more than once"),
}
"""For the kinds that training fixes and counts: whether it is a fault here, because labels are lost or
ambiguous, and its description."""


@dataclass(frozen=True)
class DataSet:
    """An annotation file and the folder of its images."""

    annotations: Path
    images: Path
    follow_links: bool = False
    """Open images that are symbolic links out of the folder."""
    box_format: BoxFormat | None = None
    """Format of `bbox`; None expects COCO's format and looks for signs of another one."""


class Entry(NamedTuple):
    """One finding."""

    place: str
    """"annotations[17] (id 4711)", or "" for a file as a whole."""
    id: int | None
    what: str


@dataclass(frozen=True)
class Group:
    """All findings of a kind in a file; entries are created on demand, because there can be many."""

    file: str
    kind: str
    is_fault: bool
    count: int
    entries: Callable[[], Iterable[Entry]] = field(repr=False)


class Checked(NamedTuple):
    """Results of the check of a data set."""

    data: DataSet
    examined: Examination
    images: CheckedImages
    ledger: LabelLedger


@dataclass
class Report:
    """Result of a check."""

    groups: list[Group]
    checked: list[Checked | None]
    """For each data set; None if its file cannot be read."""

    @property
    def num_faults(self) -> int:
        """Number of faults."""
        return sum(group.count for group in self.groups if group.is_fault)

    def lines(self, shown: int = FAULTS_SHOWN) -> Iterator[str]:
        """Yield the lines for a terminal: up to `shown` faults of each kind, one line per kind of remark, and
        the counts.
        """
        for group in self.groups:
            if group.is_fault:
                for number, entry in enumerate(group.entries()):
                    if number == shown:
                        yield f"{group.file}: ... and {group.count - shown} more: {group.kind}"
                        break
                    yield ": ".join(filter(None, (group.file, entry.place, entry.what)))
        for group in self.groups:
            if not group.is_fault:
                first = next(iter(group.entries()))
                text = ": ".join(filter(None, (first.place, first.what)))
                yield f"remark: {group.file}: {group.kind}: {group.count} (first: {text})"
        counts: Counter[str] = Counter()
        for group in self.groups:
            counts[group.kind] += group.count if group.is_fault else 0
        yield count_faults(self.num_faults)
        yield from (f"  {count:6} {kind}" for kind, count in counts.items() if count)

    def summaries(self) -> Iterator[str]:
        """Yield for each readable file its summary and the table of its labels."""
        for checked in filter(None, self.checked):
            yield f"{checked.data.annotations}:"
            yield from (f"  {line}" for line in summarize(checked.examined))
            yield from checked.ledger.lines()
            yield ""

    def write(self, path: Path) -> None:
        """Write everything as JSON, entry by entry."""

        def write(file: BinaryIO) -> None:
            head = json_bytes(
                {MARK: WRITER, "num_faults": self.num_faults}
            ).removesuffix(b"}")
            file.write(head + b', "findings": [')
            before = b"\n"
            for group in self.groups:
                for entry in group.entries():
                    record = {
                        "file": group.file,
                        "kind": group.kind,
                        "fault": group.is_fault,
                        **entry._asdict(),
                    }
                    file.write(before + json_bytes(record))
                    before = b",\n"
            file.write(b"\n]}\n")

        write_atomically(path, write)

    def raise_if_faulty(self) -> None:
        """Raise `DataError` with the number of faults, if there are any."""
        if self.num_faults:
            files = ", ".join(
                dict.fromkeys(group.file for group in self.groups if group.is_fault)
            )
            raise DataError(f"{count_faults(self.num_faults)} in {files}")


def data_sets_of(config: dict[str, Any]) -> tuple[list[DataSet], int | None]:
    """Return the data sets that a configuration names, and the number of its queries if it has one.

    Raises:
        ConfigError: if it does not name data sets.
    """
    data_sets = []
    for part in ("train_dataloader", "val_dataloader"):
        dataset = (config.get(part) or {}).get("dataset") or {}
        if not dataset.get("ann_file") or not dataset.get("img_folder"):
            raise ConfigError(
                f"the configuration has no {part}.dataset.ann_file or no img_folder"
            )
        order, unit = dataset.get("box_order"), dataset.get("box_unit")
        given = (
            None
            if order is unit is None
            else BoxFormat(order or "xywh", unit or "pixels")
        )
        data_sets.append(
            DataSet(
                Path(dataset["ann_file"]),
                Path(dataset["img_folder"]),
                bool(dataset.get("follow_links")),
                given,
            )
        )
    return data_sets, (config.get("DFINETransformer") or {}).get("num_queries")


def training_transforms(config: dict[str, Any]) -> Compose | None:
    """Build the transforms of a configuration's training data, or return None if it names none."""
    dataset = (config.get("train_dataloader") or {}).get("dataset") or {}
    return create(dataset["transforms"], config) if dataset.get("transforms") else None


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
            raise ConfigError(
                f"{data.images} is not a folder; --images is where the files of {data.annotations} are"
                f"{did_you_mean_file(data.images)}"
            )
        learned = transforms if number == 0 else None
        report.checked.append(_check_one(data, images, queries, learned, report.groups))
    sound = [checked for checked in report.checked if checked]
    if len(sound) == 2:
        _compare(sound[0], sound[1], report.groups)
    _add_duplicates(sound, report.groups)
    return report


class _FileGroups(NamedTuple):
    """Adds what is found in one annotation file to the groups of a report."""

    file: str
    groups: list[Group]

    def add(self, kind: str, is_fault: bool, entries: list[Entry]) -> None:
        """Add a group, unless it is empty."""
        if entries:
            self.groups.append(_group(self.file, kind, is_fault, entries))


def _check_one(
    data: DataSet,
    image_check: ImageCheck,
    queries: int | None,
    transforms: Compose | None,
    groups: list[Group],
) -> Checked | None:
    found = _FileGroups(str(data.annotations), groups)
    try:
        true_sizes = image_check.true_sizes(data.images, data.follow_links)
        examined = examine_coco(data.annotations, true_sizes, data.box_format)
    except DataError as error:
        what = (
            str(error)
            .removeprefix(f"{data.annotations} ")
            .removeprefix(f"{data.annotations}: ")
        )
        found.add(Kind.NO_FILE, True, [Entry("", None, what)])
        return None
    _add_findings(found, examined.findings)
    images = look_at_images(data, examined, image_check)
    checked = Checked(data, examined, images, _ledger(examined, transforms))
    _add_images(found, checked)
    _add_objects(found, checked, queries)
    for flag, kind in FLAG_TEXTS.items():
        found.add(kind, False, [_image(checked, i) for i in images.flags[flag]])
    _add_losses(found, checked)
    return checked


def _add_findings(found: _FileGroups, findings: Findings) -> None:
    """Add the faults and notes of an annotation file."""
    by_kind: dict[str, list[Entry]] = {}
    for fault in findings.faults:
        place = place_of(fault.where, fault.index, fault.id) if fault.where else ""
        by_kind.setdefault(fault.kind, []).append(Entry(place, fault.id, fault.what))
    for kind, entries in by_kind.items():
        found.add(kind, True, entries)
    found.groups.extend(_note_group(found.file, note) for note in findings.notes)


def _add_images(found: _FileGroups, checked: Checked) -> None:
    """Add the image files that cannot be used."""
    data = checked.data
    images = checked.images
    files = FileIndex(data.images)
    missing = []
    for index in images.missing:
        name = checked.examined.content.images[index].file_name
        missing.append(_image(checked, index, _describe_missing(data, files, name)))
    found.add(Kind.MISSING, True, missing)
    leaving = []
    for index, target in images.leaving.items():
        leaving.append(
            _image(checked, index, f"leads out of {data.images} to {target}")
        )
    found.add(Kind.LEAVING, True, leaving)
    found.add(
        Kind.UNREADABLE,
        True,
        [_image(checked, i, why) for i, why in images.unreadable.items()],
    )


def _add_objects(found: _FileGroups, checked: Checked, queries: int | None) -> None:
    """Add images with too many objects or none, and categories without any."""
    records = checked.examined.content.images
    rows = checked.examined.rows
    objects = rows["starts"].diff().numpy() if records else np.zeros(0, np.int64)
    if queries is not None:
        limit = f"only {queries} can be found; raise num_queries and num_top_queries, or say --queries"
        crowded = np.flatnonzero(objects > queries).tolist()
        entries = [
            _image(checked, i, f"{objects[i]} objects, {limit}") for i in crowded
        ]
        found.add(Kind.CROWDED, True, entries)
    if not checked.examined.findings.faults and bool(rows["crowds"].all()):
        text = f"none of its {len(records)} images has a usable box"
        found.add(Kind.NOTHING, True, [Entry("", None, text)])
    empty = np.flatnonzero(objects == 0).tolist()
    found.add("images without objects", False, [_image(checked, i) for i in empty])
    used = set(rows["categories"].unique().tolist())
    unused = []
    for position, (category, name) in enumerate(checked.examined.categories.items()):
        if position not in used:
            unused.append(Entry("", category, f"category {category} ({name})"))
    found.add("categories without a box", False, unused)


def _add_losses(found: _FileGroups, checked: Checked) -> None:
    """Add the boxes that are lost between the file and the loss."""
    for entry in checked.ledger.entries:
        if entry.cause == "size":
            boxes = f"boxes {entry.reason}"
            text = f"{boxes}: {entry.count}; {TOO_SMALL}"
            found.add(boxes, False, [Entry("", None, text)])
    if checked.ledger.fault and not checked.examined.findings.faults:
        found.add(Kind.LOST, True, [Entry("", None, checked.ledger.fault)])


def _describe_missing(data: DataSet, files: FileIndex, name: str) -> str:
    similar = files.similar_to(name)
    return f"not in {data.images}" + (f", did you mean {similar!r}?" if similar else "")


def _ledger(examined: Examination, transforms: Compose | None) -> LabelLedger:
    """Return the ledger of the labels from the file to the loss (as in `CocoDetection.ledger`)."""
    if transforms is None or not examined.content.images:
        return examined.ledger
    sizes = np.array(
        [(image.width, image.height) for image in examined.content.images], np.float64
    )
    return examined.ledger.after(transforms.certain_losses, examined.rows, sizes)


def look_at_images(
    data: DataSet, examined: Examination, images: ImageCheck
) -> CheckedImages:
    """Check the image files of a data set; file names that are faults themselves are not reported again."""
    records = examined.content.images
    sizes = np.array(
        [
            (min(max(r.width, 0), 1 << 31), min(max(r.height, 0), 1 << 31))
            for r in records
        ],
        np.int64,
    ).reshape(-1, 2)
    safe = [unsafe_file_name(record.file_name) is None for record in records]
    checked = images.look(
        data.images,
        [record.file_name if is_safe else "" for record, is_safe in zip(records, safe)],
        sizes,
        follow_links=data.follow_links,
    )
    checked.missing = [i for i in checked.missing if safe[i]]
    return checked


def _note_group(file: str, note: Note) -> Group:
    is_fault, what = _NOTES.get(note.kind, (False, note.kind))

    def entry(position: int) -> Entry:
        detail = note.detail(position)
        text = what
        if note.kind == Kind.FLAT:
            text = "reversed box" if min(detail[2:]) < 0 else "box without area"
        return Entry(
            place_of(note.where, note.index[position], note.ids[position]),
            int(note.ids[position]),
            text if detail is None else f"{text}: {detail}",
        )

    kind = Kind.OTHER_SIZE if note.kind == Kind.TRUE_SIZE else note.kind
    return Group(
        file,
        kind,
        is_fault,
        len(note.index),
        lambda: (entry(i) for i in range(len(note.index))),
    )


def _group(file: str, kind: str, is_fault: bool, entries: list[Entry]) -> Group:
    return Group(file, kind, is_fault, len(entries), lambda: iter(entries))


def _compare(train: Checked, val: Checked, groups: list[Group]) -> None:
    """Add the findings about training and validation data together."""
    if differing := differing_categories(
        train.examined.categories, val.examined.categories
    ):
        groups.append(
            _group(
                str(val.data.annotations),
                Kind.CATEGORIES,
                True,
                [
                    Entry(
                        "categories",
                        None,
                        f"{line} ({train.data.annotations} / {val.data.annotations})",
                    )
                    for line in differing
                ],
            )
        )
    elif train.examined.categories != val.examined.categories:
        text = f"{len(val.examined.categories)} categories, matched by name"
        groups.append(
            _group(
                str(val.data.annotations),
                "categories under other ids than in training",
                False,
                [Entry("categories", None, text)],
            )
        )
    listed = [
        {
            f"{os.path.realpath(checked.data.images)}/{record.file_name}": i
            for i, record in enumerate(checked.examined.content.images)
        }
        for checked in (train, val)
    ]
    if both := sorted(listed[0].keys() & listed[1].keys()):
        groups.append(
            _group(
                str(val.data.annotations),
                "images that are used for training too",
                False,
                [_image(val, listed[1][path]) for path in both],
            )
        )


def _add_duplicates(checked: list[Checked], groups: list[Group]) -> None:
    if not checked:
        return
    duplicates = find_duplicates([one.images.scan for one in checked])
    for number, one in enumerate(checked):
        at = {path: i for i, path in enumerate(one.images.scan.paths)}
        inside = [
            _image(one, at[path], f"has the content of {group[0]}")
            for group in duplicates.within(number)
            for path in group[1:]
        ]
        if inside:
            groups.append(
                _group(
                    str(one.data.annotations),
                    "images with the content of another one",
                    False,
                    inside,
                )
            )
        shared = (
            [
                _image(one, at[path], f"has the content of {group[0]}")
                for group in duplicates.shared()
                for path in group[1:]
                if path in at
            ]
            if number
            else []
        )
        if shared:
            groups.append(
                _group(
                    str(one.data.annotations),
                    "images that are used for training too, under other names",
                    False,
                    shared,
                )
            )


def _image(checked: Checked, index: int, what: str = "") -> Entry:
    """Return an entry about an image, with its file name."""
    content = checked.examined.content
    record = content.images[index]
    return Entry(
        place_of("images", content.places["images"][index], record.id),
        record.id,
        ": ".join(filter(None, (record.file_name, what))),
    )
