"""COCO-format data sets: labels as shared arrays, images opened when asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...core.coco_categories import COCO_CATEGORY_IDS
from ...core.durations import KnowsRunLength, RunLength
from ...core.errors import ConfigError, DataError
from ...core.registry import register
from ..transforms.compose import Compose
from ..transforms.sample import Sample
from .coco_format import CocoLabels, load_coco
from .coco_records import FAULTS_SHOWN
from .images import load_image


@register()
class CocoDetection(Dataset):
    """Images with boxes from an annotation file in COCO format.

    The file's category ids, sorted, become labels 0..C-1, whatever they are. Every draw of chance for an image
    follows from (seed, epoch, index), so that neither workers nor restarts change what comes out.
    """

    __inject__ = ["transforms"]
    __share__ = ["remap_mscoco_category"]

    def __init__(self, img_folder: str, ann_file: str, transforms: Compose | None = None, return_masks: bool = False,
                 remap_mscoco_category: bool = False) -> None:
        """Read and check the annotation file; images are not touched.

        Args:
            img_folder: folder that the file names are relative to.
            ann_file: COCO JSON file.
            transforms: what happens to each sample.
            return_masks: not supported; there for D-FINE's files, which say False.
            remap_mscoco_category: labels are positions in COCO's 80 classes, for files with COCO's category ids.

        Raises:
            DataError: for faults in the file.
            ConfigError: if there is no such folder, or the categories are not COCO's although they should be.
        """
        if return_masks:
            raise ConfigError("CocoDetection.return_masks is true; this detector has no use for masks, set it to false")
        if not Path(img_folder).is_dir():
            raise ConfigError(f"CocoDetection.img_folder {img_folder} is not a folder")
        self.img_folder, self.ann_file = Path(img_folder), ann_file
        self.transforms = transforms or Compose()
        self.remap_mscoco_category = remap_mscoco_category
        self.labels = load_coco(ann_file)
        self.label_of_category = self._label_table()
        self.seed, self.epoch = 0, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Return an augmented image `[3, H, W]` and its target (`core.contracts.Target`)."""
        return self.sample(index).render()

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Return samples that are not rendered yet, for a collate function that chooses the size of a batch."""
        return [self.sample(index) for index in indices]

    def sample(self, index: int) -> Sample:
        """Decode an image and apply the transforms, all but the resampling."""
        return self.transforms(self.raw_sample(index), self.epoch)

    def raw_sample(self, index: int, rng: np.random.Generator | None = None) -> Sample:
        """Decode an image; boxes are in its pixels, crowd regions left out. Its chance is its own, or that of `rng`."""
        labels, path = self.labels, self.image_path(index)
        size = labels.sizes[index]
        image = load_image(path, (int(size[0]), int(size[1])))
        rows = labels.rows(index)
        single = ~labels.crowds.numpy()[rows]
        fields = {"labels": self.label_of_category.numpy()[labels.categories.numpy()[rows][single]], "area": labels.areas.numpy()[rows][single],
                  "iscrowd": np.zeros(np.count_nonzero(single), np.int64)}
        info = {"image_id": labels.image_ids[index:index + 1], "orig_size": size.long(), "idx": torch.tensor([index]), "image_path": str(path)}
        boxes = labels.boxes.numpy()[rows][single].astype(np.float64)
        return Sample(image, boxes, fields, info, rng or np.random.default_rng([self.seed, self.epoch, index]), self.random_sample)

    def random_sample(self, rng: np.random.Generator) -> Sample:
        """Decode an image that `rng` draws, for a mosaic; what follows is drawn by the same."""
        return self.raw_sample(int(rng.integers(len(self))), rng)

    def image_path(self, index: int) -> Path:
        """Return where an image lies."""
        return self.img_folder / self.labels.file_name(index)

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch's chance and stage shall act."""
        self.epoch = epoch

    def set_run_length(self, run: RunLength) -> None:
        """Tell the transforms how long the run is."""
        if isinstance(self.transforms, KnowsRunLength):
            self.transforms.set_run_length(run)

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the file's categories."""
        return self.labels.category_names

    @property
    def num_classes(self) -> int:
        """The least number of classes that a model of this data needs."""
        return int(self.label_of_category.max()) + 1

    def use_labels(self, labels: Sequence[int]) -> None:
        """Give the file's categories, in the order of their ids, other labels: those that a trained model knows them by."""
        self.label_of_category = torch.tensor(labels, dtype=torch.int64)

    @property
    def label_names(self) -> dict[int, str]:
        """Names by the labels that samples carry."""
        return dict(zip(self.label_of_category.tolist(), self.class_names))

    @property
    def detection_names(self) -> dict[int, str]:
        """Names by what the post-processor gives as labels: COCO's ids with the remap on, else labels."""
        return dict(zip(self._detection_ids.tolist(), self.class_names))

    @property
    def _detection_ids(self) -> Tensor:
        return torch.tensor(self.labels.category_ids) if self.remap_mscoco_category else self.label_of_category

    def ground_truth(self) -> dict[str, Any]:
        """Return the checked labels as a COCO dictionary for an evaluator.

        Categories stand under the ids that detections carry: labels, or COCO's ids with the remap on.
        """
        return _coco_dictionary(self.labels, self._detection_ids)

    def check_images_exist(self) -> None:
        """Compare the listed files with the folder, by listing each folder once.

        Raises:
            DataError: with the number of missing files and the first of them.
        """
        listings: dict[str, set[str]] = {}
        missing = []
        for index in range(len(self)):
            name = self.labels.file_name(index)
            folder, _, file = name.rpartition("/")
            if folder not in listings:
                path = self.img_folder / folder
                listings[folder] = set(os.listdir(path)) if path.is_dir() else set()
            if file not in listings[folder]:
                missing.append(str(self.img_folder / name))
        if missing:
            more = f" ... and {len(missing) - FAULTS_SHOWN} more" if len(missing) > FAULTS_SHOWN else ""
            raise DataError(f"{len(missing)} of {len(self)} images of {self.ann_file} are missing: " + ", ".join(missing[:FAULTS_SHOWN]) + more)

    def _label_table(self) -> Tensor:
        ids = self.labels.category_ids
        if not self.remap_mscoco_category:
            return torch.arange(len(ids))
        label = {category: index for index, category in enumerate(COCO_CATEGORY_IDS)}
        if foreign := [i for i in ids if i not in label]:
            raise ConfigError(f"remap_mscoco_category is true, but {self.ann_file} has category ids that COCO has not: {foreign[:20]}; set it to False")
        return torch.tensor([label[i] for i in ids])


def _coco_dictionary(labels: CocoLabels, ids: Tensor) -> dict[str, Any]:
    names = dict(zip(ids.tolist(), labels.category_names))
    image_of_box = torch.repeat_interleave(labels.image_ids, labels.starts.diff())
    xywh = torch.cat([labels.boxes[:, :2], labels.boxes[:, 2:] - labels.boxes[:, :2]], 1)
    rows = zip(image_of_box.tolist(), ids[labels.categories].tolist(), xywh.tolist(), labels.areas.tolist(), labels.crowds.int().tolist())
    return {"images": [{"id": i, "width": w, "height": h} for i, (w, h) in zip(labels.image_ids.tolist(), labels.sizes.tolist())],
            "annotations": [{"id": n, "image_id": i, "category_id": c, "bbox": b, "area": a, "iscrowd": k}
                            for n, (i, c, b, a, k) in enumerate(rows, start=1)],  # evaluators take id 0 for "no match"
            "categories": [{"id": i, "name": name} for i, name in sorted(names.items())]}
