"""Folders of data sets: their visible entries, and the part that a name stands for."""

from __future__ import annotations

import re
from pathlib import Path

from ...core.errors import DataError
from ...runtime.limits import is_system_limit
from ..dataset.decoding import IMAGE_SUFFIXES

PARTS = ("train", "val", "test")

_WORDS = re.compile(r"[a-z]+")

_WORDS_OF_VAL = ("val", "valid", "validation", "minival", "dev", "eval")


def part_of(name: str) -> str | None:
    """Return "train", "val" or "test" if a word in a file or folder name stands for it, otherwise None.

    Example:
        >>> part_of("instances_val2017.json")
        'val'
    """
    for word in _WORDS.findall(name.lower()):
        if word.startswith("train"):
            return "train"
        if word in _WORDS_OF_VAL:
            return "val"
        if word.startswith("test"):
            return "test"
    return None


class Entries:
    """The visible entries of one folder, sorted by name. Links are followed."""

    def __init__(self, folder: Path) -> None:
        """List the folder.

        Raises:
            DataError: if it cannot be listed.
        """
        self.folder = folder
        self.folders: list[Path] = []
        self.files: list[Path] = []
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            if is_system_limit(error):
                raise
            raise DataError(
                f"{folder} cannot be listed: {error.strerror or error}"
            ) from None
        for path in paths:
            if path.name.startswith("."):
                continue
            if path.is_dir():
                self.folders.append(path)
            elif path.is_file():
                self.files.append(path)

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the files with one of these suffixes, in any letter case."""
        return [p for p in self.files if p.suffix.lower() in suffixes]

    def folder_named(self, *names: str) -> Path | None:
        """Return the folder with the earliest of some names, in any letter case."""
        for name in names:
            for path in self.folders:
                if path.name.lower() == name:
                    return path
        return None

    def folders_by_part(self) -> dict[str, Path]:
        """Return the first folder of each part."""
        found: dict[str, Path] = {}
        for part in PARTS:
            for path in self.folders:
                if part_of(path.name) == part and part not in found:
                    found[part] = path
        return found

    def has_images(self) -> bool:
        """Return whether a file has the suffix of an image."""
        return any(p.suffix.lower() in IMAGE_SUFFIXES for p in self.files)
