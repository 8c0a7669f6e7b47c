"""Export a detector in 8-bit integers: calibrate, measure what it costs, and keep sensitive parts in float.

The AP before and after is measured on the user's validation data. docs/decisions/0027 explains the choices.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from ..core.counts import counted
from ..core.errors import ConfigError, DataError, ExportError
from ..core.paths import open_regular
from ..data.dataset.coco_dataset import CocoDetection
from ..runtime.files import atomic_file, prepare_output_dir, write_atomically
from ..runtime.log import logger
from ..runtime.own_files import refuse_foreign
from .agreement import mean_difference
from .detector import Detector
from .detector_evaluation import evaluate_detector
from .export import export_onnx
from .exported_engines import INPUTS
from .metadata import METADATA_KEY, Int8Note, Metadata, metadata_for
from .prediction import Prediction
from .prediction_settings import PredictionSettings
from .quantizers import SUFFIXES, Inputs, Int8Engine, parts_of, quantizer_for
from .reading import Readable
from .sources import spread

MAX_AP_LOSS = 0.01
"""Default of the AP that an int8 model may lose, on a scale of 0 to 1."""

NUM_CALIBRATION_IMAGES = 64
"""Default number of calibration images."""

NUM_TRIAL_IMAGES = 8
"""Number of images on which the sensitivity of each part is measured."""

ALWAYS_FLOAT = "head"
"""Parts of the decoder with this in their names always stay in float: they give boxes and scores, and take
almost no time."""


@dataclass(frozen=True)
class Int8Settings:
    """Settings of an int8 export."""

    engine: Int8Engine
    max_ap_loss: float = MAX_AP_LOSS
    """Maximum AP that may be lost, 0..1."""
    batch_size: int | None = None
    """As for `export_onnx`."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_ap_loss <= 1:
            raise ConfigError(
                f"max_ap_loss is {self.max_ap_loss:g}, expected 0 to 1; 0.01 is one point of AP"
            )


def export_int8(
    detector: Detector,
    path: str | Path,
    calibration: Sequence[Readable],
    dataset: CocoDetection,
    settings: Int8Settings,
) -> Int8Note:
    """Write an int8 model, and its metadata as NAME.json beside it.

    All parts except the heads are quantized first. While the AP falls by more than is allowed, the part
    whose quantization alone changes the predictions most becomes float again.

    Args:
        detector: detector loaded from a checkpoint, on the CPU.
        path: `.xml` for OpenVINO, whose weights become NAME.bin, or `.onnx` for ONNX Runtime.
        calibration: images like those that the model will see.
        dataset: labelled images on which AP is measured, with the labels of the detector.
        settings: engine and limits.

    Returns:
        The AP before and after, and the parts in float.

    Raises:
        ConfigError: if the name does not fit the engine, or a package is missing.
        DataError: if there are no calibration images, or no AP can be measured.
        ExportError: if no choice of parts keeps the AP; nothing is written.
    """
    path = Path(path)
    quantize = quantizer_for(settings.engine)
    _check_result(path, settings.engine)
    if not len(calibration):
        raise DataError(
            "there are no images for the calibration of int8, expected at least 1; give --calibration"
        )
    with tempfile.TemporaryDirectory() as folder:
        graph = export_onnx(
            detector,
            Path(folder) / "float.onnx",
            batch_size=settings.batch_size,
        )
        before = _open(graph, settings.engine)
        inputs = _prepared(before, calibration, settings.batch_size or 1)
        trial = Path(folder) / f"int8{SUFFIXES[settings.engine]}"
        metadata = metadata_for(graph, None)

        def quantized(
            float_parts: Collection[str], images: Sequence[Inputs]
        ) -> Detector:
            quantize(graph, trial, images, float_parts)
            _write_metadata(trial, metadata)
            return _open(trial, settings.engine)

        ap_float = _average_precision(before, dataset, "before")
        search = _Search(parts_of(graph), ap_float, settings.max_ap_loss)
        while True:
            after = quantized(search.float_parts, inputs)
            ap_int8 = _average_precision(after, dataset, "after")
            if search.accepts(ap_int8):
                break
            if not search.sensitivity:
                few = spread(inputs, NUM_TRIAL_IMAGES)
                search.sensitivity = _sensitivities(
                    before,
                    spread(calibration, NUM_TRIAL_IMAGES),
                    search.quantized_parts,
                    partial(quantized, images=few),
                )
            search.keep_most_sensitive_in_float()
        note = Int8Note(
            engine=settings.engine,
            images=len(inputs),
            float_parts=search.float_parts,
            ap_float=ap_float,
            ap_int8=ap_int8,
        )
        _write_metadata(trial, msgspec.structs.replace(metadata, int8=note))
        prepare_output_dir(path.parent)
        _move(trial, path)
    logger.info(
        "%s: int8 for %s, AP %.4f before and %.4f after on %s, calibrated on %s, in float: %s",
        path,
        settings.engine,
        ap_float,
        ap_int8,
        counted(len(dataset), "image"),
        counted(len(inputs), "image"),
        ", ".join(note.float_parts) or "nothing",
    )
    return note


