"""Recognition of Pascal VOC's layout under the folder names that tools and people give it.

Recognized are a folder of XML files beside a folder of images, XML files beside their images, and both of
them in folders for each part (`train/`, `valid/`, `test/`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...core.paths import open_regular
from .folders import Entries
from .labelled_images import LabelledImages
from .voc import CORNER_AT_ZERO, VocFolders, read_voc

ANNOTATION_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels")

IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img", "jpgimages")

_ROOT_ELEMENT = re.compile(rb"<annotation(?!s)\b")

SNIFFED_BYTES = 4096


@dataclass(frozen=True)
class VocLayout:
    """A data set in Pascal VOC's layout."""

    data_format = "voc"
    root: Path
    folders: dict[str, VocFolders]
    """By part. With the part "train" alone, the lists in `ImageSets/Main` divide the images."""

    def where(self) -> str:
        """Return the place of the labels for a message."""
        annotations = next(iter(self.folders.values())).annotations
        name = annotations.relative_to(self.root).as_posix()
        return "*.xml" if name == "." else f"{name}/*.xml"

    def watched(self) -> Iterator[Path]:
        """Yield the files that the labels are made from."""
        for folders in self.folders.values():
            for folder in sorted({folders.annotations, folders.images}):
                yield from Entries(folder).files
        lists = self.root / "ImageSets" / "Main"
        if lists.is_dir():
            yield from Entries(lists).files

    def read(
        self,
        *,
        follow_links: bool,
        drop_boxes: bool,
        drop_strays: bool = True,
        difficult: str = "keep",
        zero_based: bool | None = None,
    ) -> LabelledImages:
        """Read the labels, with the arguments of `read_voc`.

        If `zero_based` is None, corners are counted from 0 if a corner is 0, and from 1 otherwise.

        Raises:
            DataError: if there are faults.
        """

        def read(zero_based: bool) -> LabelledImages:
            return read_voc(
                self.root,
                folders=self.folders,
                difficult=difficult,
                zero_based=zero_based,
                follow_links=follow_links,
                drop_boxes=drop_boxes,
                drop_strays=drop_strays,
            )

        if zero_based is not None:
            return read(zero_based)
        data = read(zero_based=False)
        at_zero = data.notes.pop(CORNER_AT_ZERO, 0)
        if at_zero:
            data = read(zero_based=True)
            data.notes[
                "boxes with a corner at 0; so all corners are counted from 0"
            ] += at_zero
        return data


def find_voc(root: Path) -> VocLayout | None:
    """Return the layout of a folder, or None if it is not Pascal VOC's."""
    entries = Entries(root)
    own = _folders_in(entries)
    if own is not None:
        parts = _divided(own)
        return VocLayout(root, parts or {"train": own})
    parts = {}
    for part, folder in entries.folders_by_part().items():
        found = _folders_in(Entries(folder))
        if found is not None:
            parts[part] = found
    return VocLayout(root, parts) if parts else None


def _folders_in(entries: Entries) -> VocFolders | None:
    """Return the folders of annotation files and images in a folder, or None."""
    if entries.has_images() and _has_annotations(entries):
        return VocFolders(entries.folder, entries.folder)
    images = entries.folder_named(*IMAGE_FOLDERS)
    if images is None and entries.has_images():
        images = entries.folder
    if images is None:
        return None
    for name in ANNOTATION_FOLDERS:
        annotations = entries.folder_named(name)
        if annotations is None:
            continue
        inside = Entries(annotations)
        if _has_annotations(inside) or _divided(
            VocFolders(annotations, images)
        ):
            return VocFolders(annotations, images)
    if _has_annotations(Entries(images)):
        return VocFolders(images, images)
    return None


def _divided(folders: VocFolders) -> dict[str, VocFolders]:
    """Return the folders of each part if annotations and images have subfolders for parts."""
    if _has_annotations(Entries(folders.annotations)):
        return {}
    images = Entries(folders.images).folders_by_part()
    xml = Entries(folders.annotations).folders_by_part()
    parts = {}
    for part, folder in xml.items():
        if part in images and _has_annotations(Entries(folder)):
            parts[part] = VocFolders(folder, images[part])
    return parts


def _has_annotations(entries: Entries) -> bool:
    """Return whether one of the first XML files of a folder is an annotation file of Pascal VOC."""
    for path in entries.with_suffix(".xml")[:20]:
        try:
            with open_regular(path) as file:
                head = file.read(SNIFFED_BYTES)
        except OSError:
            continue
        if _ROOT_ELEMENT.search(head.replace(b"\0", b"")):
            return True
    return False
