"""The image files that an annotation file lists: where they are, and whether they are what their labels say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core.errors import DataError
from ...core.fault_lists import FAULTS_SHOWN, listed
from ...runtime.log import logger
from .coco_format import CocoLabels
from .duplicate_images import find_duplicates
from .findings import place_of
from .header_scan import ImageScan, scan_images, sizes_of_files
from .image_names import FileIndex
from .misplaced_files import find_misplaced


class ListedImages:
    """Images by their position in an annotation file."""

    def __init__(self, labels: CocoLabels, folder: Path, *, follow_links: bool, watch: bool) -> None:
        """Store where the images are; no file is opened.

        Args:
            labels: names, ids and sizes of the images.
            folder: folder that the names are relative to.
            follow_links: accept images that symbolic links lead out of the folder.
            watch: refuse images that have changed since the scan.
        """
        self.labels = labels
        self.folder = folder
        self.follow_links = follow_links
        self.watch = watch
        self.scan: ImageScan | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.folder / self.labels.file_name(index)

    def size(self, index: int) -> tuple[int, int]:
        """Return (width, height) in pixels that the labels of an image were made for."""
        width, height = self.labels.sizes[index].tolist()
        return width, height

    def describe(self, index: int) -> str:
        """Return id and file name of an image: "7 (a.jpg)"."""
        return f"{int(self.labels.image_ids[index])} ({self.labels.file_name(index)})"

    def check_exist(self) -> None:
        """Compare the listed files with the folder, by listing each folder once; nothing is opened.

        Raises:
            DataError: with the number of files that are missing or lead out of the folder, and the first of them.
        """
        names = [self.labels.file_name(index) for index in range(len(self))]
        missing, leaving = find_misplaced(self.folder, names)
        of_all = f"of {len(self)} images of {self.labels.path}"
        if missing:
            files = FileIndex(self.folder)
            shown = "; ".join(self._describe_missing(i, files) for i in missing[:FAULTS_SHOWN])
            more = f" ... and {len(missing) - FAULTS_SHOWN} more" if len(missing) > FAULTS_SHOWN else ""
            fixable = sum(files.meant_by(names[i]) is not None for i in missing)
            advice = f"; tools/dataset/check.py --fix corrects {fixable} of these names" if fixable else ""
            raise DataError(f"{len(missing)} {of_all} do not exist in {self.folder}: {shown}{more}{advice}")
        if leaving and not self.follow_links:
            places = [f"{self._place(i)} {names[i]} -> {target}" for i, target in leaving.items()]
            raise DataError(
                f"{len(leaving)} {of_all} lead out of {self.folder} by symbolic links: {listed(places)}; "
                "set img_folder to where the images are, or dataset.follow_links to True if you trust the links"
            )

    def _place(self, index: int) -> str:
        return place_of("images", index, int(self.labels.image_ids[index]))

    def _describe_missing(self, index: int, files: FileIndex) -> str:
        name = self.labels.file_name(index)
        similar = files.similar_to(name)
        hint = f", did you mean {similar!r}?" if similar else ""
        return f"{self._place(index)} {name!r}{hint}"

    def scan_headers(self, cache: Path | None = None) -> ImageScan:
        """Read the headers of all images, and from now on notice changes of their files; all ranks together.

        Args:
            cache: file in which this is kept for the next start.

        Raises:
            DataError: with the number of images that have another size than their labels say, and the first of them.
        """
        sizes = self.labels.sizes.numpy()
        self.scan = scan_images([str(self.path(index)) for index in range(len(self))], sizes, cache)
        if wrong := self.scan.contradictions(sizes):
            shown = [
                f"{self.path(i)} has {w} x {h}, its labels were made for {sizes[i, 0]} x {sizes[i, 1]}"
                for i, (w, h) in wrong.items()
            ]
            raise DataError(
                f"{len(wrong)} of {len(self)} images of {self.labels.path} have other sizes than their labels say: "
                f"{listed(shown, '; ')}; correct width and height in the annotation file, as tools/dataset/check.py --fix does, "
                "or, if the boxes fit the images as they are, set dataset.trust_files to True"
            )
        return self.scan

    def check_unchanged(self, index: int, now: os.stat_result) -> None:
        """Compare an opened file with what the scan has seen, if there was one.

        Raises:
            ImageChangedError: if its length or its time of change differ.
        """
        if self.scan is not None and self.watch:
            self.scan.check_unchanged(index, now)

    def in_common(self, other: ListedImages) -> list[str]:
        """Return the files that another annotation file lists too, by their paths."""
        return sorted(self._real_paths() & other._real_paths())

    def _real_paths(self) -> set[str]:
        folder = os.path.realpath(self.folder)
        return {f"{folder}/{self.labels.file_name(index)}" for index in range(len(self))}


def sizes_in_folder(folder: Path, names: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """Return the sizes `[N, 2]` of files (`header_scan.sizes_of_files`)."""
    return sizes_of_files([str(folder / name) for name in names], sizes)


def describe_duplicates(data_sets: Sequence[ListedImages]) -> list[str]:
    """Return a line about images with the same content under different names, for each data set and for what they share.

    Args:
        data_sets: for training and for evaluation, or one of them; those that have not been scanned are left out.
    """
    scanned = [(images, images.scan) for images in data_sets if images.scan is not None]
    if not scanned:
        return []
    duplicates = find_duplicates([scan for _, scan in scanned])
    lines = []
    for number, (images, _) in enumerate(scanned):
        if groups := duplicates.within(number):
            count = sum(len(group) - 1 for group in groups)
            first = f"(first: {groups[0][1]} is {groups[0][0]})"
            lines.append(f"{images.labels.path}: images with the content of another one: {count} {first}")
    if groups := duplicates.shared():
        first = f"(first: {groups[0][-1]} is {groups[0][0]})"
        lines.append(
            f"{len(groups)} images are in both data sets under different names {first}; the score will be too good"
        )
    if duplicates.unread:
        logger.info(
            "%d images that look alike were not compared in full: there are too many", duplicates.unread
        )
    return lines
