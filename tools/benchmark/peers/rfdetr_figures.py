"""Speed of RF-DETR, in its environment; `tools/benchmark/everything.py --peer rfdetr=...` runs this.

Engines need the packages of its extra for ONNX, and onnxruntime and openvino.
"""

from __future__ import annotations

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

SIZE = 640


def engines(task: dict[str, Any]) -> Iterator[dict]:
    """Measure RF-DETR-M with random weights at 640 pixels, in torch, ONNX Runtime and OpenVINO."""
    import numpy as np
    import onnxruntime
    import openvino
    import torch
    from rfdetr import RFDETRMedium

    detector = RFDETRMedium(
        pretrain_weights=None, resolution=SIZE, device="cpu"
    )
    file = detector.export(
        output_dir=task["folder"], shape=(SIZE, SIZE), verbose=False
    )
    images = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(file), options, providers=["CPUExecutionProvider"]
    )
    inputs = {session.get_inputs()[0].name: images}
    compiled = openvino.Core().compile_model(
        str(file),
        "CPU",
        {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"},
    )
    works = {
        "RF-DETR-M at 640 pixels, ONNX Runtime": lambda: session.run(
            None, inputs
        ),
        "RF-DETR-M at 640 pixels, OpenVINO": lambda: compiled([images]),
    }
    torch.set_num_threads(1)
    yield from compared_with_vit(1, works, bare_vit(1, SIZE), task["repeats"])


def photos(task: dict[str, Any]) -> Iterator[dict]:
    """Measure photos with flips only."""
    yield _loading(task, 2, "photos of 12 megapixels, flips only")


def boxes(task: dict[str, Any]) -> Iterator[dict]:
    """Measure images with 1,000 boxes, with flips only."""
    yield _loading(task, 7, "1,000 boxes per image, flips only")


def _loading(task: dict[str, Any], row: int, work: str) -> dict:
    """Measure its pipeline of training images, without random sizes and crops."""
    from rfdetr.datasets.coco import (
        CocoDetection,
        draft_size_for_transforms,
        make_coco_transforms_square_div_64,
    )

    folder = Path(task["inputs"])
    transforms = make_coco_transforms_square_div_64(
        "train", SIZE, scale_jitter=False, num_windows=2
    )
    dataset = CocoDetection(
        folder / "images",
        folder / "train.json",
        transforms=transforms,
        remap_category_ids=True,
        draft_size=draft_size_for_transforms("train", SIZE),
    )

    def epoch() -> None:
        for index in range(len(dataset)):
            dataset[index]

    seconds = least_cpu_seconds({work: epoch}, 2)[work]
    return {
        "row": row,
        "work": work,
        "value": len(dataset) / seconds,
        "unit": PER_SECOND,
    }


if __name__ == "__main__":
    answer("rfdetr", {"engines": engines, "photos": photos, "boxes": boxes})
