"""Data sets in COCO format: labels are kept in shared arrays, images are opened on demand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.coco_categories import COCO_CATEGORY_IDS
from ...core.detection_data import DetectionData
from ...core.errors import ConfigError, DataError
from ...core.ground_truth import Objects
from ...core.paths import did_you_mean_file
from ...core.registry import register
from ...runtime.distributed import barrier, is_main
from ...runtime.log import logger
from ..transforms.compose import Compose
from ..transforms.sample import Sample
from .box_formats import BoxFormat, Order, Unit
from .coco_format import load_coco
from .decoding import load_image
from .detection_dataset import DetectionDataset
from .image_cache import open_cache
from .image_file import ImageFile, first_readable
from .image_policy import ImagePolicy
from .label_ledger import TOO_SMALL, LabelLedger
from .listed_images import ListedImages, describe_duplicates, sizes_in_folder
from .picture import ImageFlag, is_bit_depth

START_FLAGS = (
    ImageFlag.SEVERAL_FRAMES,
    ImageFlag.TWO_ORIENTATIONS,
    ImageFlag.EXTRA_BANDS,
    ImageFlag.LOW_RANGE,
)
"""Flags that are warned about before a run."""


@register()
class CocoDetection(DetectionDataset):
    """Images with boxes from an annotation file in COCO format.

    The category ids of the file, sorted, become labels 0..C-1. The random generator of an image is derived
    from (seed, epoch, index), so the result depends neither on workers nor on restarts.
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
        bit_depth: int | None = None,
        reduced_decoding: bool | None = None,
        image_cache: str | None = None,
        image_cache_gb: float | None = None,
    ) -> None:
        """Read and check the annotation file; images are not opened.

        With `trust_files`, the headers of the images are read.

        Args:
            img_folder: folder that the file names are relative to.
            ann_file: COCO JSON file.
            transforms: transforms applied to each sample.
            return_masks: not supported; accepted because D-FINE's configurations set it to False.
            remap_mscoco_category: use positions in COCO's 80 classes as labels, for files with COCO's
                category ids.
            bad_images: fraction of the images that may be unreadable, 0..1. Each is replaced by a random
                image, drawn with the random generator of the unreadable one. None means `BAD_IMAGES` in
                training and 0 in evaluation, where every image counts.
            follow_links: open images that are symbolic links out of the folder.
            trust_files: if the size of an image differs from its labels, use the size of the image and keep
                the boxes unchanged, in its pixels. Otherwise this is a fault.
            watch_files: end the run if an image changes during it. Use False for storage with unstable
                modification times.
            box_order: order of the four numbers in `bbox`; None expects COCO's xywh and reports a fault if
                they look like another order.
            box_unit: unit of these numbers; None expects pixels and reports a fault if they look like another
                unit.
            bit_depth: number of bits, 8 to 16, that the samples of 16-bit image files use; None means 16. Set
                it to 12 for a sensor with 12 bits, whose images are almost black otherwise.
            reduced_decoding: decode a JPEG at 1/2, 1/4 or 1/8 of its size if that has as many pixels as are
                drawn. None does so in training and not in evaluation.
            image_cache: "memory", or a folder, in which decoded images are kept for the next epochs; None
                decodes them each time. The images and the random numbers of a run do not change.
            image_cache_gb: maximum size of the cache in units of 10^9 bytes; in memory, for each rank. None
                means 8.

        Raises:
            DataError: if the file has faults.
            ConfigError: if the folder does not exist, or if the categories are not COCO's although they
                should be.
        """
        if return_masks:
            raise ConfigError(
                "CocoDetection.return_masks is true; this detector does not use masks, set it to false"
            )
        if not Path(img_folder).is_dir():
            hint = did_you_mean_file(img_folder)
            raise ConfigError(
                f"CocoDetection.img_folder {img_folder} is not a folder{hint}"
            )
        if not 0 <= (bad_images or 0) < 1:
            raise ConfigError(
                f"CocoDetection.bad_images is {bad_images}, expected a fraction from 0 to below 1"
            )
        if not is_bit_depth(bit_depth):
            raise ConfigError(
                f"CocoDetection.bit_depth is {bit_depth}, expected 8 to 16"
            )
        self.bit_depth = bit_depth
        self.img_folder = Path(img_folder)
        self.ann_file = ann_file
        super().__init__(transforms)
        self.remap_mscoco_category = remap_mscoco_category
        given = None
        if box_order or box_unit:
            given = BoxFormat(box_order or "xywh", box_unit or "pixels")
        true_sizes = (
            partial(sizes_in_folder, self.img_folder) if trust_files else None
        )
        self.labels = load_coco(ann_file, true_sizes, given)
        self.class_names = self.labels.category_names
        self.category_ids = self.labels.category_ids
        self.label_of_category = self._label_table()
        self.images = ListedImages(
            self.labels,
            self.img_folder,
            follow_links=follow_links,
            watch=watch_files,
        )
        self.reduced_decoding = reduced_decoding
        self.policy = ImagePolicy(
            self.images,
            bad_images,
            bit_depth=bit_depth,
            cache=open_cache(image_cache, image_cache_gb, len(self)),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def load_image(self, index: int) -> Tensor:
        """Decode an image `[3, H, W]` uint8; its size must match its labels."""
        return load_image(
            self.image_path(index),
            self.images.size(index),
            bit_depth=self.bit_depth,
        )

    def objects(self, index: int) -> Objects:
        """Return the checked objects of an image; crowd regions and objects with `ignore` are ignored."""
        labels = self.labels
        rows = labels.rows(index)
        return Objects(
            labels.boxes[rows],
            labels.categories[rows],
            labels.crowds[rows],
            labels.areas[rows],
        )

    def image_id(self, index: int) -> int:
        """Return the id of an image in the file."""
        return int(self.labels.image_ids[index])

    def image_name(self, index: int) -> str:
        """Return the file name of an image as written in the annotation file."""
        return self.labels.file_name(index)

    def boxes_per_image(self) -> Tensor:
        """Return the number of boxes of each image, ignored ones included: `[N]` int64."""
        return self.labels.starts.diff()

    def usable_boxes(self) -> int:
        """Return the number of boxes that are used for training and scored."""
        return int((~self.labels.crowds).sum())

    def objects_in(self, image: Tensor, index: int) -> Objects:
        """Return the objects of an image; they were checked when the file was read."""
        return self.objects(index)

    def sample(self, index: int) -> Sample:
        """Apply the transforms, and decode an image as they need it, except for resampling.

        An image that cannot be read is replaced as by `load_or_replace`, with the same random numbers as if
        it were decoded before the transforms: the sample starts again, and the number of the replacement is
        drawn first.
        """
        if self._decodes_itself():
            return super().sample(index)
        draws = self.generator(index)

        def transformed(file: ImageFile) -> Sample:
            # what an image draws before it is rejected has no effect on its replacement
            rng = self.generator(index)
            rng.bit_generator.state = draws.bit_generator.state
            sample = self._sample_from(file, rng)
            self.transforms(sample, self.epoch)
            sample.pixels(sample.drawn_scale())
            return sample

        return first_readable(self._file(index), draws, transformed)

    def random_sample(self, rng: np.random.Generator) -> Sample:
        """Decode a random image for a mosaic, as large as it needs it."""
        if self._decodes_itself():
            return super().random_sample(rng)

        def decoded(file: ImageFile) -> Sample:
            sample = self._sample_from(file, rng)
            sample.pixels(self.transforms.tile_scale(sample.file_size))
            return sample

        index = int(rng.integers(len(self)))
        return first_readable(self._file(index), rng, decoded)

    def _decodes_itself(self) -> bool:
        """Return whether a subclass replaces the methods that decode an image before the transforms."""
        own = type(self)
        return (
            own.raw_sample is not DetectionDataset.raw_sample
            or own.load_or_replace is not CocoDetection.load_or_replace
        )

    def _file(self, index: int) -> ImageFile:
        return ImageFile(
            self.policy, index, may_reduce=bool(self.reduced_decoding)
        )

    def _sample_from(self, file: ImageFile, rng: np.random.Generator) -> Sample:
        return self.sample_of(file.index, file, self.objects(file.index), rng)

    def load_or_replace(
        self, index: int, rng: np.random.Generator
    ) -> tuple[int, Tensor]:
        """Decode an image, or random others drawn by `rng` until one is readable (`first_readable`)."""
        file = ImageFile(self.policy, index, may_reduce=False)
        return first_readable(
            file, rng, lambda tried: (tried.index, tried.decode(1).image)
        )

    def check(
        self, *, strict: bool = False, cache: Path | None = None
    ) -> list[str]:
        """Compare the labels with the image files before a run; all ranks together.

        Args:
            strict: end the run at the first image that cannot be read.
            cache: file for the header data of the images, which makes the next start faster.

        Returns:
            Warnings, one line each.

        Raises:
            DataError: if images are missing or contradict their labels, or if more than half of the boxes are
                lost.
        """
        if strict:
            self.policy.refuse()
        warnings = self.labels.findings.describe() + self._account_for_labels()
        if is_main():
            self.check_images_exist()
        barrier()
        self.scan_images(cache)
        self.policy.try_deep_images()
        for flag in START_FLAGS:
            warnings += self.policy.describe_news(flag)
        return warnings

    def _account_for_labels(self) -> list[str]:
        """Log how many labels reach the loss; return warnings about boxes that are too small for training."""
        ledger = self.ledger()
        if is_main():
            for line in ledger.lines():
                logger.info("%s", line)
        ledger.raise_if_mostly_lost()
        lines = []
        for entry in ledger.entries:
            if entry.cause == "size":
                lines.append(
                    f"{ledger.path}: boxes {entry.reason}: {entry.count}; {TOO_SMALL}"
                )
        return lines

    def describe_duplicates(self, *others: DetectionData) -> list[str]:
        """Return warnings about duplicate images, by name or by content.

        All data sets must have been checked before.
        """
        warnings = []
        compared = [self.images]
        for other in others:
            if not isinstance(other, CocoDetection):
                continue
            compared.append(other.images)
            both = self.images.in_common(other.images)
            if both:
                warnings.append(
                    f"images used for training and for evaluation: {len(both)} (first: {both[0]}); "
                    "the score will be too good"
                )
        return warnings + describe_duplicates(compared)

    def allow_bad_images(self) -> None:
        """Replace images that cannot be read, as in training.

        Up to a thousandth of the images may be replaced, unless `bad_images` is set.
        """
        self.policy.allow()

    def allow_reduced_decoding(self) -> None:
        """Decode large images at a reduced size, unless `reduced_decoding` is set."""
        if self.reduced_decoding is None:
            self.reduced_decoding = True

    def report_images(self) -> None:
        """Log news about images that were decoded; all ranks call this together (`ImagePolicy.report`)."""
        self.policy.report()

    def unreadable_images(self) -> list[int]:
        """Return the positions of the images that could not be read so far."""
        return self.policy.unreadable()

    def remember_unreadable(self, indices: Sequence[int]) -> None:
        """Flag images as unreadable that failed earlier in the run; they are not reported again."""
        self.policy.remember_unreadable(indices)

    def image_path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.images.path(index)

    def last_image(self, worker: int) -> str:
        """Return id and file name of the image that a loader worker started last."""
        index = self.policy.flags.last_started(worker)
        return "none yet" if index is None else self.images.describe(index)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, and forget the workers of the previous one."""
        super().set_epoch(epoch)
        self.policy.flags.forget_workers()

    def identity(self) -> dict[str, Any]:
        """Return what identifies this data independently of its path: image names, labels and classes.

        Returns:
            `names` and `labels`, `[N]` int64 hashes, and `classes`, (category id, name) in the order of ids.
        """
        pairs = zip(self.labels.category_ids, self.class_names)
        classes = [list(pair) for pair in pairs]
        return {
            "names": self.labels.name_hashes(),
            "labels": self.labels.label_hashes(),
            "classes": classes,
        }

    def ground_truth(self) -> dict[str, Any]:
        """Return the checked labels as a COCO dictionary for an evaluator.

        Categories have the ids that detections use: labels, or COCO's ids with `remap_mscoco_category`.

        Raises:
            DataError: if there is no usable box.
            ConfigError: if images may be skipped.
        """
        if self.policy.bad_images:
            raise ConfigError(
                f"val_dataloader.dataset.bad_images is {self.policy.bad_images:g}; "
                "the objects of a skipped image would count as missed, set it to 0"
            )
        if not self.usable_boxes():
            raise DataError(
                f"{self.ann_file} has no ground truth: none of its {len(self)} images has a usable box, "
                "so nothing can be scored"
            )
        return self.labels.as_coco(torch.tensor(self.detection_ids))

    def check_images_exist(self) -> None:
        """Check that the listed files exist, without opening them (`ListedImages.check_exist`)."""
        self.images.check_exist()

    def ledger(self) -> LabelLedger:
        """Return the ledger of the labels from the file to the loss.

        It includes the boxes that the transforms drop in every epoch.
        """
        labels = self.labels
        rows = {
            "boxes": labels.boxes,
            "crowds": labels.crowds,
            "starts": labels.starts,
        }
        return labels.ledger.after(
            self.transforms.certain_losses, rows, labels.sizes.numpy()
        )

    def scan_images(self, cache: Path | None = None) -> None:
        """Read the headers of all images; all ranks together (`ListedImages.scan_headers`).

        Args:
            cache: file in which the result is kept for the next start.

        Raises:
            DataError: if the sizes of images differ from their labels.
        """
        scan = self.images.scan_headers(cache)
        for flag in scan.found_flags():
            for index in scan.with_flag(flag):
                self.policy.flags.add(index, flag)

    def _label_table(self) -> Tensor:
        """Return the label of each category, `[C]` int64, in the order of the category ids."""
        ids = self.labels.category_ids
        if not self.remap_mscoco_category:
            return torch.arange(len(ids))
        foreign = [i for i in ids if i not in COCO_CATEGORY_IDS]
        if foreign:
            raise ConfigError(
                f"remap_mscoco_category is true, but {self.ann_file} has category ids "
                f"that COCO does not have: {foreign[:20]}; set it to False"
            )
        return torch.tensor(list(map(COCO_CATEGORY_IDS.index, ids)))
