"""COCO metrics of hotcoco, in its environment.

`tools/benchmark/everything.py --peer hotcoco=...` runs this.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

from protocol import answer

IMAGES, DETECTIONS, OBJECTS, CATEGORIES = 5000, 300, 7, 80


def scoring(task: dict[str, Any]) -> Iterator[dict]:
    """Score random detections, which are given as arrays."""
    import numpy as np
    from hotcoco import COCO, COCOeval

    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(1, IMAGES + 1), DETECTIONS)
    boxes = rng.random((len(images), 4)) * [400, 300, 200, 150] + [0, 0, 8, 8]
    scores = rng.random(len(images))
    labels = rng.integers(1, CATEGORIES + 1, len(images))
    rows = np.column_stack([images, boxes, scores, labels])
    truth = COCO(_truth(rows))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    scored = COCOeval(truth, truth.load_res(rows), "bbox")
    scored.evaluate()
    scored.accumulate()
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    work = f"scoring {IMAGES:,} images with {DETECTIONS} detections"
    yield {
        "row": 4,
        "work": work,
        "value": seconds,
        "unit": "CPU seconds",
        "seconds": seconds,
    }
    yield {
        "row": 4,
        "work": f"{work}: growth of the peak memory",
        "value": grown * 1024 / 1e6,
        "unit": "MB",
    }


def _truth(rows: Any) -> dict[str, Any]:
    """Return ground truth in COCO's format: the first detections of each image, slightly moved."""
    annotations = []
    for first in range(0, len(rows), DETECTIONS):
        for image, x, y, width, height, _, label in rows[
            first : first + OBJECTS
        ].tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(image),
                    "bbox": [x + 1, y + 1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "category_id": int(label),
                }
            )
    return {
        "images": [
            {"id": number, "width": 640, "height": 480}
            for number in range(1, IMAGES + 1)
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": str(number)}
            for number in range(1, CATEGORIES + 1)
        ],
    }


if __name__ == "__main__":
    answer("hotcoco", {"scoring": scoring})
