"""Loading with mosaics: the DEIM recipe in the epochs that have all of its augmentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.collate import BatchImageCollateFunction
from ...data.dataset import CocoDetection
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
from .figures import Figure, Settings, least_cpu_seconds

INPUT_SIZE = 640
"""Height and width of the input; training draws others around it."""

BATCH_SIZE = 8
BATCHES = 12
"""Batches of one measured run."""

IMAGE_SIZE = (640, 480)
"""(width, height) of synthetic images in pixels."""

OBJECTS = 15
"""Objects in a synthetic image."""

TARGET = 110.0
"""Images per CPU second."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure loading, from files to batches on one thread, decoding included."""
    folder = settings.data or synthetic_images(settings.folder)
    mixed = _Loading(folder, mosaic_prob=0.5, mixes=True)
    alone = _Loading(folder, mosaic_prob=1.0, mixes=False)
    seconds = least_cpu_seconds(
        {"recipe": mixed, "alone": alone}, settings.repeats
    )
    images = BATCHES * BATCH_SIZE
    unit = "images per CPU second"
    yield Figure(
        3,
        "DEIM recipe: mosaic for every second image, mixup, CopyBlend",
        images / seconds["recipe"],
        unit,
        target=TARGET,
        at_least=True,
    )
    yield Figure(
        3, "mosaic for every image, no mixing", images / seconds["alone"], unit
    )


class _Loading:
    """The batches of the start of an epoch."""

    def __init__(
        self, folder: Path, *, mosaic_prob: float, mixes: bool
    ) -> None:
        size = [INPUT_SIZE, INPUT_SIZE]
        transforms = Compose(
            [
                Mosaic(output_size=None),
                RandomPhotometricDistort(p=0.5),
                RandomZoomOut(fill=0),
                RandomIoUCrop(p=0.8),
                SanitizeBoundingBoxes(min_size=1),
                RandomHorizontalFlip(),
                Resize(size),
                SanitizeBoundingBoxes(min_size=1),
                ConvertPILImage(scale=True),
                ConvertBoxes("cxcywh", normalize=True),
            ],
            mosaic_prob=mosaic_prob,
        )
        self._data = CocoDetection(
            str(folder / "images"),
            str(folder / "train.json"),
            transforms=transforms,
        )
        probability = 0.5 if mixes else 0.0
        self._collate = BatchImageCollateFunction(
            base_size=INPUT_SIZE,
            base_size_repeat=3,
            mixup_prob=probability,
            copyblend_prob=probability,
            with_expand=True,
        )

    def __call__(self) -> None:
        for batch in range(BATCHES):
            start = batch * BATCH_SIZE
            indices = [
                number % len(self._data)
                for number in range(start, start + BATCH_SIZE)
            ]
            self._collate(self._data.__getitems__(indices))


def synthetic_images(folder: Path, count: int = 64) -> Path:
    """Write JPEG images with random boxes into a folder, and return the folder."""
    images = folder / "mosaics" / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    width, height = IMAGE_SIZE
    records = []
    annotations = []
    for number in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(IMAGE_SIZE)
        name = f"{number}.jpg"
        image.save(images / name, quality=90)
        records.append(
            {"id": number, "file_name": name, "width": width, "height": height}
        )
        for _ in range(OBJECTS):
            w, h = rng.uniform(20, 120, 2)
            x, y = rng.random(2) * (width - w, height - h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    labels = {
        "images": records,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    (folder / "mosaics" / "train.json").write_text(json.dumps(labels))
    return folder / "mosaics"
