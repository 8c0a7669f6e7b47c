"""The detectors of a server, opened once, with a description that clients can read."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CheckpointError, ConfigError
from ..detection.model_table import find_weights, is_model_name
from ..detection.palette import class_colour
from ..detection.run_checkpoint import checkpoint_of
from ..inference import Detector
from ..runtime.weight_files import checked_path, refuse_address

ENDINGS = {
    "torch": (".pth", ".pt", ".safetensors"),
    "onnx": (".onnx",),
    "openvino": (".xml", ".onnx"),
    "tensorrt": (".engine",),
}
"""Endings of the files of each engine, best first."""

SIDE_OF_TRIAL = 64


@dataclass(frozen=True)
class ServedModel:
    """A detector with its number and name."""

    number: int
    """Number in requests, from 1."""
    name: str
    """Name for people; no path, which clients must not see."""
    detector: Detector

    def describe(self) -> dict[str, Any]:
        """Return what clients may know, as plain values."""
        classes = []
        for label, entry in enumerate(self.detector.classes):
            red, green, blue = class_colour(label)
            known = {
                "label": label,
                "category_id": entry["id"],
                "name": entry["name"],
                "colour": f"#{red:02x}{green:02x}{blue:02x}",
            }
            classes.append(known)
        height, width = self.detector.preprocessing.input_size
        return {
            "model": self.number,
            "name": self.name,
            "threshold": self.detector.threshold,
            "input_size": [height, width],
            "classes": classes,
        }


def open_models(
    files: list[str],
    *,
    engine: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    threshold: float | None = None,
) -> list[ServedModel]:
    """Open one or two detectors, and predict a grey image with each, so that faults show at the start.

    Args:
        files: checkpoints and exported models, from `file_for`.
        engine: a key of `ENDINGS`; None uses that of the file.
        device: cpu, cuda or cuda:N; None uses CUDA if available.
        threads: CPU threads of an exported model; None uses torch's number.
        threshold: default minimum score; None uses that of each model.

    Raises:
        CheckpointError: if a file is missing or cannot be opened.
        ConfigError: if an argument is wrong.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold:g}, expected 0 to 1")
    names = _names(files)
    models = []
    for number, (file, name) in enumerate(zip(files, names), 1):
        detector = _opened(file, engine, device, threads)
        if threshold is not None:
            detector.threshold = threshold
        trial = np.full((SIDE_OF_TRIAL, SIDE_OF_TRIAL, 3), 128, np.uint8)
        detector.predict(trial)
        models.append(ServedModel(number, name, detector))
    return models


def file_for(path: str, engine: str | None) -> str:
    """Return the file that an engine opens for a model.

    Args:
        path: run folder, file or name of a published model.
        engine: a key of `ENDINGS`, or None.

    Raises:
        CheckpointError: if it does not exist, or there is no such file beside the checkpoint.
        ConfigError: if the file is one of another engine.
    """
    if is_model_name(path):
        file = str(find_weights(path))
    else:
        file = str(checked_path(checkpoint_of(refuse_address(path))))
    if engine is None:
        return file
    endings = ENDINGS[engine]
    ending = Path(file).suffix.lower()
    if ending in endings:
        return file
    if engine == "torch":
        raise ConfigError(
            f"--engine torch opens checkpoints ({', '.join(endings)}), but {file} is none; leave --engine out"
        )
    for candidate in endings:
        beside = Path(file).with_suffix(candidate)
        if beside.is_file():
            return str(beside)
    missing = Path(file).with_suffix(endings[-1])
    advice = f"write it with {shlex.join(['dfine', 'export', path])}"
    if engine == "tensorrt":
        advice = "docs/deployment.md describes how TensorRT builds it"
    raise CheckpointError(
        f"--engine {engine} needs {missing}, which does not exist; {advice}"
    )


def _opened(
    file: str, engine: str | None, device: str | None, threads: int | None
) -> Detector:
    """Open a file with an engine."""
    if engine == "openvino":
        return Detector.from_openvino(file, device=device, threads=threads)
    if Path(file).suffix.lower() == ".onnx":
        return Detector.from_onnx(file, device=device, threads=threads)
    if Path(file).suffix.lower() == ".xml":
        return Detector.from_openvino(file, device=device, threads=threads)
    return Detector(file, device=device)


def _names(files: list[str]) -> list[str]:
    """Return short names, which differ: those of the files, with their folders if they have generic names.

    Example:
        >>> _names(["runs/train/best.pth", "runs/train2/best.pth"])
        ['train/best.pth', 'train2/best.pth']
    """
    names = []
    for file in files:
        parts = Path(file).absolute().parts if "/" in file else (file,)
        names.append("/".join(parts[-2:]))
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names
