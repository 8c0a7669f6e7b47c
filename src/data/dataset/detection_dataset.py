"""Images that go through the transforms of a configuration: the base of `CocoDetection`, and of a user's own data sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.contracts import DetectionData, Objects, Picture, Target
from ...core.own_data import call, check_boxes_inside, check_image, place
from ..transforms.compose import Compose
from ..transforms.sample import Sample


class DetectionDataset(DetectionData):
    """A data set that defines `class_names`, `__len__`, `load_image` and `objects`, and leaves the rest to this class.

    The random numbers for an image follow from (seed, epoch, index), so workers and restarts do not change the result.
    """

    __inject__: Sequence[str] = ("transforms",)
    transforms: Compose = Compose()
    """What happens to each image; without any, images and boxes stay as they are."""

    def __init__(self, transforms: Compose | None = None) -> None:
        """Store the transforms, which a configuration builds from the key `transforms` of the data set."""
        self.transforms = transforms or Compose()
        self.output_size = self.transforms.output_size
        self.mixing = self.transforms.mixing

    @abstractmethod
    def load_image(self, index: int) -> Tensor:
        """Return an image `[3, H, W]` uint8, RGB (`src.data.dataset.load_image` reads a file)."""

    def image_path(self, index: int) -> str | Path:
        """Return what messages call an image. Default: its name."""
        return self.image_name(index)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return an augmented image `[3, H, W]` and its target."""
        return self.sample(index).render()

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Return samples that are not rendered yet, for a collate function that chooses the size of a batch."""
        return [self.sample(index) for index in indices]

    def sample(self, index: int) -> Sample:
        """Decode an image and apply the transforms, all but the resampling."""
        return self.transforms(self.raw_sample(index), self.epoch)

    def raw_sample(self, index: int, rng: np.random.Generator | None = None) -> Sample:
        """Decode an image, or one in its place, with its boxes in its pixels; ignored objects are left out.

        Args:
            index: position of the image.
            rng: source of random numbers; None for one that follows from (seed, epoch, index).
        """
        rng = rng or np.random.default_rng([self.seed, self.epoch, index])
        index, image = self.load_or_replace(index, rng)
        objects = self.objects_in(image, index)
        boxes = objects.boxes.detach().double().numpy()
        kept = np.ones(len(boxes), bool) if objects.ignored is None else ~objects.ignored.numpy()
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) if objects.areas is None else objects.areas.numpy()
        fields = {
            "labels": self.label_of_category.numpy()[objects.labels.long().numpy()[kept]],
            "area": areas.astype(np.float32)[kept],
            "iscrowd": np.zeros(np.count_nonzero(kept), np.int64),
        }
        info = {
            "image_id": torch.tensor([self.image_id(index)]),
            "orig_size": torch.tensor([image.shape[2], image.shape[1]]),
            "idx": torch.tensor([index]),
            "image_path": str(self.image_path(index)),
        }
        return Sample(image, boxes[kept], fields, info, rng, self.random_sample)

    def objects_in(self, image: Tensor, index: int) -> Objects:
        """Return the objects of an image after a check that they are what the contract says and lie in the image."""
        objects = self.checked_objects(index)
        check_boxes_inside(place(self, "objects", index), objects.boxes, image.shape[2], image.shape[1])
        return objects

    def random_sample(self, rng: np.random.Generator) -> Sample:
        """Decode an image that `rng` chooses, for a mosaic; its own random numbers come from `rng` too."""
        return self.raw_sample(int(rng.integers(len(self))), rng)

    def load_or_replace(self, index: int, rng: np.random.Generator) -> tuple[int, Tensor]:
        """Return an image and its index, or those of another image that `rng` chooses. Default: always the image itself."""
        image = call(self, self.load_image, index)
        check_image(place(self, "load_image", index), image)
        return index, image

    def picture(self, index: int) -> Picture | None:
        """Return an image with its true boxes for the pictures of a run."""
        sample = self.raw_sample(index)
        return Picture(
            sample.image, torch.from_numpy(sample.boxes), torch.from_numpy(sample.fields["labels"])
        )

    def use_labels(self, labels: Sequence[int]) -> None:
        """Give the classes, in the order of `class_names`, other labels: those by which a trained model knows them."""
        self.label_of_category = torch.tensor(labels, dtype=torch.int64)
