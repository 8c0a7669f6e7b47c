"""COCO-format data sets: labels as shared arrays, images opened when asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.coco_categories import COCO_CATEGORY_IDS
from ...core.contracts import DetectionData, Objects
from ...core.errors import ConfigError, DataError
from ...core.paths import did_you_mean_file
from ...core.registry import register
from ...runtime.distributed import barrier, is_main
from ...runtime.log import logger
from ..transforms.compose import Compose
from .box_formats import BoxFormat, Order, Unit
from .coco_format import CocoLabels, load_coco
from .decoding import ImageChangedError, ImageError, ImageSizeError, Mark, inspect_image, load_image
from .detection_dataset import DetectionDataset
from .duplicate_images import find_duplicates
from .findings import FAULTS_SHOWN, listed, place_of
from .header_scan import ImageScan, scan_images, sizes_of_files
from .image_flags import ImageFlags
from .image_names import FileIndex
from .label_ledger import LabelLedger
from .misplaced_files import find_misplaced

BAD_IMAGES = 0.001
"""Share of a training set's images that may be unreadable."""

_TOLD = {
    Mark.SEVERAL_FRAMES: (logging.WARNING, "images with several frames, of which the first is used"),
    Mark.TURNED: (logging.INFO, "images turned upright, as a note in their files says"),
    Mark.CMYK: (logging.INFO, "CMYK images, converted to RGB"),
    Mark.DEEP: (logging.INFO, "16-bit images, scaled to 8 bits"),
}
"""What is said once about images with a mark, and how loudly."""


