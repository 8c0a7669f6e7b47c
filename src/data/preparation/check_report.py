"""The report of a check: findings in groups, in lines for a terminal and as JSON.

It is separate from the search for findings, because the groups are filled in several modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ...core.counts import counted
from ...core.errors import DataError
from ...core.fault_lists import FAULTS_SHOWN
from ...runtime.files import json_bytes, write_atomically
from ...runtime.own_files import MARK, WRITER
from ..dataset.coco_format import Examination
from ..dataset.findings import place_of
from ..dataset.label_ledger import LabelLedger
from .data_set import DataSet
from .image_file_check import CheckedImages
from .summary import summarize


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
        yield counted(self.num_faults, "fault")
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
                f"{counted(self.num_faults, 'fault')} in {', '.join(files)}"
            )


class FileGroups(NamedTuple):
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


def image_entries(checked: Checked, indices: Iterable[int]) -> list[Entry]:
    """Return an entry for each of some images."""
    return [image_entry(checked, index) for index in indices]


def image_entry(
    checked: Checked,
    index: int,
    what: str = "",
) -> Entry:
    """Return an entry about an image, with its file name."""
    content = checked.examined.content
    record = content.images[index]
    place = place_of("images", content.places["images"][index], record.id)
    return Entry(place, record.id, _joined(record.file_name, what))


def _joined(*parts: str) -> str:
    """Return the parts that are not empty, separated by colons."""
    return ": ".join(filter(None, parts))
