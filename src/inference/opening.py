"""Open checkpoints and exported models: the parts that a `Detector` consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core.errors import CheckpointError, ConfigError
from ..core.yaml_config import YAMLConfig
from ..detection.fitting import describe_loading, load_strictly
from ..detection.model_config import model_config, refuse_other_family
from ..detection.weight_file import WeightFile, read_weights
from ..runtime.distributed import pick_device
from ..runtime.forks import prepare_torch_after_fork
from ..runtime.log import logger
from ..runtime.quick_building import ZeroStart
from ..runtime.quick_imports import collector_paused
from .engines import Engine, TorchEngine
from .exported_engines import (
    ExportedEngine,
    OnnxEngine,
    OpenVinoEngine,
    TensorRtEngine,
)
from .metadata import Metadata, metadata_for
from .preprocessing import Preprocessing


class DetectorParts(NamedTuple):
    """The parts of a detector; `Detector.from_parts` describes them."""

    engine: Engine
    preprocessing: Preprocessing
    classes: Sequence[dict[str, Any]]
    threshold: Any = None
    """Unchecked value of a file."""
    meta: dict[str, Any] | None = None
    cfg: YAMLConfig | None = None
    bit_depth: int | None = None


def checkpoint_parts(
    path: str | Path,
    *,
    device: str | None,
    config: str | Path | None = None,
    input_size: Sequence[int] | None = None,
    use_amp: bool = False,
    bit_depth: int | None = None,
    family: str | None = None,
) -> DetectorParts:
    """Open a checkpoint, as `Detector.from_checkpoint` does.

    Example:
        >>> parts = checkpoint_parts("best.pth", device="cpu")
        >>> parts.classes[0]["name"]
        'disc'
    """
    prepare_torch_after_fork()
    with collector_paused():
        file = read_weights(path, family)
        picked = pick_device(device)
        cfg = model_config(file, config)
        return weights_parts(
            file,
            cfg,
            picked,
            input_size=input_size,
            use_amp=use_amp,
            bit_depth=bit_depth,
        )


def weights_parts(
    file: WeightFile,
    cfg: YAMLConfig,
    device: torch.device,
    *,
    input_size: Sequence[int] | None = None,
    use_amp: bool = False,
    bit_depth: int | None = None,
) -> DetectorParts:
    """Build the model of a configuration and load weights, as `Detector.from_weights` does.

    Example:
        >>> file = read_weights("best.pth")
        >>> parts = weights_parts(file, model_config(file), torch.device("cpu"))
        >>> parts.preprocessing.input_size
        (64, 64)
    """
    prepare_torch_after_fork()
    file.prepare(cfg)
    try:
        preprocessing = Preprocessing.from_config(cfg)
    except ConfigError as error:
        if not cfg.is_from_checkpoint:
            raise
        raise CheckpointError(f"{file.path}: {error}") from None
    noted = file.input_size if cfg.is_from_checkpoint else None
    if noted is not None and noted != preprocessing.input_size:
        raise CheckpointError(
            f"{file.path}: meta.input_size is {list(noted)}, but the configuration in the file resizes "
            f"images to {list(preprocessing.input_size)} (height, width); use another copy of the file"
        )
    if input_size is not None and tuple(input_size) != preprocessing.input_size:
        logger.warning(
            "input size %d x %d instead of %d x %d (height x width), which the model was trained for: "
            "accuracy may differ",
            *input_size,
            *preprocessing.input_size,
        )
        preprocessing = preprocessing.resized(input_size)
    cfg.set(
        "eval_spatial_size",
        list(preprocessing.input_size),
        "the input size",
    )
    refuse_other_family(file, cfg)
    with ZeroStart():
        model = cfg.model
    load_strictly(model, file)
    if file.config_text is None:
        logger.info("%s", describe_loading(file, model, cfg.path))
    postprocessor = cfg.postprocessor.deploy()
    engine = TorchEngine(model.deploy(), postprocessor, device, use_amp=use_amp)
    notes = {key: value for key, value in file.meta.items() if key != "config"}
    notes["file"] = str(file.path)
    classes = file.named_classes
    return DetectorParts(
        engine,
        preprocessing,
        classes,
        file.threshold,
        notes,
        cfg,
        file.bit_depth if bit_depth is None else bit_depth,
    )


EXPORTED: dict[str, Callable[[str | Path, str | None], ExportedEngine]] = {
    ".onnx": OnnxEngine,
    ".xml": OpenVinoEngine,
    ".engine": TensorRtEngine,
}
"""Engine of each kind of exported model, by the end of the file's name."""


def exported_parts(engine: ExportedEngine, path: str | Path) -> DetectorParts:
    """Return the parts of an exported model, from its metadata.

    Raises:
        CheckpointError: if neither the file nor NAME.json beside it has the classes and preprocessing.
    """
    metadata = metadata_for(Path(path), engine.metadata)
    preprocessing = _exported_preprocessing(metadata, engine, path)
    classes = [dict(entry) for entry in metadata.classes]
    notes = {
        "file": str(path),
        "licences": metadata.licences,
        "commit": metadata.commit,
        "checkpoint": metadata.checkpoint,
    }
    return DetectorParts(
        engine,
        preprocessing,
        classes,
        metadata.threshold,
        notes,
        bit_depth=metadata.bit_depth,
    )


def _exported_preprocessing(
    metadata: Metadata, engine: ExportedEngine, path: str | Path
) -> Preprocessing:
    """Return the preprocessing of an exported model, after comparing its size with that of the graph.

    Raises:
        CheckpointError: if a transform cannot be built, or the sizes differ.
    """
    try:
        preprocessing = Preprocessing(metadata.preprocessing)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: metadata.preprocessing cannot be used: {error}; export the model again"
        ) from None
    sizes = {
        "metadata.input_size": tuple(metadata.input_size),
        "the graph": engine.input_size,
    }
    for name, size in sizes.items():
        if size is not None and size != preprocessing.input_size:
            raise CheckpointError(
                f"{path}: metadata.preprocessing resizes images to {preprocessing.input_size} (height, "
                f"width), but {name} has {size}; export the model again"
            )
    return preprocessing


def refuse_unused(path: str | Path, given: dict[str, Any]) -> None:
    """Raise for arguments that an exported model does not use.

    Raises:
        ConfigError: with the name of the first argument that was given.

    Example:
        >>> refuse_unused("best.onnx", {"config": None, "bit_depth": 12})
        Traceback (most recent call last):
        ...
        src.core.errors.ConfigError: bit_depth is only used with checkpoints, but best.onnx is an exported ...
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{name} is only used with checkpoints, but {path} is an exported model, which has fixed "
                "settings; leave it out"
            )


def checked_threshold(value: Any) -> float:
    """Return the threshold of a file after checking it.

    Raises:
        CheckpointError: if it is not a number from 0 to 1.

    Example:
        >>> checked_threshold(0.35)
        0.35
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise CheckpointError(
            f"the threshold in the file is {value!r}, expected a number from 0 to 1"
        )
    return value
