"""Loading with mosaics: the DEIM recipe in the epochs that have all of its augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.collate import BatchImageCollateFunction
from ...data.dataset import CocoDetection
from ...data.transforms import Mosaic
from .figures import PER_SECOND, Figure, Settings, least_cpu_seconds
from .loading import SIDE, training_transforms, write_labels

BATCH_SIZE = 8
BATCHES = 12
"""Batches of one measured run."""

IMAGE_SIZE = (640, 480)
"""(width, height) of synthetic images in pixels."""

OBJECTS = 15
"""Objects in a synthetic image."""

OBJECT_SIDES = (20.0, 120.0)
"""Smallest and largest side of an object in pixels."""

TARGET = 110.0
"""Images per CPU second."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure loading, from files to batches on one thread, decoding included."""
    folder = settings.data or synthetic_images(settings.inputs)
    mixed = _Loading(folder, mosaic_prob=0.5, mixes=True)
    alone = _Loading(folder, mosaic_prob=1.0, mixes=False)
    cached = _Loading(
        folder, mosaic_prob=1.0, mixes=False, image_cache="memory"
    )
    seconds = least_cpu_seconds(
        {"recipe": mixed, "alone": alone, "cached": cached}, settings.repeats
    )
    images = BATCHES * BATCH_SIZE
    yield Figure(
        3,
        "DEIM recipe: mosaic for every second image, mixup, CopyBlend",
        images / seconds["recipe"],
        PER_SECOND,
        target=TARGET,
        at_least=True,
    )
    yield Figure(
        3,
        "mosaic for every image, no mixing",
        images / seconds["alone"],
        PER_SECOND,
    )
    yield Figure(
        3,
        "the same, decoded images kept in memory (image_cache)",
        images / seconds["cached"],
        PER_SECOND,
    )


class _Loading:
    """The batches of the start of an epoch."""

    def __init__(
        self,
        folder: Path,
        *,
        mosaic_prob: float,
        mixes: bool,
        image_cache: str | None = None,
    ) -> None:
        transforms = training_transforms(
            mosaic=Mosaic(output_size=None), mosaic_prob=mosaic_prob
        )
        self._data = CocoDetection(
            str(folder / "images"),
            str(folder / "train.json"),
            transforms=transforms,
            image_cache=image_cache,
        )
        probability = 0.5 if mixes else 0.0
        self._collate = BatchImageCollateFunction(
            base_size=SIDE,
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
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = []
    for number in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(IMAGE_SIZE)
        names.append(f"{number}.jpg")
        image.save(images / names[-1], quality=90)
    write_labels(folder, names, IMAGE_SIZE, OBJECTS, OBJECT_SIDES)
    return folder
