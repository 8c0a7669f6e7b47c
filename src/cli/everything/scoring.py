"""CPU time and memory of COCO's metrics: many images, with the detections of a whole set of queries."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .figures import CPU_SECONDS, Figure, Settings

IMAGES = 5000
QUERIES = 300
CATEGORIES = 80
OBJECTS = 7
"""Objects of an image, as in COCO."""

BATCH = 8
"""Images of each update."""

SIDE = 640
"""Side of the images in pixels."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure `CocoEvaluator`: all updates and `summarize`, once.

    The time and the memory for the detections themselves do not count. The memory is the growth of the
    process's peak, so nothing that needs more may have run in this process before.
    """
    from ...data.evaluation import CocoEvaluator
    from ...runtime.memory import peak_memory, resident_memory

    coco_gt, detections = synthetic_detections(IMAGES)
    image_ids = list(detections)
    before = resident_memory()
    start = time.process_time()
    evaluator = CocoEvaluator(coco_gt)
    for first in range(0, len(image_ids), BATCH):
        batch = image_ids[first : first + BATCH]
        evaluator.update({i: detections[i] for i in batch})
    evaluator.synchronize()
    evaluator.summarize()
    seconds = time.process_time() - start
    peak = peak_memory()
    work = f"scoring {IMAGES:,} images with {QUERIES} detections each"
    yield Figure(4, work, seconds, CPU_SECONDS, target=18.0, seconds=seconds)
    memory = f"{work}: growth of the peak memory"
    grown = (peak - before) / 1e6
    yield Figure(4, memory, grown, "MB", target=800.0)


def synthetic_detections(images: int) -> tuple[dict, dict]:
    """Return ground truth and detections by image id.

    A fifth of the detections are shifted copies of objects; three quarters of these have the right category.
    """
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    annotations: list[dict] = []
    detections = {}
    for image in range(images):
        sizes = _sizes(rng, OBJECTS)
        corners = rng.uniform(0, 1, (OBJECTS, 2)) * (SIDE - sizes)
        categories = rng.integers(0, CATEGORIES, OBJECTS)
        for corner, size, category in zip(corners, sizes, categories):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(category),
                    "bbox": [*corner.tolist(), *size.tolist()],
                    "area": float(size.prod()),
                    "iscrowd": int(rng.random() < 0.01),
                }
            )
        copied = rng.integers(0, OBJECTS, QUERIES)
        is_copy = rng.random(QUERIES) < 0.2
        is_right = is_copy & (rng.random(QUERIES) < 0.75)
        near = corners[copied] + rng.normal(0, 4, (QUERIES, 2))
        anywhere = rng.uniform(0, SIDE, (QUERIES, 2))
        starts = np.where(is_copy[:, None], near, anywhere)
        similar = sizes[copied] * np.exp(rng.normal(0, 0.15, (QUERIES, 2)))
        extents = np.where(is_copy[:, None], similar, _sizes(rng, QUERIES))
        labels = np.where(
            is_right,
            categories[copied],
            rng.integers(0, CATEGORIES, QUERIES),
        )
        boxes = np.concatenate([starts, starts + extents], 1)
        scores = np.sort(rng.random(QUERIES))[::-1].copy()
        detections[image] = {
            "boxes": torch.from_numpy(boxes).float(),
            "scores": torch.from_numpy(scores).float(),
            "labels": torch.from_numpy(labels),
        }
    coco_gt = {
        "images": [{"id": image} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in range(CATEGORIES)],
    }
    return coco_gt, detections


def _sizes(rng, count: int):
    """Return widths and heights in pixels, `[count, 2]`."""
    import numpy as np

    return np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
