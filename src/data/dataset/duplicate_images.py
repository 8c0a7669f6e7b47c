"""Duplicate images under different names.

Candidates are found with the results of the header scan; only these files are then read and compared in full.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from ...runtime.weight_files import file_sha256
from .header_scan import BYTES, HEIGHT, TAIL, UNKNOWN, WIDTH, ImageScan

HASHED_BYTES = 2_000_000_000
"""Maximum number of bytes to read for comparisons; files beyond this limit are not compared."""


class DuplicateImages(NamedTuple):
    """Files with the same content."""

    groups: list[list[tuple[int, str]]]
    """Groups of files as (number of the data set, path), in the order of the data."""
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

    Candidates have the same length, size in pixels and last bytes; only these files are read in full. A file
    that is listed twice counts as one file.
    """
    files: list[tuple[int, str]] = []
    for number, scan in enumerate(scans):
        files.extend(zip(repeat(number), scan.paths))
    rows = np.concatenate([scan.rows for scan in scans])
    by_content: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    budget = limit
    unread = 0
    for index in _candidates(rows):
        number, path = files[index]
        budget -= int(rows[index, BYTES])
        if budget < 0:
            unread += 1
            continue
        try:
            content = file_sha256(path)
        except OSError:  # reported when the image is decoded
            continue
        by_content[content].setdefault(os.path.realpath(path), (number, path))
    groups = []
    for same in by_content.values():
        if len(same) > 1:
            groups.append(list(same.values()))
    return DuplicateImages(groups, unread)


def _candidates(rows: np.ndarray) -> np.ndarray:
    """Return the positions of the readable files whose header data is that of another file."""
    known = np.flatnonzero(rows[:, WIDTH] != UNKNOWN)
    compared = rows[known][:, [BYTES, WIDTH, HEIGHT, TAIL]]
    _, same_as, counts = np.unique(
        compared,
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    occurrences = counts[same_as.reshape(-1)]
    return known[occurrences > 1]
