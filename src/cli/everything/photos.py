"""Loading photos of 12 megapixels for training, row 2 of the table in docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .figures import PER_SECOND, Figure, Settings, least_cpu_seconds
from .loading import load_epoch, training_loader, write_labels

PHOTOS = 16

SIZE = (4000, 3000)
"""(width, height) of a photo in pixels."""

QUALITY = 90

BOXES = 10

COARSENESS = 80
"""Pixels between the random colours that a photo blends, which gives files of about 1 MB."""

TARGET = 60.0
"""Images per CPU second, with flips only."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Yield the speed of loading photos with Exif for training, with flips and with all transforms."""
    yield from measured_photos(settings, PHOTOS, SIZE)


def measured_photos(
    settings: Settings, count: int, size: tuple[int, int]
) -> Iterator[Figure]:
    """Yield the figures of `measure` for photos of a number and of a (width, height)."""
    folder = settings.inputs
    (folder / "images").mkdir(parents=True)
    names = []
    for number in range(count):
        names.append(f"{number}.jpg")
        write_photo(folder / "images" / names[-1], size, number)
    shortest = min(size)
    sides = (shortest / 30, shortest / 3)
    write_labels(folder, names, size, BOXES, sides)
    works = {}
    for flips_only in (True, False):
        loader = training_loader(folder, flips_only=flips_only, batch_size=4)
        name = "flips only" if flips_only else "all transforms"
        works[name] = partial(load_epoch, loader)
    seconds = least_cpu_seconds(works, settings.repeats)
    megapixels = size[0] * size[1] / 1e6
    for name, least in seconds.items():
        yield Figure(
            2,
            f"photos of {megapixels:.0f} megapixels with Exif, training with {name}",
            count / least,
            PER_SECOND,
            target=TARGET if name == "flips only" else None,
            at_least=True,
        )


def write_photo(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write a smooth image with a little noise as a JPEG with Exif data, as cameras do.

    Args:
        path: path of the file.
        size: (width, height) in pixels.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = (-(-height // COARSENESS), -(-width // COARSENESS), 3)
    colours = Image.fromarray(rng.integers(0, 256, coarse, np.uint8))
    smooth = np.asarray(colours.resize(size, Image.Resampling.BICUBIC))
    noise = rng.integers(0, 2, (height, width, 1), np.uint8)
    pixels = np.minimum(smooth, 254) + noise
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif[0x0112] = 1
    Image.fromarray(pixels).save(path, quality=QUALITY, exif=exif)
