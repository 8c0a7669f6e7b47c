"""The records of an annotation file while they are being repaired, and what the repairs have to know.

This is separate from the repairs (`record_repairs`, `box_conversion`) and their order (`fix`), which all
change the same records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import count
from typing import Any, TypeGuard

import msgspec
import numpy as np

from ..dataset.annotation_text import LISTS, parse_record
from ..dataset.coco_format import Examination
from ..dataset.image_names import FileIndex
from ..dataset.record_faults import meant_id
from .coco_json import encoded
from .data_set import DataSet

Record = dict[str, Any]


class RecordsInRepair:
    """The records of a file, with the changes that were made and the values that repairs look up."""

    def __init__(self, data: DataSet, content: dict[str, Any]) -> None:
        """Store the records.

        Args:
            data: data set of the file.
            content: result of `split_records`, which is changed in place.
        """
        self.data = data
        self.content = content
        self.changes: Counter[str] = Counter()
        """Number of changes of each kind."""
        self.sizes: dict[int, tuple[int, int]] = {}
        """(width, height) in pixels of each valid image, by id."""
        self.first_names: dict[int, str] = {}
        """File name of the first image with each id."""
        self.dropped_images: set[int] = set()
        """Ids of the images whose boxes have to be dropped."""
        self.files = FileIndex(data.images)
        self.renumbered = {
            where: self._new_numbers(where)
            for where in ("images", "categories")
        }
        """For each list, new ids by the text of the old id."""
        self._examined: Examination | None = None
        self._new_ids: Iterator[int] | None = None

    def begin_round(self, examined: Examination) -> None:
        """Take over what an examination found out about the records."""
        self.sizes = sizes_by_id(examined)
        self.first_names = {}
        for image in examined.content.images:
            self.first_names.setdefault(image.id, image.file_name)
        self.dropped_images = set()
        self._examined = examined
        self._new_ids = None

    def objects_of(self, where: str) -> Iterator[Record]:
        """Yield the records of a list that are JSON objects."""
        for record in map(parse_record, self.content[where]):
            if isinstance(record, dict):
                yield record

    def record_at(self, where: str, index: int) -> Record:
        """Return a record as a dictionary that may be changed."""
        return parse_record(self.content[where][index])

    def store(
        self,
        where: str,
        index: int,
        record: Record,
    ) -> None:
        """Store a changed record in the form that needs the least memory."""
        self.content[where][index] = msgspec.Raw(encoded(record))

    def drop(
        self,
        where: str,
        index: int,
        change: str,
    ) -> None:
        """Drop a record, which is counted once; the positions of the others stay until `remove_dropped`."""
        if self.content[where][index] is not None:
            self.content[where][index] = None
            self.changes[change] += 1

    def drop_boxes_of_dropped_images(self, examined: Examination) -> None:
        """Drop the images whose ids are in `dropped_images`, and their boxes."""
        content = examined.content
        orphaned = np.isin(
            content.annotations.image_id, list(self.dropped_images)
        )
        for place in content.places["annotations"][orphaned].tolist():
            self.drop(
                "annotations", place, "boxes dropped: their image was dropped"
            )
        change = "images dropped: two of them have one id"
        places = content.places["images"].tolist()
        for image, place in zip(content.images, places):
            if image.id in self.dropped_images:
                self.drop("images", place, change)

    def remove_dropped(self) -> None:
        """Remove the dropped records from their lists."""
        for where in LISTS:
            kept = [
                record for record in self.content[where] if record is not None
            ]
            self.content[where] = kept

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

    @cached_property
    def listed_names(self) -> set[str]:
        """All file names in the annotation file before fixing."""
        names = set()
        for record in self.objects_of("images"):
            name = record.get("file_name")
            if isinstance(name, str):
                names.add(name)
        return names

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


def sizes_by_id(examined: Examination) -> dict[int, tuple[int, int]]:
    """Return (width, height) of each valid image by its id."""
    sizes = {}
    for image in examined.content.images:
        sizes[image.id] = (image.width, image.height)
    return sizes


def is_four_numbers(box: Any) -> TypeGuard[list[float]]:
    """Return whether a value is a list of four numbers."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(isinstance(value, int | float) for value in box)