class _Search:
    """The choice of the parts that stay in float."""

    def __init__(
        self, parts: Sequence[str], ap_float: float, max_ap_loss: float
    ) -> None:
        self._parts = list(parts)
        self._ap_float = ap_float
        self._max_ap_loss = max_ap_loss
        self.float_parts = [
            part
            for part in parts
            if part.startswith("decoder.") and ALWAYS_FLOAT in part
        ]
        self.sensitivity: dict[str, float] = {}
        """Mean difference of predictions if only this part is quantized."""
        self._least_loss = float("inf")

    @property
    def quantized_parts(self) -> list[str]:
        """Parts that are in int8."""
        return [part for part in self._parts if part not in self.float_parts]

    def accepts(self, ap_int8: float) -> bool:
        """Return whether the AP is high enough, and remember the best one."""
        loss = self._ap_float - ap_int8
        self._least_loss = min(self._least_loss, loss)
        return loss <= self._max_ap_loss

    def keep_most_sensitive_in_float(self) -> None:
        """Leave one more part in float.

        Raises:
            ExportError: if no part would be left in int8.
        """
        left = self.quantized_parts
        if len(left) < 2:
            raise ExportError(
                f"int8 lowers AP by {self._least_loss:.4f} at best, {self._max_ap_loss:g} allowed; nothing "
                "was written: give more calibration images, or a larger --max-ap-loss"
            )
        worst = max(left, key=lambda part: self.sensitivity[part])
        logger.info(
            "AP falls by more than %g: %s stays in float, whose int8 alone changes predictions by %.3f",
            self._max_ap_loss,
            worst,
            self.sensitivity[worst],
        )
        self.float_parts.append(worst)


def _sensitivities(
    reference: Detector,
    images: Sequence[Readable],
    parts: Sequence[str],
    quantized_except: Callable[[Collection[str]], Detector],
) -> dict[str, float]:
    """Return how much predictions differ from those in float if only one part is quantized, for each part."""
    expected = _all_detections(reference, images)
    differences = {}
    for part in parts:
        others = {other for other in parts if other != part}
        found = _all_detections(quantized_except(others), images)
        each = []
        for one, other in zip(expected, found, strict=True):
            each.append(mean_difference(one, other, reference.threshold))
        differences[part] = float(np.mean(each))
        logger.info(
            "int8 of %s alone: difference %.4f", part, differences[part]
        )
    return differences


def _all_detections(
    detector: Detector, images: Sequence[Readable]
) -> list[Prediction]:
    settings = PredictionSettings(threshold=0.0, batch_size=1)
    return [seen.prediction for seen in detector.stream(images, settings)]


def _open(path: Path, engine: Int8Engine) -> Detector:
    if engine == "openvino":
        return Detector.from_openvino(path)
    return Detector.from_onnx(path, device="cpu")


def _prepared(
    detector: Detector, images: Sequence[Readable], batch_size: int
) -> list[Inputs]:
    """Return the inputs of the graph for each image; a fixed batch is filled with copies."""
    prepared: list[Inputs] = []
    for item in detector.stream(images):
        pixels, sizes = detector.preprocessing([item.image])
        copies = (batch_size, *[1] * (pixels.ndim - 1))
        values = (
            pixels.repeat(copies).numpy(),
            sizes.repeat(batch_size, 1).numpy(),
        )
        prepared.append(dict(zip(INPUTS, values)))
    return prepared


def _average_precision(
    detector: Detector, dataset: CocoDetection, when: str
) -> float:
    """Return the AP on a data set, and log it.

    Raises:
        DataError: if the data set has no objects.
    """
    value = evaluate_detector(detector, dataset).metrics["AP"]
    if value is None or not 0 <= value <= 1:
        raise DataError(
            f"{dataset.ann_file} has no objects, so the AP before and after int8 cannot be compared; give "
            "labelled images"
        )
    logger.info("AP %s int8: %.4f", when, value)
    return float(value)


def _check_result(path: Path, engine: str) -> None:
    """Check the name of the result, and that it replaces only results of this project.

    Raises:
        ConfigError: if it does not.
    """
    if path.suffix != SUFFIXES[engine]:
        raise ConfigError(
            f"the file is called {path.name}, expected a name that ends with {SUFFIXES[engine]} for int8 in "
            f"{engine}"
        )
    refuse_foreign((path, path.with_suffix(".json")), "choose another --output")
    weights = path.with_suffix(".bin")
    if engine == "openvino" and weights.exists() and not path.exists():
        raise ConfigError(
            f"{weights} would be replaced, but it does not belong to a model of this project; choose another "
            "--output"
        )


def _write_metadata(path: Path, metadata: Metadata) -> None:
    """Write NAME.json, and for ONNX files the same into the file."""
    text = metadata.to_json()
    write_atomically(
        path.with_suffix(".json"), lambda file: file.write(text.encode())
    )
    if path.suffix == ".onnx":
        import onnx

        graph = onnx.load(str(path))
        onnx.helper.set_model_props(graph, {METADATA_KEY: text})
        onnx.save(graph, str(path))


def _move(source: Path, path: Path) -> None:
    """Write the files of a model to their place, the model itself last."""
    for suffix in (".bin", ".json", path.suffix):
        part = source.with_suffix(suffix)
        if part.exists():
            with (
                open_regular(part) as source_file,
                atomic_file(path.with_suffix(suffix)) as file,
            ):
                shutil.copyfileobj(source_file, file)
