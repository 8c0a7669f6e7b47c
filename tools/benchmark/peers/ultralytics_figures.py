"""Speed of ultralytics, in its environment.

`tools/benchmark/everything.py --peer ultralytics=...` runs this.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol import (
    PER_SECOND,
    answer,
    bare_vit,
    compared_with_vit,
    least_cpu_seconds,
)


def training(task: dict[str, Any]) -> Iterator[dict]:
    """Measure training steps of yolo26s and yolo26l with random weights."""
    for row, name in ((5, "yolo26l"), (6, "yolo26s")):
        yield from compared_with_vit(
            row,
            {f"training step of two images, {name}": _step(name)},
            bare_vit(1, 640),
            task["repeats"],
        )


def _step(name: str) -> Any:
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(f"{name}.yaml", nc=80, verbose=False).train()
    model.args = get_cfg()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    boxes = torch.rand(30, 4) * torch.tensor([0.5, 0.5, 0.3, 0.3]) + 0.05
    batch = {
        "img": torch.rand(2, 3, 640, 640),
        "batch_idx": torch.arange(2).repeat_interleave(15),
        "cls": torch.randint(0, 80, (30, 1)).float(),
        "bboxes": boxes + torch.tensor([0.2, 0.2, 0, 0]),
    }

    def step() -> None:
        loss, _ = model.loss(batch)
        optimizer.zero_grad()
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    return step


def mosaics(task: dict[str, Any]) -> Iterator[dict]:
    """Measure its default training loader, whose images are all mosaics."""
    yield _loading(task, 3, "mosaics, training default")


def photos(task: dict[str, Any]) -> Iterator[dict]:
    """Measure photos with flips only."""
    yield _loading(
        task,
        2,
        "photos of 12 megapixels, flips only (16 images stay in its buffer)",
        mosaic=0.0,
        hsv_h=0.0,
        hsv_s=0.0,
        hsv_v=0.0,
        translate=0.0,
        scale=0.0,
    )


def boxes(task: dict[str, Any]) -> Iterator[dict]:
    """Measure images with 1,000 boxes in the training default."""
    yield _loading(task, 7, "1,000 boxes per image, training default")


def _loading(
    task: dict[str, Any], row: int, work: str, **settings: Any
) -> dict:
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset

    names, folder = _yolo_set(task)
    cfg = get_cfg(overrides={"imgsz": 640, "task": "detect", **settings})
    data = {"names": names, "nc": len(names), "channels": 3}
    dataset = build_yolo_dataset(cfg, str(folder / "images"), 8, data)

    def epoch() -> None:
        for first in range(0, len(dataset), 8):
            last = min(first + 8, len(dataset))
            dataset.collate_fn([dataset[i] for i in range(first, last)])

    seconds = least_cpu_seconds({work: epoch}, 2)[work]
    return {
        "row": row,
        "work": work,
        "value": len(dataset) / seconds,
        "unit": PER_SECOND,
    }


def _yolo_set(task: dict[str, Any]) -> tuple[dict[int, str], Path]:
    """Copy the images of the part and write their labels in the format of YOLO; return names and folder."""
    source = Path(task["inputs"])
    labels = json.loads((source / "train.json").read_text())
    folder = Path(task["folder"]) / "yolo"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    classes = sorted(entry["id"] for entry in labels["categories"])
    number_of = {identity: number for number, identity in enumerate(classes)}
    lines: dict[int, list[str]] = {}
    images = {image["id"]: image for image in labels["images"]}
    for entry in labels["annotations"]:
        image = images[entry["image_id"]]
        x, y, width, height = entry["bbox"]
        if width <= 0 or height <= 0:
            continue
        values = (
            (x + width / 2) / image["width"],
            (y + height / 2) / image["height"],
            width / image["width"],
            height / image["height"],
        )
        row = " ".join(f"{value:.6f}" for value in values)
        line = f"{number_of[entry['category_id']]} {row}"
        lines.setdefault(entry["image_id"], []).append(line)
    for identity, image in images.items():
        name = image["file_name"]
        shutil.copy(source / "images" / name, folder / "images")
        text = "\n".join(lines.get(identity, []))
        (folder / "labels" / name).with_suffix(".txt").write_text(text)
    names = {
        number_of[entry["id"]]: entry["name"] for entry in labels["categories"]
    }
    return names, folder


FIRST = """
import numpy as np
from ultralytics import YOLO
YOLO("yolo26s.yaml").predict(np.zeros((640, 640, 3), np.uint8), verbose=False)
"""


def start(task: dict[str, Any]) -> Iterator[dict]:
    """Measure a fresh process that builds yolo26s and predicts once."""
    import resource

    least = float("inf")
    for _ in range(min(task["repeats"], 3)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", FIRST],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=task["folder"],
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime
        least = min(least, used - before.ru_utime - before.ru_stime)
    yield {
        "row": 8,
        "work": "first prediction of a process, yolo26s",
        "value": least,
        "unit": "CPU seconds",
        "seconds": least,
    }


if __name__ == "__main__":
    answer(
        "ultralytics",
        {
            "training": training,
            "mosaics": mosaics,
            "photos": photos,
            "boxes": boxes,
            "start": start,
        },
    )
