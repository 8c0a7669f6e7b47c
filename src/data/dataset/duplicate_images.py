"""Duplicate images under different names.

Candidates are found with the results of the header scan; only these files are then read and compared in full.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...runtime.weight_files import file_sha256
from .header_scan import BYTES, HEIGHT, TAIL, UNKNOWN, WIDTH, ImageScan

HASHED_BYTES = 2_000_000_000
"""Maximum number of bytes to read for comparisons; files beyond this limit are not compared."""


class DuplicateImages(NamedTuple):
    """Groups of files with the same content, each file as (number of its data set, path), in the order of the
    data.
    """

    groups: list[list[tuple[int, str]]]
    unread: int
    """Number of candidates that were not compared because of the limit."""

    def within(self, data_set: int) -> list[list[str]]:
        """Return the groups that contain more than one file of a data set, reduced to these files."""
        found = []
        for group in self.groups:
            own = [path for number, path in group if number == data_set]
            if len(own) > 1:
                found.append(own)
        return found

    def shared(self) -> list[list[str]]:
        """Return the groups that contain files of more than one data set."""
        found = []
        for group in self.groups:
            numbers, paths = zip(*group)
            if len(set(numbers)) > 1:
                found.append(list(paths))
        return found


def find_duplicates(
    scans: Sequence[ImageScan], limit: int = HASHED_BYTES
) -> DuplicateImages:
    """Find files with the same content in one or more data sets.

    Candidates have the same length, size in pixels and last bytes; these are read in full. A file that is
    listed twice is one file.
    """
    files = []
    columns = []
    for number, scan in enumerate(scans):
        files += [(number, path) for path in scan.paths]
        columns.append(scan.rows[:, [BYTES, WIDTH, HEIGHT, TAIL]])
    rows = np.concatenate(columns)
    known = np.flatnonzero(rows[:, 1] != UNKNOWN)
    _, same_as, counts = np.unique(
        rows[known], axis=0, return_inverse=True, return_counts=True
    )
    candidates = known[counts[same_as.reshape(-1)] > 1]
    by_content: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    budget = limit
    unread = 0
    for index in candidates:
        number, path = files[index]
        budget -= int(rows[index, 0])
        if budget < 0:
            unread += 1
            continue
        try:
            content = file_sha256(path)
        except OSError:  # reported when the image is decoded
            continue
        by_content[content].setdefault(os.path.realpath(path), (number, path))
    groups = [list(group.values()) for group in by_content.values() if len(group) > 1]
    return DuplicateImages(groups, unread)
