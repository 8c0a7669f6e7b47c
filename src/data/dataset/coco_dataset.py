"""COCO-format data sets: labels as shared arrays, images opened when asked for."""

from __future__ import annotations

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
from .coco_format import load_coco
from .decoding import Mark, load_image
from .detection_dataset import DetectionDataset
from .image_policy import ImagePolicy
from .label_ledger import LabelLedger
from .listed_images import ListedImages, describe_duplicates, sizes_in_folder


@register()
class CocoDetection(DetectionDataset):
    """Images with boxes from an annotation file in COCO format.

    The file's category ids, sorted, become labels 0..C-1, whatever they are. Every draw of chance for an image
    follows from (seed, epoch, index), so that neither workers nor restarts change what comes out.
    """

    ann_file: str = ""
    __share__ = ["remap_mscoco_category"]
    has_checked_labels = True

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
        self.img_folder = Path(img_folder)
        self.ann_file = ann_file
        super().__init__(transforms)
        self.remap_mscoco_category = remap_mscoco_category
        given = (
            None if box_order is box_unit is None else BoxFormat(box_order or "xywh", box_unit or "pixels")
        )
        true_sizes = partial(sizes_in_folder, self.img_folder) if trust_files else None
        self.labels = load_coco(ann_file, true_sizes, given)
        self.class_names = self.labels.category_names
        self.category_ids = self.labels.category_ids
        self.label_of_category = self._label_table()
        self.images = ListedImages(self.labels, self.img_folder, follow_links=follow_links, watch=watch_files)
        self.policy = ImagePolicy(self.images, bad_images)

    def __len__(self) -> int:
        return len(self.labels)

    def load_image(self, index: int) -> Tensor:
        """Decode an image `[3, H, W]` uint8, which must have the size that its labels were made for."""
        return load_image(self.image_path(index), self.images.size(index))

    def objects(self, index: int) -> Objects:
        """Return the checked objects of an image; crowd regions and objects with `ignore` are ignored."""
        labels = self.labels
        rows = self.labels.rows(index)
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

    def objects_in(self, image: Tensor, index: int) -> Objects:
        """Return the objects of an image; they were checked when the file was read."""
        return self.objects(index)

    def load_or_replace(self, index: int, rng: np.random.Generator) -> tuple[int, Tensor]:
        """Decode an image, or others that `rng` chooses until one is sound (`ImagePolicy.load`)."""
        return self.policy.load(index, rng)

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
            self.policy.refuse()
        warnings = self.labels.findings.describe() + self._account_for_labels()
        if is_main():
            self.check_images_exist()
        barrier()
        self.scan_images(cache)
        return warnings + self.policy.describe_news(Mark.SEVERAL_FRAMES)

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
            if both := self.images.in_common(other.images):
                lines.append(
                    f"{len(both)} images are used for training and for evaluation (first: {both[0]}); the score will be too good"
                )
        return lines + describe_duplicates([self.images, *(other.images for other in comparable)])

    def allow_bad_images(self) -> None:
        """Replace images that cannot be read, as training may: a thousandth of them if the settings give no share."""
        self.policy.allow()

    def report_images(self) -> None:
        """Log what is new about images that were decoded; all ranks call this together (`ImagePolicy.report`)."""
        self.policy.report()

    def unreadable_images(self) -> list[int]:
        """Return the positions of the images that could not be read so far."""
        return self.policy.unreadable()

    def remember_unreadable(self, indices: Sequence[int]) -> None:
        """Count images as unreadable that an earlier part of the run could not read; they are not reported again."""
        self.policy.remember_unreadable(indices)

    def image_path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.images.path(index)

    def last_image(self, worker: int) -> str:
        """Return id and file name of the image that a worker of the loader began with last."""
        index = self.policy.flags.last_begun(worker)
        return "none yet" if index is None else self.images.describe(index)

    def set_epoch(self, epoch: int) -> None:
        """Store the epoch that begins; its workers are new ones."""
        super().set_epoch(epoch)
        self.policy.flags.forget_workers()

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

    def ground_truth(self) -> dict[str, Any]:
        """Return the checked labels as a COCO dictionary for an evaluator.

        Categories stand under the ids that detections carry: labels, or COCO's ids with the remap on.

        Raises:
            DataError: if there is nothing to find.
            ConfigError: if images may be left out.
        """
        if self.policy.bad_images:
            raise ConfigError(
                f"val_dataloader.dataset.bad_images is {self.policy.bad_images:g}; an image left out would count as objects missed, set it to 0"
            )
        if not self.usable_boxes():
            raise DataError(
                f"{self.ann_file} has no ground truth: none of its {len(self)} images has a usable box, so nothing can be scored"
            )
        return self.labels.as_coco(torch.tensor(self.detection_ids))

    def check_images_exist(self) -> None:
        """Compare the listed files with the folder; nothing is opened (`ListedImages.check_exist`)."""
        self.images.check_exist()

    def ledger(self) -> LabelLedger:
        """Return the account of the labels from the file to the loss, with what the transforms drop whatever chance does."""
        labels = self.labels
        rows = {"boxes": labels.boxes, "crowds": labels.crowds, "starts": labels.starts}
        return labels.ledger.after(self.transforms.certain_losses, rows, labels.sizes.numpy())

    def scan_images(self, cache: Path | None = None) -> None:
        """Read the headers of all images; all ranks together (`ListedImages.scan_headers`).

        Args:
            cache: file in which this is kept for the next start.

        Raises:
            DataError: if images have other sizes than their labels say.
        """
        scan = self.images.scan_headers(cache)
        for index in scan.several_frames():
            self.policy.flags.add(index, Mark.SEVERAL_FRAMES)

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
