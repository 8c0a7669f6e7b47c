"""Row 1: a deployed detector in each engine of the CPU, in float and int8, relative to a bare ViT-S/16.

The model is S2 with windows and has random weights, because time does not depend on them. The int8 models
are therefore calibrated on random images; what int8 costs in AP is in docs/deployment.md.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...inference.engines import Engine, TorchEngine
from ...inference.export import export_onnx
from ...inference.exported_engines import INPUTS, OnnxEngine, OpenVinoEngine
from ...inference.quantizers import (
    SUFFIXES,
    Inputs,
    quantize_for_onnx_runtime,
    quantize_for_openvino,
)
from ...runtime.optional import is_installed
from ..benchmark import YARDSTICK, bare_vit, open_detector
from .figures import OF_A_VIT, Figure, Settings, least_cpu_seconds

CONFIG = "dfine_dinov3_s2_windows_coco"
INPUT_SIZE = (640, 640)
ROW = 1
FLOAT_TARGET = 0.75
INT8_TARGET = 0.50
NUM_CALIBRATION_IMAGES = 2
"""Enough for the time, which does not depend on the scales."""

FLOAT_IN_INT8 = ("decoder.dec_score_head", "decoder.dec_bbox_head")
"""Parts that stay in float, as `export_int8` leaves the heads."""

_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def measure(
    settings: Settings,
    config: str = CONFIG,
    input_size: tuple[int, int] = INPUT_SIZE,
) -> Iterator[Figure]:
    """Yield the CPU time of one image in each installed engine.

    Args:
        settings: settings of all measurements.
        config: configuration of the detector.
        input_size: (height, width) of the detector and of the bare ViT.
    """
    torch.set_num_threads(1)
    images, sizes = _inputs(input_size)
    vit = bare_vit(input_size)
    works: dict[str, Callable[[], object]] = {}
    works[YARDSTICK] = torch.inference_mode()(lambda: vit(images))
    for name, engine in _engines(settings.folder, config, input_size).items():
        works[name] = partial(engine, images, sizes)
    seconds = least_cpu_seconds(works, settings.repeats)
    yardstick = seconds.pop(YARDSTICK)
    for name, own in seconds.items():
        target = INT8_TARGET if name.endswith("int8") else FLOAT_TARGET
        yield Figure(
            ROW,
            f"{config} at {input_size[0]} x {input_size[1]}, {name}",
            own / yardstick,
            OF_A_VIT,
            target=None if name == "torch" else target,
            seconds=own,
        )


def _inputs(input_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one random image `[1, 3, H, W]` and its size."""
    height, width = input_size
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, height, width, generator=generator)
    return image, torch.tensor([[width, height]])


def _engines(
    folder: Path, config: str, input_size: tuple[int, int]
) -> dict[str, Engine]:
    """Return the engines by name; those whose packages are not installed are left out."""
    arguments = Namespace(
        resume=None, config=config, input_size=input_size, family=None
    )
    detector: Any = open_detector(arguments, "cpu")
    engine = detector.engine
    graph = export_onnx(detector, folder / "model.onnx")
    engines: dict[str, Engine] = {}
    engines["torch"] = TorchEngine(
        engine.model, engine.postprocessor, torch.device("cpu")
    )
    examples: list[Inputs] = []
    for _ in range(NUM_CALIBRATION_IMAGES):
        values = [value.numpy() for value in _inputs(input_size)]
        examples.append(dict(zip(INPUTS, values)))
    opened: Any = {"onnxruntime": OnnxEngine, "openvino": OpenVinoEngine}
    needed = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino", "nncf")}
    quantizers = {
        "onnxruntime": quantize_for_onnx_runtime,
        "openvino": quantize_for_openvino,
    }
    device = {"onnxruntime": "cpu", "openvino": "CPU"}
    for name, kind in opened.items():
        if not is_installed(name):
            continue
        engines[_NAMES[name]] = kind(graph, device[name])
        if all(is_installed(package) for package in needed[name]):
            result = folder / f"model.int8{SUFFIXES[name]}"
            quantizers[name](graph, result, examples, FLOAT_IN_INT8)
            engines[f"{_NAMES[name]}, int8"] = kind(result, device[name])
    return engines