@register()
class CocoDetection(DetectionDataset):
    """Images with boxes from an annotation file in COCO format.

    The file's category ids, sorted, become labels 0..C-1, whatever they are. Every draw of chance for an image
    follows from (seed, epoch, index), so that neither workers nor restarts change what comes out.
    """

    ann_file: str = ""
    __share__ = ["remap_mscoco_category"]

    def __init__(
        self,
        img_folder: str,
        ann_file: str,
        transforms: Compose | None = None,
        return_masks: bool = False,
        remap_mscoco_category: bool = False,
        bad_images: float | None = None,
        follow_links: bool = False,
        trust_files: bool = False,
        watch_files: bool = True,
        box_order: Order | None = None,
        box_unit: Unit | None = None,
    ) -> None:
        """Read and check the annotation file; images are not touched, but for their headers with `trust_files`.

        Args:
            img_folder: folder that the file names are relative to.
            ann_file: COCO JSON file.
            transforms: what happens to each sample.
            return_masks: not supported; there for D-FINE's files, which say False.
            remap_mscoco_category: labels are positions in COCO's 80 classes, for files with COCO's category ids.
            bad_images: share of the images that may turn out unreadable, 0..1; another image, by the chance of the one
                that it replaces, takes the place of each. None for `BAD_IMAGES` in training and none in evaluation, where
                every image counts.
            follow_links: open images that are symbolic links out of the folder.
            trust_files: where an image has another size than its labels say, the image is right, and the boxes are kept as they
                stand, in its pixels. Otherwise that is a fault.
            watch_files: an image that changes during a run ends it; False for storage whose times of change are not steady.
            box_order: what the four numbers of `bbox` are; None for COCO's xywh, and a fault if they look like another order.
            box_unit: what they are measured in; None for pixels, likewise.

        Raises:
            DataError: for faults in the file.
            ConfigError: if there is no such folder, or the categories are not COCO's although they should be.
        """
        if return_masks:
            raise ConfigError(
                "CocoDetection.return_masks is true; this detector has no use for masks, set it to false"
            )
        if not Path(img_folder).is_dir():
            hint = did_you_mean_file(img_folder)
            raise ConfigError(f"CocoDetection.img_folder {img_folder} is not a folder{hint}")
        if not 0 <= (bad_images or 0) < 1:
            raise ConfigError(f"CocoDetection.bad_images is {bad_images}, expected a share from 0 to below 1")
        self.img_folder, self.ann_file = Path(img_folder), ann_file
        self.bad_images, self.follow_links, self.watch_files = bad_images, follow_links, watch_files
        super().__init__(transforms)
        self.remap_mscoco_category = remap_mscoco_category
        given = (
            None if box_order is box_unit is None else BoxFormat(box_order or "xywh", box_unit or "pixels")
        )
        self.labels = load_coco(ann_file, self._sizes_of_files if trust_files else None, given)
        self.class_names = self.labels.category_names
        self.category_ids = self.labels.category_ids
        self.label_of_category = self._label_table()
        self.marks = ImageFlags(len(self.labels))
        self.scan: ImageScan | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def load_image(self, index: int) -> Tensor:
        """Decode an image `[3, H, W]` uint8, which must have the size that its labels were made for."""
        return load_image(self.image_path(index), self._size(index))

    def objects(self, index: int) -> Objects:
        """Return the checked objects of an image; crowd regions and objects with `ignore` are ignored."""
        labels, rows = self.labels, self.labels.rows(index)
        return Objects(labels.boxes[rows], labels.categories[rows], labels.crowds[rows], labels.areas[rows])

    def image_id(self, index: int) -> int:
        """Return the id of an image in the file."""
        return int(self.labels.image_ids[index])

    def image_name(self, index: int) -> str:
        """Return the file name of an image as it stands in the file."""
        return self.labels.file_name(index)

    def boxes_per_image(self) -> Tensor:
        """Return the number of boxes of each image, ignored ones included: `[N]` int64."""
        return self.labels.starts.diff()

    def usable_boxes(self) -> int:
        """Return the number of boxes that are learned and scored."""
        return int((~self.labels.crowds).sum())

    def load_or_replace(self, index: int, rng: np.random.Generator) -> tuple[int, Tensor]:
        """Decode an image, or others that `rng` draws until one is sound; return which it is."""
        while True:
            self.marks.begin(index)
            try:
                image, marks = inspect_image(
                    self.image_path(index), self._size(index), partial(self._check_unchanged, index)
                )
            except (
                ImageSizeError,
                ImageChangedError,
            ):  # the file is sound: the labels, or those who write, are not to be trusted
                raise
            except ImageError as error:
                if not self.bad_images:
                    raise
                self.marks.add(index, Mark.UNREADABLE)
                self._limit_bad_images(f"; the last: {error}")
                index = int(rng.integers(len(self)))
            else:
                self.marks.add(index, marks)
                return index, image

    def _check_unchanged(self, index: int, now: os.stat_result) -> None:
        if self.scan is not None and self.watch_files:
            self.scan.check_unchanged(index, now)

    def check(self, *, strict: bool = False, cache: Path | None = None) -> list[str]:
        """Compare the labels with the image files before a run; all ranks together.

        Args:
            strict: the first image that cannot be read ends the run.
            cache: file for what the headers of the images say, so that the next start is faster.

        Returns:
            Warnings, one a line.

        Raises:
            DataError: if images are missing or contradict their labels, or if more than half of the boxes are lost.
        """
        if strict:
            self.refuse_bad_images()
        warnings = self.labels.findings.describe() + self._account_for_labels()
        if is_main():
            self.check_images_exist()
        barrier()
        self.scan_images(cache)
        return warnings + self.describe_frames()

    def _account_for_labels(self) -> list[str]:
        """Log what becomes of the labels between file and loss; return warnings about boxes that are too small to be learned."""
        ledger = self.ledger()
        if is_main():
            for line in ledger.lines():
                logger.info("%s", line)
        ledger.raise_if_mostly_lost()
        return [
            f"{ledger.path}: boxes {entry.reason}: {entry.count}; they are not learned, but evaluation would count them"
            for entry in ledger.entries
            if entry.cause == "size"
        ]

    def describe_duplicates(self, *others: DetectionData) -> list[str]:
        """Return warnings about images that are in the data twice, by name or by content; all data sets have been checked."""
        lines = []
        comparable = [other for other in others if isinstance(other, CocoDetection)]
        for other in comparable:
            if both := self.images_in_common(other):
                lines.append(
                    f"{len(both)} images are used for training and for evaluation (first: {both[0]}); the score will be too good"
                )
        return lines + self.describe_twins(*comparable)

    def refuse_bad_images(self) -> None:
        """Let the first image that cannot be read end the run, whatever the settings say."""
        self.bad_images = 0

    def allow_bad_images(self) -> None:
        """Leave out images that cannot be read, as training may: `BAD_IMAGES` of them where the settings say nothing."""
        if self.bad_images is None:
            self.bad_images = BAD_IMAGES

    @property
    def _tolerated(self) -> int:
        return int((self.bad_images or 0) * len(self) + 1e-9)

    def _limit_bad_images(self, detail: str = "") -> None:
        """Raise `DataError` once more images are unreadable than may be."""
        bad = self.marks.images(Mark.UNREADABLE)
        if len(bad) > self._tolerated:
            raise DataError(
                f"{len(bad)} of {len(self)} images of {self.ann_file} cannot be read, more than the share of {self.bad_images:g} that "
                f"bad_images tolerates: {listed([str(self.image_path(i)) for i in bad])}{detail}; repair them, or raise dataset.bad_images"
            )

    def report_images(self) -> None:
        """Say what is new since the last time about images that were decoded, over all ranks; all of them call this together.

        Raises:
            DataError: if the ranks together met more unreadable images than `bad_images` allows.
        """
        self.marks.join_ranks()
        bad = self.marks.take_news(Mark.UNREADABLE)
        for index in bad[:FAULTS_SHOWN]:
            logger.warning("%s; another image takes its place", self._why_bad(index))
        if bad:
            logger.warning(
                "%s: images that cannot be read: %d, tolerated are %d (bad_images: %g)",
                self.ann_file,
                len(self.marks.images(Mark.UNREADABLE)),
                self._tolerated,
                self.bad_images,
            )
        for mark, (level, _) in _TOLD.items():
            if new := self.marks.take_news(mark):
                logger.log(level, "%s", self._told(mark, new[0]))
        self._limit_bad_images()

    def _told(self, mark: Mark, first: int) -> str:
        return f"{self.ann_file}: {_TOLD[mark][1]}: {len(self.marks.images(mark))} (first: {self.labels.file_name(first)})"

    def _why_bad(self, index: int) -> str:
        """Decode an image that was unreadable once more, since the process that met it could not tell us."""
        path = self.image_path(index)
        try:
            load_image(path, self._size(index))
        except ImageError as error:
            return str(error)
        return f"image {path} could not be read at first, but can be now"

    def _size(self, index: int) -> tuple[int, int]:
        width, height = self.labels.sizes[index].tolist()
        return width, height

    def image_path(self, index: int) -> Path:
        """Return where an image lies."""
        return self.img_folder / self.labels.file_name(index)

    def last_image(self, worker: int) -> str:
        """Return id and file name of the image that a worker of the loader began with last."""
        index = self.marks.last_begun(worker)
        return (
            "none yet"
            if index is None
            else f"{int(self.labels.image_ids[index])} ({self.labels.file_name(index)})"
        )

    def images_in_common(self, other: CocoDetection) -> list[str]:
        """Return the files that another data set holds too, by their paths."""
        ours, theirs = (
            {f"{folder}/{data.labels.file_name(i)}" for i in range(len(data))}
            for data, folder in ((data, os.path.realpath(data.img_folder)) for data in (self, other))
        )
        return sorted(ours & theirs)

    def set_epoch(self, epoch: int) -> None:
        """Store the epoch that begins; its workers are new ones."""
        super().set_epoch(epoch)
        self.marks.forget_workers()

    def identity(self) -> dict[str, Any]:
        """Return what tells this data from other data, whatever its path: names and labels of images, and classes.

        Returns:
            `names` and `labels`, `[N]` int64 hashes, and `classes`, (category id, name) in the order of ids.
        """
        classes = [[category, name] for category, name in zip(self.labels.category_ids, self.class_names)]
        return {
            "names": self.labels.name_hashes(),
            "labels": self.labels.label_hashes(),
            "classes": classes,
        }

    def unreadable_images(self) -> list[int]:
        """Return the positions of the images that could not be read so far."""
        return self.marks.images(Mark.UNREADABLE)

    def remember_unreadable(self, indices: Sequence[int]) -> None:
        """Count images as unreadable that an earlier part of the run could not read; they are not reported again."""
        for index in indices:
            self.marks.add(index, Mark.UNREADABLE)
        self.marks.take_news(Mark.UNREADABLE)

    def ground_truth(self) -> dict[str, Any]:
        """Return the checked labels as a COCO dictionary for an evaluator.

        Categories stand under the ids that detections carry: labels, or COCO's ids with the remap on.

        Raises:
            DataError: if there is nothing to find.
            ConfigError: if images may be left out.
        """
        if self.bad_images:
            raise ConfigError(
                f"val_dataloader.dataset.bad_images is {self.bad_images:g}; an image left out would count as objects missed, set it to 0"
            )
        if not self.usable_boxes():
            raise DataError(
                f"{self.ann_file} has no ground truth: none of its {len(self)} images has a usable box, so nothing can be scored"
            )
        return _coco_dictionary(self.labels, torch.tensor(self.detection_ids))

    def check_images_exist(self) -> None:
        """Compare the listed files with the folder, by listing each folder once; nothing is opened.

        Raises:
            DataError: with the number of files that are missing or lead out of the folder, and the first of them.
        """
        names = [self.labels.file_name(index) for index in range(len(self))]
        missing, leaving = find_misplaced(self.img_folder, names)
        if missing:
            files = FileIndex(self.img_folder)
            shown = "; ".join(self._describe_missing(i, files) for i in missing[:FAULTS_SHOWN])
            more = f" ... and {len(missing) - FAULTS_SHOWN} more" if len(missing) > FAULTS_SHOWN else ""
            fixable = sum(files.meant_by(names[i]) is not None for i in missing)
            advice = f"; tools/dataset/check.py --fix corrects {fixable} of these names" if fixable else ""
            raise DataError(
                f"{len(missing)} of {len(self)} images of {self.ann_file} do not exist in {self.img_folder}: "
                f"{shown}{more}{advice}"
            )
        if leaving and not self.follow_links:
            shown = listed(
                [
                    f"images[{i}] (id {int(self.labels.image_ids[i])}) {names[i]} -> {target}"
                    for i, target in leaving.items()
                ]
            )
            raise DataError(
                f"{len(leaving)} of {len(self)} images of {self.ann_file} lead out of {self.img_folder} by symbolic links: {shown}; "
                "set img_folder to where the images are, or dataset.follow_links to True if you trust the links"
            )

    def _describe_missing(self, index: int, files: FileIndex) -> str:
        name = self.labels.file_name(index)
        similar = files.similar_to(name)
        hint = f", did you mean {similar!r}?" if similar else ""
        return f"{place_of('images', index, int(self.labels.image_ids[index]))} {name!r}{hint}"

    def ledger(self) -> LabelLedger:
        """Return the account of the labels from the file to the loss, with what the transforms drop whatever chance does."""
        labels = self.labels
        rows = {"boxes": labels.boxes, "crowds": labels.crowds, "starts": labels.starts}
        return labels.ledger.after(self.transforms.certain_losses, rows, labels.sizes.numpy())

    def scan_images(self, cache: Path | None = None) -> None:
        """Look at the headers of all images, and from now on for changes of their files; all ranks together.

        Args:
            cache: file in which this is kept for the next start.

        Raises:
            DataError: with the number of images that have another size than their labels say, and the first of them.
        """
        sizes = self.labels.sizes.numpy()
        self.scan = scan_images([str(self.image_path(index)) for index in range(len(self))], sizes, cache)
        for index in self.scan.several_frames():
            self.marks.add(index, Mark.SEVERAL_FRAMES)
        if odd := self.scan.contradictions(sizes):
            shown = listed(
                [
                    f"{self.image_path(i)} has {w} x {h}, its labels were made for {sizes[i, 0]} x {sizes[i, 1]}"
                    for i, (w, h) in odd.items()
                ],
                "; ",
            )
            raise DataError(
                f"{len(odd)} of {len(self)} images of {self.ann_file} have other sizes than their labels say: {shown}; correct width and height "
                f"in the annotation file, as tools/dataset/check.py --fix does, or, if the boxes fit the images as they are, set "
                f"dataset.trust_files to True"
            )

    def describe_frames(self) -> list[str]:
        """Return a line about images with several frames, if the scan found some; it is not told again."""
        new = self.marks.take_news(Mark.SEVERAL_FRAMES)
        return [self._told(Mark.SEVERAL_FRAMES, new[0])] if new else []

    def describe_twins(self, *others: CocoDetection) -> list[str]:
        """Return a line about images that are there twice under different names, for each data set and for what they share; all have been scanned."""
        data_sets = [self, *others]
        duplicates = find_duplicates([data.scan for data in data_sets])
        lines = [
            f"{data.ann_file}: images with the content of another one: {sum(len(group) - 1 for group in groups)} (first: {groups[0][1]} is {groups[0][0]})"
            for number, data in enumerate(data_sets)
            if (groups := duplicates.within(number))
        ]
        if groups := duplicates.shared():
            lines.append(
                f"{len(groups)} images are in both data sets under different names (first: {groups[0][-1]} is {groups[0][0]}); the score will be "
                f"too good"
            )
        if duplicates.unread:
            logger.info(
                "%d images that look alike were not compared in full: there are too many", duplicates.unread
            )
        return lines

    def _sizes_of_files(self, names: list[str], sizes: np.ndarray) -> np.ndarray:
        return sizes_of_files([str(self.img_folder / name) for name in names], sizes)

    def _label_table(self) -> Tensor:
        ids = self.labels.category_ids
        if not self.remap_mscoco_category:
            return torch.arange(len(ids))
        label = {category: index for index, category in enumerate(COCO_CATEGORY_IDS)}
        if foreign := [i for i in ids if i not in label]:
            raise ConfigError(
                f"remap_mscoco_category is true, but {self.ann_file} has category ids that COCO has not: {foreign[:20]}; set it to False"
            )
        return torch.tensor([label[i] for i in ids])


def _coco_dictionary(labels: CocoLabels, ids: Tensor) -> dict[str, Any]:
    names = dict(zip(ids.tolist(), labels.category_names))
    image_of_box = torch.repeat_interleave(labels.image_ids, labels.starts.diff())
    xywh = torch.cat([labels.boxes[:, :2], labels.boxes[:, 2:] - labels.boxes[:, :2]], 1)
    rows = zip(
        image_of_box.tolist(),
        ids[labels.categories].tolist(),
        xywh.tolist(),
        labels.areas.tolist(),
        labels.crowds.int().tolist(),
    )
    return {
        "images": [
            {"id": i, "width": w, "height": h}
            for i, (w, h) in zip(labels.image_ids.tolist(), labels.sizes.tolist())
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": a, "iscrowd": k}
            for n, (i, c, b, a, k) in enumerate(rows, start=1)
        ],  # evaluators take id 0 for "no match"
        "categories": [{"id": i, "name": name} for i, name in sorted(names.items())],
    }
