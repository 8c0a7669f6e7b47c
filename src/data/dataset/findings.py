"""Findings about the files of a data set, by kind, with the records that they concern."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from ...core.commands import command_name
from ...core.counts import counted
from ...core.errors import DataError
from ...core.fault_lists import listed

COMPARED = 10_000
"""Number of boxes that are compared with their polygons or masks at the start of a run."""

CHECK_HINT = f"; {command_name('check')} lists all"
"""End of a message about faults of labels."""


class Kind(str, Enum):
    """Kind of a finding. The value is its name; `text` adds what training does about it."""

    text: str

    def __new__(cls, name: str, consequence: str = "") -> Kind:
        """Create a kind from its name and its consequence, such as "dropped"."""
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.text = f"{name}, {consequence}" if consequence else name
        return kind

    def __str__(self) -> str:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    NO_OBJECT = "records that are not JSON objects"
    BAD_ID = "ids that are not non-negative integers"
    BAD_FILE_NAME = "file names that cannot be used"
    BAD_SIZE = "image sizes that are not positive integers"
    BAD_BOX = "boxes that are not four finite numbers"
    BAD_AREA = "areas that are not non-negative numbers"
    BAD_CROWD = "crowd flags other than 0 and 1"
    BAD_IGNORE = "ignore flags other than 0 and 1"
    BAD_NAME = "category names that are empty or not text"
    EMPTY_LIST = "lists without a record"
    REPEATED_IMAGE = "image ids used more than once"
    REPEATED_CATEGORY = "category ids used more than once"
    ORPHAN = "boxes of images that are not listed"
    UNKNOWN_CATEGORY = "boxes of categories that are not listed"
    BOX_FORMAT = "boxes in another format than x, y, width, height in pixels"
    REPEATED_ANNOTATION = "annotation ids used more than once"
    FLAT = ("boxes without area", "dropped")
    OUTSIDE = ("boxes outside their image", "dropped")
    BEYOND = ("boxes reaching beyond their image", "clipped")
    NO_AREA = ("missing areas", "computed from the box")
    LARGE_AREA = ("areas larger than their image", "computed from the box")
    BOX_COMPUTED = ("missing boxes", "computed from the polygon or mask")
    OTHER_AREA = ("areas larger than their box", "used as written")
    OTHER_OUTLINE = (
        "boxes that contradict their polygon or mask",
        "the box is used",
    )
    REPEATED_BOX = "boxes listed more than once"
    IGNORED = ("objects flagged to be ignored", "neither learned nor scored")
    REPEATED_NAME = "category names used more than once"
    TRUE_SIZE = "sizes taken from the image files"
    REPEATED_FILE = "files listed more than once"
    NO_FILE = "files that cannot be read as COCO"
    MISSING = "missing images"
    LEAVING = "images outside the folder"
    UNREADABLE = "images that cannot be read"
    OTHER_SIZE = "sizes that differ from the image files"
    CROWDED = "images with more objects than queries"
    CATEGORIES = "categories that differ between training and validation"
    NOTHING = "no box to learn from"
    LOST = "more than half of the boxes lost"


@dataclass(frozen=True)
class Fault:
    """A fault, which ends a run: its kind, its record, and a description."""

    kind: Kind
    where: str
    """"annotations", "images", "categories", or "" for the file as a whole."""
    index: int
    """Position in that list."""
    id: int | None
    """Id of the record, if it has a usable one."""
    what: str

    def __str__(self) -> str:
        if not self.where:
            return self.what
        return f"{place_of(self.where, self.index, self.id)}: {self.what}"


@dataclass(frozen=True)
class Note:
    """A change or remark that does not end a run: its kind and its records."""

    kind: Kind
    where: str
    """"annotations", "images" or "categories"."""
    index: np.ndarray
    """Positions in that list, `[n]`."""
    ids: np.ndarray
    """Their ids, `[n]`."""
    details: np.ndarray | None = None
    """A value to show for each, such as its box, `[n, ...]`."""

    def describe(self, position: int) -> str:
        """Return "annotations[3] (id 7) [1.0, 2.0, 0.0, 4.0]" for one of the records."""
        place = place_of(self.where, self.index[position], self.ids[position])
        if self.details is None:
            return place
        return f"{place} {self.detail(position)}"

    def detail(self, position: int) -> Any:
        """Return the value to show for one of the records, or None if there is none."""
        if self.details is None:
            return None
        return self.details[position : position + 1].tolist()[0]


@dataclass
class Findings:
    """The findings about a file: faults end a run, notes describe what was dropped, changed or computed."""

    path: Path
    faults: list[Fault] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    compares_all: bool = False
    """Compare every box with its polygon or mask, not only the first `COMPARED`, which takes longer."""

    def fault(
        self,
        kind: Kind,
        what: str,
        where: str = "",
        index: int = -1,
        id: int | None = None,
    ) -> None:
        """Add a fault; `index` is the position in the list `where` of the file."""
        number = None if id is None else int(id)
        self.faults.append(Fault(kind, where, int(index), number, what))

    def note(
        self,
        kind: Kind,
        where: str,
        index: np.ndarray,
        ids: np.ndarray,
        details: np.ndarray | None = None,
    ) -> None:
        """Add a note about some records, if there are any.

        Args:
            kind: one of `Kind`.
            where: list that contains the records.
            index: positions in that list, `[n]`.
            ids: their ids, `[n]`.
            details: a value to show for each, `[n, ...]`.
        """
        if len(index):
            self.notes.append(Note(kind, where, index, ids, details))

    def describe(self) -> list[str]:
        """Return one line per note: the kind, the number of records, and the first record."""
        lines = []
        for note in self.notes:
            count = len(note.index)
            lines.append(
                f"{self.path}: {note.kind.text}: {count} (first: {note.describe(0)})"
            )
        return lines

    def raise_if_faulty(self) -> None:
        """Raise `DataError` with the first faults, if there are any."""
        if self.faults:
            raise self.error()

    def error(self) -> DataError:
        """Return the error with the first faults."""
        number = counted(len(self.faults), "fault")
        return DataError(
            f"{self.path} has {number}: {listed(self.faults, '; ')}{CHECK_HINT}"
        )


def place_of(
    where: str,
    index: int,
    id: Any = None,
) -> str:
    """Return the place of a record in its file: "annotations[7] (id 4711)"."""
    if id is None:
        return f"{where}[{index}]"
    return f"{where}[{index}] (id {id})"
