"""Labels, transforms and epochs of a training, for all measurements of the loader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.collate import BatchImageCollateFunction
from ...data.dataloader import DataLoader
from ...data.dataset.coco_dataset import CocoDetection
from ...data.transforms import (
    Compose,
    ConvertBoxes,
    ConvertPILImage,
    Mosaic,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomZoomOut,
    Resize,
    SanitizeBoundingBoxes,
)
from ...data.transforms.compose import Transform
from ...runtime.files import write_json

SIDE = 640
"""Height and width of the batches, without other sizes in training."""


def write_labels(
    folder: Path,
    names: Sequence[str],
    size: tuple[int, int],
    boxes: int,
    sides: tuple[float, float],
) -> Path:
    """Write random boxes of one class to `train.json`, and return the file.

    Args:
        folder: folder of the file; the images are in `images/`.
        names: file names of the images.
        size: (width, height) of all images in pixels.
        boxes: boxes of each image.
        sides: smallest and largest side of a box in pixels.
    """
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(names, 1):
        width, height = size
        images.append(
            {"id": number, "file_name": name, "width": width, "height": height}
        )
        extents = rng.uniform(*sides, (boxes, 2))
        corners = rng.random((boxes, 2)) * (size - extents)
        for corner, extent in zip(corners.tolist(), extents.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [*corner, *extent],
                    "area": extent[0] * extent[1],
                    "iscrowd": 0,
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    file = folder / "train.json"
    write_json(file, content)
    return file


def training_transforms(
    *,
    flips_only: bool = False,
    mosaic: Mosaic | None = None,
    mosaic_prob: float = 1.0,
) -> Compose:
    """Return the transforms of a training: those of the configurations, or flips alone.

    Args:
        flips_only: whether flips are the only random transform.
        mosaic: first transform, if any.
        mosaic_prob: probability of a mosaic.
    """
    ops: list[Transform] = [] if mosaic is None else [mosaic]
    if not flips_only:
        ops += [
            RandomPhotometricDistort(p=0.5),
            RandomZoomOut(fill=0),
            RandomIoUCrop(p=0.8),
            SanitizeBoundingBoxes(min_size=1),
        ]
    ops += [
        RandomHorizontalFlip(),
        Resize([SIDE, SIDE]),
        SanitizeBoundingBoxes(min_size=1),
        ConvertPILImage(scale=True),
        ConvertBoxes("cxcywh", normalize=True),
    ]
    return Compose(ops, mosaic_prob=mosaic_prob)


def training_loader(
    folder: Path,
    *,
    flips_only: bool,
    batch_size: int = 8,
) -> DataLoader:
    """Return a loader of a training that works in this process.

    Args:
        folder: folder with `images/` and `train.json`.
        flips_only: whether flips are the only random transform.
        batch_size: images of a batch.
    """
    data = CocoDetection(
        str(folder / "images"),
        str(folder / "train.json"),
        training_transforms(flips_only=flips_only),
    )
    data.allow_reduced_decoding()
    repeat = None if flips_only else 3
    collate = BatchImageCollateFunction(base_size=SIDE, base_size_repeat=repeat)
    loader = DataLoader(data, collate, batch_size=batch_size, shuffle=True)
    loader.set_seed(0)
    return loader


def load_epoch(loader: DataLoader) -> int:
    """Load all batches of an epoch, and return the number of images."""
    loader.set_epoch(1)
    return sum(len(targets) for _, targets in loader)
