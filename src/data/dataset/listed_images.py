"""The image files that an annotation file lists: their paths, and checks against their labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core.commands import command_name
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

    def __init__(
        self,
        labels: CocoLabels,
        folder: Path,
        *,
        follow_links: bool,
        watch: bool,
    ) -> None:
        """Store the arguments; no file is opened.

        Args:
            labels: labels with names, ids and sizes of the images.
            folder: folder that the names are relative to.
            follow_links: accept images that are symbolic links out of the folder.
            watch: raise an error for images that have changed since the scan.
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
        """Check that the listed files exist, by listing each folder once; no file is opened.

        Raises:
            DataError: if files are missing or are links out of the folder; with their number and the first of
                them.
        """
        names = list(map(self.labels.file_name, range(len(self))))
        missing, leaving = find_misplaced(self.folder, names)
        of_all = f"of {len(self)} images of {self.labels.path}"
        if missing:
            shown = self._describe_all_missing(missing, names)
            raise DataError(
                f"{len(missing)} {of_all} do not exist in {self.folder}: {shown}"
            )
        if leaving and not self.follow_links:
            places = []
            for index, target in leaving.items():
                places.append(
                    f"{self._place(index)} {names[index]} -> {target}"
                )
            raise DataError(
                f"{len(leaving)} {of_all} are symbolic links out of {self.folder}: {listed(places)}; "
                "set img_folder to where the images are, "
                "or dataset.follow_links to True if you trust the links"
            )

    def _describe_all_missing(
        self, missing: list[int], names: list[str]
    ) -> str:
        """Return the first missing images with suggestions, and advice."""
        files = FileIndex(self.folder)
        shown = [
            self._describe_missing(i, files) for i in missing[:FAULTS_SHOWN]
        ]
        text = "; ".join(shown)
        if len(missing) > FAULTS_SHOWN:
            text += f" ... and {len(missing) - FAULTS_SHOWN} more"
        fixable = sum(files.meant_by(names[i]) is not None for i in missing)
        if fixable:
            text += f"; {command_name('check')} --fix corrects {fixable} of these names"
        return text

    def _place(self, index: int) -> str:
        return place_of("images", index, int(self.labels.image_ids[index]))

    def _describe_missing(self, index: int, files: FileIndex) -> str:
        name = self.labels.file_name(index)
        similar = files.similar_to(name)
        hint = f", did you mean {similar!r}?" if similar else ""
        return f"{self._place(index)} {name!r}{hint}"

    def scan_headers(self, cache: Path | None = None) -> ImageScan:
        """Read the headers of all images, and notice changes of their files from now on; all ranks together.

        Args:
            cache: file in which the result is kept for the next start.

        Raises:
            DataError: if the sizes of images differ from their labels; with their number and the first of
                them.
        """
        sizes = self.labels.sizes.numpy()
        paths = [str(self.path(index)) for index in range(len(self))]
        self.scan = scan_images(paths, sizes, cache)
        wrong = self.scan.contradictions(sizes)
        if wrong:
            shown = []
            for index, (width, height) in wrong.items():
                labelled = f"{sizes[index, 0]} x {sizes[index, 1]}"
                shown.append(
                    f"{paths[index]} has {width} x {height}, its labels were made for {labelled}"
                )
            raise DataError(
                f"{len(wrong)} of {len(self)} images of {self.labels.path} have sizes that differ "
                f"from their labels: {listed(shown, '; ')}; "
                f"correct width and height in the annotation file, as {command_name('check')} --fix does, "
                "or, if the boxes fit the images as they are, set dataset.trust_files to True"
            )
        return self.scan

    def check_unchanged(self, index: int, now: os.stat_result) -> None:
        """Compare the status of an opened file with the scan, if there was one.

        Raises:
            ImageChangedError: if its length or its modification time differs.
        """
        if self.scan is not None and self.watch:
            self.scan.check_unchanged(index, now)

    def in_common(self, other: ListedImages) -> list[str]:
        """Return the paths of the files that another annotation file lists, too."""
        return sorted(self._real_paths() & other._real_paths())

    def _real_paths(self) -> set[str]:
        folder = os.path.realpath(self.folder)
        names = map(self.labels.file_name, range(len(self)))
        return {f"{folder}/{name}" for name in names}


def sizes_in_folder(
    folder: Path,
    names: Sequence[str],
    sizes: np.ndarray,
) -> np.ndarray:
    """Return the sizes `[N, 2]` of files (`header_scan.sizes_of_files`)."""
    return sizes_of_files([str(folder / name) for name in names], sizes)


def describe_duplicates(data_sets: Sequence[ListedImages]) -> list[str]:
    """Return a line about duplicate images under different names, for each data set and between them.

    Args:
        data_sets: data for training and for evaluation, or one of them; data that was not scanned is skipped.
    """
    scans = []
    label_files = []
    for images in data_sets:
        if images.scan is not None:
            scans.append(images.scan)
            label_files.append(images.labels.path)
    if not scans:
        return []
    duplicates = find_duplicates(scans)
    lines = []
    for number, path in enumerate(label_files):
        groups = duplicates.within(number)
        if groups:
            count = sum(len(group) - 1 for group in groups)
            first = f"(first: {groups[0][1]} is {groups[0][0]})"
            lines.append(
                f"{path}: images with the content of another one: {count} {first}"
            )
    groups = duplicates.shared()
    if groups:
        first = f"(first: {groups[0][-1]} is {groups[0][0]})"
        lines.append(
            f"images in both data sets under different names: {len(groups)} {first}; "
            "the score will be too good"
        )
    if duplicates.unread:
        logger.info(
            "candidates for duplicate images that were not compared in full: %d; there are too many",
            duplicates.unread,
        )
    return lines
