"""Names of image files: recognition of images, unsafe names, and suggestions for names that do not exist."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from ...core.paths import close_names, folded_name, open_regular
from .decoding import IMAGE_SUFFIXES

SNIFFED_BYTES = 32

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{12}[\x0c\x28\x38\x40\x6c\x7c]\0\0\0|II\*\0|MM\0\*|RIFF....WEBP"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftyp(?:avif|avis|heic|heix|mif1|msf1)|P[1-7][\s#]",
    re.DOTALL,
)
"""First bytes of files in the common image formats."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f]")


@dataclass
class ImageFiles:
    """The files of a folder and its subfolders, by relative name with slashes."""

    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Numbers of files that are not images, by suffix or description."""

    def describe_others(self) -> str:
        """Return "; not images: 12 .txt, 1 .json", or an empty string."""
        if not self.others:
            return ""
        kinds = []
        for suffix, count in self.others.most_common(5):
            kinds.append(f"{count} {suffix or 'without a suffix'}")
        text = f"; not images: {', '.join(kinds)}"
        more = len(self.others) - len(kinds)
        if more:
            text += f" and {more} other kinds"
        return text


def _visible(names: list[str]) -> list[str]:
    """Return the names without hidden ones, sorted."""
    return sorted(name for name in names if not name.startswith("."))


def find_image_files(folder: Path) -> ImageFiles:
    """Return the images of a folder and its subfolders, sorted.

    Hidden files and links to folders are skipped.
    """
    found = ImageFiles()
    for base, folders, names in os.walk(folder):
        folders[:] = _visible(folders)
        for name in folders:
            if os.path.islink(os.path.join(base, name)):
                found.others["links to folders"] += 1
        prefix = _prefix(base, folder)
        for name in _visible(names):
            path = os.path.join(base, name)
            if _is_image_or_broken_link_to_one(path):
                found.images.append(prefix + name)
            elif os.path.isfile(path):
                suffix = os.path.splitext(name)[1]
                found.others[suffix.lower()] += 1
            else:
                found.others["links to nothing or special files"] += 1
    found.images.sort()
    return found


def _prefix(base: str, folder: Path) -> str:
    """Return the beginning of the relative names of the files in a subfolder: empty, or "sub/folder/"."""
    relative = os.path.relpath(base, folder).replace(os.sep, "/")
    return "" if relative == "." else f"{relative}/"


def _is_image_or_broken_link_to_one(path: str) -> bool:
    """Return whether a path is an image, or a broken link whose name is that of an image.

    A broken link counts so that the missing image is reported.
    """
    if os.path.isfile(path):
        return is_image_file(path)
    if os.path.exists(path) or not os.path.islink(path):
        return False
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def walk_files(folder: Path) -> Iterator[str]:
    """Yield the files of a folder and its subfolders by relative name with slashes.

    Hidden files are skipped.
    """
    for base, folders, names in os.walk(folder):
        folders[:] = _visible(folders)
        prefix = _prefix(base, folder)
        for name in _visible(names):
            if os.path.isfile(os.path.join(base, name)):
                yield prefix + name


def is_image_file(path: str | Path) -> bool:
    """Return whether a file is an image: by its suffix, or by its first bytes if the suffix is unknown."""
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        return True
    try:
        with open_regular(path) as file:
            return _MAGIC.match(file.read(SNIFFED_BYTES)) is not None
    except OSError:
        return False


class FileIndex:
    """Lookup of the files in an image folder that tolerates differences in spelling."""

    def __init__(self, folder: Path) -> None:
        """Store the folder; it is listed at the first lookup."""
        self.folder = folder

    @cached_property
    def _by_folded(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in walk_files(self.folder):
            index.setdefault(_folded(name), []).append(name)
        return index

    @cached_property
    def _by_base(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in chain.from_iterable(self._by_folded.values()):
            base = _folded(PurePosixPath(name).name)
            index.setdefault(base, []).append(name)
        return index

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for folded, names in self._by_folded.items():
            stem, _ = os.path.splitext(folded)
            index.setdefault(stem, []).extend(names)
        return index

    def meant_by(self, name: str) -> str | None:
        """Return the file that a name unambiguously refers to, or None.

        This is a file whose name differs only in slashes, letter case, Unicode form or percent-encoding. It
        is also the only file with the same end, if the name has additional leading folders
        (`/home/me/images/a.jpg`, `images/a.jpg`) or lacks some.
        """
        folded = _folded(name.strip())
        parts = [
            part for part in folded.split("/") if part not in ("", ".", "..")
        ]
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if end in self._by_folded:
                return _only(self._by_folded[end])
        if len(parts) == 1:
            return _only(self._by_base.get(parts[0], []))
        return None

    def with_other_suffix(self, name: str) -> str | None:
        """Return the only image in the same folder that differs in nothing but its suffix, or None."""
        folded = _folded(name)
        found: dict[str, None] = {}
        for stem in (os.path.splitext(folded)[0], folded):
            for own in self._by_stem.get(stem, ()):
                if is_image_file(self.folder / own):
                    found[own] = None
        return _only(list(found))

    def similar_to(self, name: str) -> str | None:
        """Return a file to suggest for a name, or None.

        This is the file that the name refers to (`meant_by`), or one with another suffix or spelling.
        """
        found = self.meant_by(name)
        if found:
            return found
        base = PurePosixPath(_folded(name)).name
        stem = os.path.splitext(base)[0]
        for own, names in self._by_base.items():
            if os.path.splitext(own)[0] == stem:
                return names[0]
        close = close_names(base, self._by_base)
        return self._by_base[close[0]][0] if close else None


def _only(names: list[str]) -> str | None:
    """Return the only name in a list, or None."""
    return names[0] if len(names) == 1 else None


def _folded(name: str) -> str:
    """Return a name in the form for comparisons (`folded_name`); for a URL, use its path."""
    address = re.match(
        r"[a-z][a-z0-9+.-]*://[^/]*/([^?#]*)", name, re.IGNORECASE
    )
    return folded_name(address[1] if address else name)


def unsafe_file_name(name: Any) -> str | None:
    """Return the reason why a file name must not be opened, or None if it stays inside the image folder."""
    if not isinstance(name, str) or not name:
        return "expected a file name"
    if _CONTROL_CHARACTER.search(name):
        return "which contains a control character"
    if "://" in name:
        return "which is an address; images must lie in the image folder"
    if name[0] in "/\\" or name[1:3] in (":\\", ":/"):
        return (
            "which is an absolute path; names are relative to the image folder"
        )
    if ".." in name and ".." in name.replace("\\", "/").split("/"):
        return "which leaves the image folder"
    if len(name) > 1024 and len(name.encode(errors="replace")) > 4096:
        return "which is longer than a path can be"
    return None
