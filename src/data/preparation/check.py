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
from ..dataset.duplicate_images import find_duplicates
from ..dataset.findings import Findings, Kind, Note, place_of
from ..dataset.image_names import FileIndex, unsafe_file_name
from ..dataset.label_ledger import TOO_SMALL, LabelLedger
from ..dataset.picture import FLAG_TEXTS, is_bit_depth
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


@dataclass(frozen=True)
class DataSet:
    """An annotation file and the folder of its images."""

    annotations: Path
    images: Path
    follow_links: bool = False
    """Open images that are symbolic links out of the folder."""
    bit_depth: int | None = None
    """Number of bits that the samples of 16-bit images use; None means 16."""
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

    def fault_lines(self, shown: int) -> Iterator[str]:
        """Yield up to `shown` entries, one per line, and the number of the others."""
        for number, entry in enumerate(self.entries()):
            if number == shown:
                yield f"{self.file}: ... and {self.count - shown} more: {self.kind}"
                return
            yield _joined(self.file, entry.place, entry.what)

    def remark_line(self) -> str:
        """Return a line with the number of entries and the first of them."""
        first = next(iter(self.entries()))
        text = _joined(first.place, first.what)
        return f"remark: {self.file}: {self.kind}: {self.count} (first: {text})"


def _joined(*parts: str) -> str:
    """Return the parts that are not empty, separated by colons."""
    return ": ".join(filter(None, parts))


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
        """Yield the lines for a terminal.

        These are up to `shown` faults of each kind, one line per kind of remark, and the counts.
        """
        counts: Counter[str] = Counter()
        for group in self.groups:
            if group.is_fault:
                counts[group.kind] += group.count
                yield from group.fault_lines(shown)
        for group in self.groups:
            if not group.is_fault:
                yield group.remark_line()
        yield count_faults(self.num_faults)
        for kind, count in counts.items():
            yield f"  {count:6} {kind}"

    def summaries(self) -> Iterator[str]:
        """Yield for each readable file its summary and the table of its labels."""
        for checked in filter(None, self.checked):
            yield f"{checked.data.annotations}:"
            for line in summarize(checked.examined):
                yield f"  {line}"
            yield from checked.ledger.lines()
            yield ""

    def write(self, path: Path) -> None:
        """Write everything as JSON, entry by entry."""

        def write(file: BinaryIO) -> None:
            head = json_bytes({MARK: WRITER, "num_faults": self.num_faults})
            file.write(head.removesuffix(b"}") + b', "findings": [')
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
        files: dict[str, None] = {}
        for group in self.groups:
            if group.is_fault:
                files[group.file] = None
        if files:
            raise DataError(
                f"{count_faults(self.num_faults)} in {', '.join(files)}"
            )


def is_repaired(group: Group) -> bool:
    """Return whether training accepts the findings of a group: it repairs or drops them, and counts them."""
    return group.kind in {*_NOTES, Kind.OTHER_SIZE, Kind.CROWDED}


def data_sets_of(config: dict[str, Any]) -> tuple[list[DataSet], int | None]:
    """Return the data sets that a configuration names, and the number of its queries if it has one.

    Raises:
        ConfigError: if it does not name data sets.
    """
    data_sets = []
    for part in ("train_dataloader", "val_dataloader"):
        loader = config.get(part) or {}
        dataset = loader.get("dataset") or {}
        if not dataset.get("ann_file") or not dataset.get("img_folder"):
            raise ConfigError(
                f"the configuration has no {part}.dataset.ann_file or no img_folder"
            )
        bit_depth = dataset.get("bit_depth")
        if not is_bit_depth(bit_depth):
            raise ConfigError(
                f"{part}.dataset.bit_depth is {bit_depth}, expected 8 to 16"
            )
        order = dataset.get("box_order")
        unit = dataset.get("box_unit")
        box_format = None
        if order is not None or unit is not None:
            box_format = BoxFormat(order or "xywh", unit or "pixels")
        data = DataSet(
            Path(dataset["ann_file"]),
            Path(dataset["img_folder"]),
            follow_links=bool(dataset.get("follow_links")),
            bit_depth=bit_depth,
            box_format=box_format,
        )
        data_sets.append(data)
    transformer = config.get("DFINETransformer") or {}
    return data_sets, transformer.get("num_queries")


def training_transforms(config: dict[str, Any]) -> Compose | None:
    """Build the transforms of a configuration's training data, or return None if it names none."""
    loader = config.get("train_dataloader") or {}
    dataset = loader.get("dataset") or {}
    if not dataset.get("transforms"):
        return None
    return create(dataset["transforms"], config)


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
        _compare(sound[0], sound[1], report.groups)
    _add_duplicates(sound, report.groups)
    return report


