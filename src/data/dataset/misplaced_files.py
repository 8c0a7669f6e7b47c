"""Check that the files listed in labels exist inside the image folder.

Folders are listed; no image is opened.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Misplaced(NamedTuple):
    """Positions of the files in a list that are missing or outside the image folder."""

    missing: list[int]
    leaving: dict[int, str]
    """Files that are symbolic links out of the image folder, with their targets."""


def find_misplaced(img_folder: Path, names: Sequence[str]) -> Misplaced:
    """Find missing and outside files by listing each of their folders once; only links are resolved.

    Args:
        img_folder: folder that the names are relative to; may be a link itself.
        names: file names as in `file_name`, without `..`.
    """
    inside = os.path.realpath(img_folder).rstrip("/") + "/"
    folders: dict[str, tuple[str, dict[str, bool]]] = {}
    missing = []
    leaving = {}
    for index, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        if folder not in folders:
            folders[folder] = _listing(img_folder / folder)
        real_folder, is_link = folders[folder]
        real_file = os.path.join(real_folder, file)
        exists = file in is_link
        if exists and is_link[file]:
            real_file = os.path.realpath(real_file)
            exists = os.path.exists(real_file)
        if not exists:
            missing.append(index)
        elif not real_file.startswith(inside):
            leaving[index] = real_file
    return Misplaced(missing, leaving)


def _listing(folder: Path) -> tuple[str, dict[str, bool]]:
    """Return the real path of a folder, and for each name in it whether it is a link."""
    if not folder.is_dir():
        return str(folder), {}
    with os.scandir(folder) as entries:
        is_link = {entry.name: entry.is_symlink() for entry in entries}
    return os.path.realpath(folder), is_link
