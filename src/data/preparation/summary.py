"""Summary of a data set: numbers of images, boxes and classes, and sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...core.counts import counted
from ..dataset.coco_format import Examination
from ..evaluation.coco_evaluator import AREAS

MOST_CLASSES = 30
"""Maximum number of classes to list; those with the most boxes are listed."""


def summarize(examined: Examination) -> Iterator[str]:
    """Yield lines about the images and boxes that training would use."""
    images = examined.content.images
    rows = examined.rows
    single = ~rows["crowds"].numpy()
    boxes = rows["boxes"].numpy()[single]
    categories = rows["categories"].numpy()[single]
    counts_with_crowds = rows["starts"].diff().numpy()
    image_of = np.repeat(np.arange(len(images)), counts_with_crowds)[single]
    objects = np.bincount(image_of, minlength=len(images))
    yield f"{counted(len(images), 'image')}, {int((objects == 0).sum())} of them without objects"
    ignored = counted(
        int((~single).sum()),
        "crowd region or object to ignore",
        "crowd regions or objects to ignore",
    )
    yield f"{counted(len(boxes), 'box', 'boxes')} to learn, {ignored}"
    if not len(boxes):
        return
    yield (
        f"objects in an image: {objects.min()} to {objects.max()}, mean {objects.mean():.1f}, "
        f"median {np.median(objects):g}"
    )
    sides = boxes[:, 2:] - boxes[:, :2]
    widths = _range(sides[:, 0])
    heights = _range(sides[:, 1])
    yield f"sides of boxes in pixels: width {widths}; height {heights} (minimum, median, maximum)"
    areas = sides.prod(1)
    sizes = []
    for name, (low, high) in AREAS.items():
        count = int(((areas >= low) & (areas < high)).sum())
        sizes.append(f"{count} {name}")
    yield f"box sizes: {', '.join(sizes)}"
    counts = np.bincount(categories, minlength=len(examined.categories))
    order = np.argsort(-counts, kind="stable")
    names = list(examined.categories.items())
    yield f"{counted(len(names), 'class', 'classes')}:"
    for index in order[:MOST_CLASSES]:
        category, name = names[index]
        in_images = len(np.unique(image_of[categories == index]))
        boxes_text = counted(counts[index], "box", "boxes")
        images_text = counted(in_images, "image")
        yield f"  {boxes_text:>15} in {images_text:>14}  {name} (id {category})"
    others = order[MOST_CLASSES:]
    if len(others):
        boxes_text = counted(counts[others].sum(), "box", "boxes")
        classes_text = counted(len(others), "other class", "other classes")
        yield f"  {boxes_text:>15} of {classes_text}"


def _range(values: np.ndarray) -> str:
    return f"{values.min():.4g}, {np.median(values):.4g}, {values.max():.4g}"