class _FileGroups(NamedTuple):
    """Adds findings about one annotation file to the groups of a report."""

    file: str
    groups: list[Group]

    def add(
        self,
        kind: str,
        is_fault: bool,
        entries: list[Entry],
    ) -> None:
        """Add a group, unless it is empty."""
        if entries:
            group = Group(
                self.file, kind, is_fault, len(entries), lambda: entries
            )
            self.groups.append(group)


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
        found.add(kind, False, _images(checked, images.flags[flag]))
    _add_losses(found, checked)
    return checked


def _add_findings(found: _FileGroups, findings: Findings) -> None:
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


def _add_images(found: _FileGroups, checked: Checked) -> None:
    """Add the image files that cannot be used."""
    data = checked.data
    images = checked.images
    files = FileIndex(data.images)
    missing = []
    for index in images.missing:
        name = checked.examined.content.images[index].file_name
        what = _describe_missing(data, files, name)
        missing.append(_image(checked, index, what))
    found.add(Kind.MISSING, True, missing)
    leaving = []
    for index, target in images.leaving.items():
        what = f"leads out of {data.images} to {target}"
        leaving.append(_image(checked, index, what))
    found.add(Kind.LEAVING, True, leaving)
    unreadable = []
    for index, reason in images.unreadable.items():
        unreadable.append(_image(checked, index, reason))
    found.add(Kind.UNREADABLE, True, unreadable)


def _add_objects(
    found: _FileGroups,
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
            crowded.append(_image(checked, index, what))
        found.add(Kind.CROWDED, True, crowded)
    if not checked.examined.findings.faults and bool(rows["crowds"].all()):
        text = f"none of its {len(records)} images has a usable box"
        found.add(Kind.NOTHING, True, [Entry("", None, text)])
    empty = np.flatnonzero(objects == 0).tolist()
    found.add("images without objects", False, _images(checked, empty))
    used = set(rows["categories"].unique().tolist())
    unused = []
    names = checked.examined.categories.items()
    for position, (category, name) in enumerate(names):
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


def _compare(
    train: Checked,
    val: Checked,
    groups: list[Group],
) -> None:
    """Add the findings about training and validation data together."""
    found = _FileGroups(str(val.data.annotations), groups)
    _compare_categories(train, val, found)
    trained = _positions_of_files(train)
    scored = _positions_of_files(val)
    shared = sorted(trained.keys() & scored.keys())
    both = [scored[path] for path in shared]
    found.add(
        "images that are used for training too", False, _images(val, both)
    )


def _compare_categories(
    train: Checked,
    val: Checked,
    found: _FileGroups,
) -> None:
    """Add categories that differ, or that have the same names under other ids."""
    ours = train.examined.categories
    theirs = val.examined.categories
    files = f"({train.data.annotations} / {val.data.annotations})"
    differing = []
    for line in differing_categories(ours, theirs):
        differing.append(Entry("categories", None, f"{line} {files}"))
    found.add(Kind.CATEGORIES, True, differing)
    if not differing and ours != theirs:
        text = f"{len(theirs)} categories, matched by name"
        found.add(
            "categories under other ids than in training",
            False,
            [Entry("categories", None, text)],
        )


def _positions_of_files(checked: Checked) -> dict[str, int]:
    """Return the position of each image by its path, in which only the folder is resolved."""
    folder = os.path.realpath(checked.data.images)
    positions = {}
    for index, record in enumerate(checked.examined.content.images):
        positions[f"{folder}/{record.file_name}"] = index
    return positions


def _add_duplicates(checked: list[Checked], groups: list[Group]) -> None:
    if not checked:
        return
    duplicates = find_duplicates([one.images.scan for one in checked])
    for number, one in enumerate(checked):
        found = _FileGroups(str(one.data.annotations), groups)
        inside = _duplicate_entries(one, duplicates.within(number))
        found.add("images with the content of another one", False, inside)
        if number > 0:
            shared = _duplicate_entries(one, duplicates.shared())
            found.add(
                "images that are used for training too, under other names",
                False,
                shared,
            )


def _duplicate_entries(
    checked: Checked, groups: list[list[str]]
) -> list[Entry]:
    """Return an entry for each image of a data set that has the content of the first in its group."""
    paths = checked.images.scan.paths
    positions = {path: index for index, path in enumerate(paths)}
    entries = []
    for first, *others in groups:
        for path in others:
            if path in positions:
                what = f"has the content of {first}"
                entries.append(_image(checked, positions[path], what))
    return entries


def _images(checked: Checked, indices: Iterable[int]) -> list[Entry]:
    """Return an entry for each of some images."""
    return [_image(checked, index) for index in indices]


def _image(
    checked: Checked,
    index: int,
    what: str = "",
) -> Entry:
    """Return an entry about an image, with its file name."""
    content = checked.examined.content
    record = content.images[index]
    place = place_of("images", content.places["images"][index], record.id)
    return Entry(place, record.id, _joined(record.file_name, what))
