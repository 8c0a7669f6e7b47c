"""Loading images with 1,000 boxes each for training, row 7 of the table in docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from ...data.dataset.synthetic import draw_scene
from .figures import PER_SECOND, Figure, Settings, least_cpu_seconds
from .loading import load_epoch, training_loader, write_labels

IMAGES = 64

SIZE = (640, 480)
"""(width, height) of an image in pixels."""

BOXES = 1000

SIDES = (8.0, 60.0)
"""Smallest and largest side of a box in pixels."""

TARGET = 200.0
"""Images per CPU second."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield the speed of loading images with 1,000 boxes for training, with all transforms."""
    yield measured_boxes(settings, IMAGES, BOXES)


def measured_boxes(settings: Settings, count: int, boxes: int) -> Figure:
    """Return the figure of `measure` for a number of images and of boxes in each."""
    folder = settings.inputs
    (folder / "images").mkdir(parents=True)
    names = []
    for number in range(count):
        names.append(f"{number}.jpg")
        rng = np.random.default_rng(number)
        scene = draw_scene(rng, SIZE[0], 20).image[: SIZE[1]]
        file = folder / "images" / names[-1]
        Image.fromarray(scene).save(file, quality=90)
    write_labels(folder, names, SIZE, boxes, SIDES)
    loader = training_loader(folder, flips_only=False)
    works = {"training": partial(load_epoch, loader)}
    seconds = least_cpu_seconds(works, settings.repeats)
    return Figure(
        7,
        f"{boxes:,} boxes in each image, training with all transforms",
        count / seconds["training"],
        PER_SECOND,
        target=TARGET,
        at_least=True,
    )
