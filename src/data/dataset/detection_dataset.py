"""Base class of data sets whose images go through the transforms of a configuration.

`CocoDetection` derives from it, and so can a data set of your own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.contracts import Target
from ...core.detection_data import DetectionData, Picture
from ...core.ground_truth import Objects
from ...core.own_data import call, check_boxes_inside, check_image, place
from ..transforms.compose import Compose
from ..transforms.pixels import PixelSource
from ..transforms.sample import Sample


class DetectionDataset(DetectionData):
    """Base class of data sets: a subclass defines `class_names`, `__len__`, `load_image` and `objects`.

    The random generator of an image is derived from (seed, epoch, index), so the result depends neither on
    workers nor on restarts.
    """

    __inject__: Sequence[str] = ("transforms",)
    transforms: Compose = Compose()
    """Transforms applied to each image; without any, images and boxes stay unchanged."""

    def __init__(self, transforms: Compose | None = None) -> None:
        """Store the transforms.

        In a configuration they are built from the key `transforms` of the data set.
        """
        self.transforms = transforms or Compose()
        self.output_size = self.transforms.output_size
        self.mixing = self.transforms.mixing

    @abstractmethod
    def load_image(self, index: int) -> Tensor:
        """Return an image `[3, H, W]` uint8, RGB (`src.data.dataset.load_image` reads a file)."""

    def image_path(self, index: int) -> str | Path:
        """Return the path or name of an image for messages. Default: its name."""
        return self.image_name(index)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return an augmented image `[3, H, W]` and its target."""
        return self.sample(index).render()

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Return samples that are not rendered yet.

        The collate function chooses the size of the batch, and renders them.
        """
        return [self.sample(index) for index in indices]

    def sample(self, index: int) -> Sample:
        """Decode an image and apply the transforms, except for resampling."""
        return self.transforms(self.raw_sample(index), self.epoch)

    def raw_sample(
        self, index: int, rng: np.random.Generator | None = None
    ) -> Sample:
        """Decode an image, or its replacement, with its boxes in pixels; ignored objects are left out.

        Args:
            index: position of the image.
            rng: random generator; None derives one from (seed, epoch, index).
        """
        if rng is None:
            rng = self.generator(index)
        index, image = self.load_or_replace(index, rng)
        objects = self.objects_in(image, index)
        return self.sample_of(index, image, objects, rng)

    def generator(self, index: int) -> np.random.Generator:
        """Return the random generator of an image in this epoch."""
        return np.random.default_rng([self.seed, self.epoch, index])

    def sample_of(
        self,
        index: int,
        source: Tensor | PixelSource,
        objects: Objects,
        rng: np.random.Generator,
    ) -> Sample:
        """Return the sample of an image, without the objects that are ignored.

        Args:
            index: position of the image.
            source: its pixels, or what decodes them later.
            objects: all its objects.
            rng: random generator of the sample.
        """
        boxes = objects.boxes.detach().double().numpy()
        kept = np.ones(len(boxes), bool)
        if objects.ignored is not None:
            kept = ~objects.ignored.numpy()
        extents = boxes[:, 2:] - boxes[:, :2]
        areas = extents.prod(1)
        if objects.areas is not None:
            areas = objects.areas.numpy()
        categories = objects.labels.long().numpy()[kept]
        fields = {
            "labels": self.label_of_category.numpy()[categories],
            "area": areas.astype(np.float32)[kept],
            "iscrowd": np.zeros(np.count_nonzero(kept), np.int64),
        }
        info = {
            "image_id": torch.tensor([int(self.image_id(index))]),
            "idx": torch.tensor([index]),
            "image_path": str(self.image_path(index)),
        }
        sample = Sample(
            source, boxes[kept], fields, info, rng, self.random_sample
        )
        info["orig_size"] = torch.tensor(sample.file_size)
        return sample

    def objects_in(self, image: Tensor, index: int) -> Objects:
        """Return the objects of an image, checked against the contract and the size of the image."""
        objects = self.checked_objects(index)
        height, width = image.shape[1:]
        where = place(self, "objects", index)
        check_boxes_inside(where, objects.boxes, width, height)
        return objects

    def random_sample(self, rng: np.random.Generator) -> Sample:
        """Decode a random image for a mosaic; `rng` selects it and is also its random generator."""
        index = int(rng.integers(len(self)))
        return self.raw_sample(index, rng)

    def load_or_replace(
        self, index: int, rng: np.random.Generator
    ) -> tuple[int, Tensor]:
        """Return the index and the pixels of an image, or of a replacement drawn by `rng`.

        By default, this is the image itself.
        """
        image = call(self, self.load_image, index)
        check_image(place(self, "load_image", index), image)
        return index, image

    def picture(self, index: int) -> Picture | None:
        """Return an image with its true boxes, for the pictures that a run writes."""
        sample = self.raw_sample(index)
        boxes = torch.from_numpy(sample.boxes)
        labels = torch.from_numpy(sample.fields["labels"])
        return Picture(sample.image, boxes, labels)

    def use_labels(self, labels: Sequence[int]) -> None:
        """Assign other labels to the classes, in the order of `class_names`: those of a trained model."""
        self.label_of_category = torch.tensor(labels, dtype=torch.int64)
