"""Images that are in the data twice under different names: found by what the headers' scan knows, confirmed by the content of few files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...runtime.weight_files import file_sha256
from .header_scan import BYTES, HEIGHT, TAIL, UNKNOWN, WIDTH, ImageScan

HASHED_BYTES = 2_000_000_000
"""As much is read at most to confirm that files are alike; what is beyond is left out."""


class DuplicateImages(NamedTuple):
    """Files with the same content, each as (number of its data set, its path); the one that came first stands first."""

    groups: list[list[tuple[int, str]]]
    unread: int
    """Files that look alike, but were beyond the limit."""

    def within(self, data_set: int) -> list[list[str]]:
        """Return the groups of which a data set has more than one file."""
        shares = ([path for number, path in group if number == data_set] for group in self.groups)
        return [share for share in shares if len(share) > 1]

    def shared(self) -> list[list[str]]:
        """Return the groups that more than one data set has a part in."""
        return [
            [path for _, path in group] for group in self.groups if len({number for number, _ in group}) > 1
        ]


def find_duplicates(scans: Sequence[ImageScan], limit: int = HASHED_BYTES) -> DuplicateImages:
    """Find files with the same content among data sets.

    Candidates have the same length, pixels and end; these are read in full. A file that is listed twice is one file.
    """
    rows = np.concatenate([scan.rows[:, [BYTES, WIDTH, HEIGHT, TAIL]] for scan in scans])
    files = [(number, path) for number, scan in enumerate(scans) for path in scan.paths]
    known = np.flatnonzero(rows[:, 1] != UNKNOWN)
    _, which, counts = np.unique(rows[known], axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    candidates = known[counts[which] > 1]
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
        except OSError:  # it was there a moment ago; met again when it is decoded
            continue
        by_content[content].setdefault(os.path.realpath(path), (number, path))
    return DuplicateImages([list(group.values()) for group in by_content.values() if len(group) > 1], unread)
