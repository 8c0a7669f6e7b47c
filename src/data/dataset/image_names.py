"""Names of image files: what counts as one, and which file was meant by a name that does not exist."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from ...core.paths import close_names, folded_name
from .decoding import IMAGE_SUFFIXES

SNIFFED_BYTES = 32

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{12}[\x0c\x28\x38\x40\x6c\x7c]\0\0\0|II\*\0|MM\0\*|RIFF....WEBP"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftyp(?:avif|avis|heic|heix|mif1|msf1)|P[1-7][\s#]",
    re.DOTALL,
)
"""How files of the common image formats begin."""


@dataclass
class ImageFiles:
    """The files of a folder and below it, by relative name with slashes."""

    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Files that are not images, by suffix or by what they are."""

    def describe_others(self) -> str:
        """Return "; not images: 12 .txt, 1 .json", or an empty string."""
        kinds = [f"{count} {suffix or 'without a suffix'}" for suffix, count in self.others.most_common(5)]
        more = len(self.others) - len(kinds)
        return (
            f"; not images: {', '.join(kinds)}{f' and {more} other kinds' if more else ''}" if kinds else ""
        )


def find_image_files(folder: Path) -> ImageFiles:
    """Return the images of a folder and below it, sorted; links to folders are not followed, hidden files left out."""
    found = ImageFiles()
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.others["links to folders"] += sum(os.path.islink(os.path.join(base, name)) for name in folders)
        prefix = os.path.relpath(base, folder).replace(os.sep, "/")
        for name in sorted(name for name in names if not name.startswith(".")):
            path = os.path.join(base, name)
            if _is_image_or_broken_link_to_one(path):
                found.images.append(name if prefix == "." else f"{prefix}/{name}")
            elif os.path.isfile(path):
                found.others[os.path.splitext(name)[1].lower()] += 1
            else:
                found.others["links to nothing or special files"] += 1
    found.others = +found.others
    found.images.sort()
    return found


def _is_image_or_broken_link_to_one(path: str) -> bool:
    """Return whether a path is an image; a link to an image that does not exist counts, so that its absence is reported."""
    if os.path.isfile(path):
        return is_image_file(path)
    return (
        os.path.islink(path)
        and not os.path.exists(path)
        and os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
    )


def walk_files(folder: Path) -> Iterator[str]:
    """Yield the files of a folder and below it by relative name with slashes, without hidden ones."""
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = os.path.relpath(base, folder).replace(os.sep, "/")
        for name in sorted(names):
            if not name.startswith(".") and os.path.isfile(os.path.join(base, name)):
                yield name if prefix == "." else f"{prefix}/{name}"


def is_image_file(path: str | Path) -> bool:
    """Return whether a file is an image: by its suffix, or if that is not known, by how it begins."""
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return _MAGIC.match(file.read(SNIFFED_BYTES)) is not None
    except OSError:
        return False


class FileIndex:
    """The files of an image folder, looked up by what a name means rather than by how it is written."""

    def __init__(self, folder: Path) -> None:
        """Store the folder; it is listed when first asked for something."""
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
        for names in self._by_folded.values():
            for name in names:
                index.setdefault(_folded(PurePosixPath(name).name), []).append(name)
        return index

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for folded, names in self._by_folded.items():
            index.setdefault(os.path.splitext(folded)[0], []).extend(names)
        return index

    def meant_by(self, name: str) -> str | None:
        """Return the one file that a name plainly means, or None.

        That is a file whose name differs in slashes, letter case, Unicode form or percent signs alone; or the only one
        that the end of the name leads to, where the name has folders in front (`/home/me/images/a.jpg`, `images/a.jpg`)
        or lacks some.
        """
        folded = _folded(name.strip())
        parts = [part for part in folded.split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            if found := self._by_folded.get("/".join(parts[start:])):
                return found[0] if len(found) == 1 else None
        found = self._by_base.get(parts[-1], []) if len(parts) == 1 else []
        return found[0] if len(found) == 1 else None

    def with_other_suffix(self, name: str) -> str | None:
        """Return the one image in the same folder that differs in its suffix alone, or None."""
        found = [
            *self._by_stem.get(os.path.splitext(_folded(name))[0], ()),
            *self._by_stem.get(_folded(name), ()),
        ]
        images = [own for own in dict.fromkeys(found) if is_image_file(self.folder / own)]
        return images[0] if len(images) == 1 else None

    def similar_to(self, name: str) -> str | None:
        """Return a file that may have been meant: `meant_by`, or another suffix or spelling; None if nothing is near."""
        if found := self.meant_by(name):
            return found
        base = PurePosixPath(_folded(name)).name
        stem = os.path.splitext(base)[0]
        other_suffix = [own for own in self._by_base if os.path.splitext(own)[0] == stem]
        close = other_suffix or close_names(base, self._by_base)
        return self._by_base[close[0]][0] if close else None


def _folded(name: str) -> str:
    """Return a name as it compares (`folded_name`); of an address, what stands behind its host."""
    address = re.match(r"[a-z][a-z0-9+.-]*://[^/]*/([^?#]*)", name, re.IGNORECASE)
    return folded_name(address[1] if address else name)
