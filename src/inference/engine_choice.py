"""Choose the fastest installed engine for a detector on this machine: a short trial, whose result is cached.

The exported file and the result of the trial are kept in the user's cache, under a key of the machine, the
versions of the engines, the model and its input size.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import torch
from msgspec import Struct

from .. import __version__
from ..core.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    NumericsError,
    ResourceError,
    first_line,
)
from ..core.paths import open_regular, user_cache
from ..runtime.files import prepare_output_dir, write_json
from ..runtime.log import logger
from ..runtime.own_files import MARK, WRITER
from ..runtime.processor import processor_name
from .agreement import check_agreement, images_for_check
from .detector import Detector
from .engines import Engine, TorchEngine
from .export import export_onnx
from .exported_engines import (
    LONGEST_REASON,
    ExportedEngine,
    OnnxEngine,
    OpenVinoEngine,
)

EngineName: TypeAlias = Literal["torch", "onnxruntime", "openvino"]

REPEATS = 5
"""Measured runs of each engine; the shortest counts, because other programs only make runs longer."""

NUM_COMPARED_IMAGES = 4
"""Number of images on which predictions are compared with those of torch."""

MAX_CACHED = 16
"""Maximum number of files in the cache; the oldest are removed."""

_OPEN: dict[str, type[OnnxEngine] | type[OpenVinoEngine]] = {
    "onnxruntime": OnnxEngine,
    "openvino": OpenVinoEngine,
}


class Choice(Struct, frozen=True):
    """Result of a trial."""

    engine: EngineName
    milliseconds: dict[str, float]
    """Shortest time of one image for each engine that agrees with torch."""


def fastest_engine(detector: Detector, cache: Path | None = None) -> Engine:
    """Return the fastest engine for one image whose predictions agree with those of torch.

    The first call exports the model and tries the engines, which takes about a minute; later calls read the
    cache. Damaged files in it are ignored and replaced. An engine that disagrees is reported and not used.

    Args:
        detector: detector loaded from a checkpoint. On a GPU, its own engine is returned.
        cache: folder of the cache; None uses the user's.

    Example:
        >>> detector = Detector("best.pth", device="cpu", engine="auto")
        >>> len(detector.predict("image.jpg")) > 0
        True
    """
    own = detector.engine
    if not isinstance(own, TorchEngine) or own.device.type != "cpu":
        logger.info(
            "engine=auto tries engines on the CPU only; the detector keeps its own"
        )
        return own
    folder = (cache or user_cache()) / "engines"
    key = _key(detector, own)
    note = folder / f"{key}.choice.json"
    graph = folder / f"{key}.onnx"
    choice = _read(note)
    if choice is not None:
        if choice.engine == "torch":
            return own
        with suppress(CheckpointError, ConfigError, NumericsError):
            return _OPEN[choice.engine](graph, _cpu_of(choice.engine))
    try:
        prepare_output_dir(folder)
        for damaged in (note, graph, graph.with_suffix(".json")):
            damaged.unlink(missing_ok=True)
        export_onnx(detector, graph)
        graph.with_suffix(".json").unlink()  # the graph holds the same metadata
    except (ConfigError, ExportError, OSError, ResourceError) as error:
        logger.warning("engine=auto uses torch: %s", error)
        return own
    engines = _agreeing_engines(detector, graph)
    choice = _trial(detector, engines)
    logger.info(
        "engine=auto uses %s: %s for an image (%s)",
        choice.engine,
        ", ".join(
            f"{name} {milliseconds:.1f} ms"
            for name, milliseconds in choice.milliseconds.items()
        ),
        note,
    )
    try:
        write_json(note, {MARK: WRITER, **msgspec.to_builtins(choice)})
    except ResourceError as error:
        logger.warning("the next engine=auto measures again: %s", error)
    if choice.engine == "torch":
        graph.unlink(missing_ok=True)
    _remove_oldest(folder, keep=(note, graph))
    return engines[choice.engine]


def _cpu_of(engine: str) -> str:
    """Return the name of the CPU in an engine."""
    return {"onnxruntime": "cpu", "openvino": "CPU"}[engine]


def _agreeing_engines(detector: Detector, graph: Path) -> dict[str, Engine]:
    """Return torch's engine, and those installed ones whose predictions agree with it."""
    engines: dict[str, Engine] = {"torch": detector.engine}
    images = images_for_check(detector, None, NUM_COMPARED_IMAGES)
    for name, kind in _OPEN.items():
        try:
            engine: ExportedEngine = kind(graph, _cpu_of(name))
        except ConfigError:
            continue  # not installed
        except (CheckpointError, NumericsError) as error:
            logger.warning("engine=auto does not use %s: %s", name, error)
            continue
        exported = Detector.from_parts(
            engine,
            detector.preprocessing,
            detector.classes,
            detector.threshold,
            {"file": f"{name} with {graph}"},
            bit_depth=detector.bit_depth,
        )
        try:
            check_agreement(detector, exported, *images)
        except Exception as error:
            # the exceptions of the runtimes have no common base class
            reason = first_line(error)[:LONGEST_REASON]
            logger.warning("engine=auto does not use %s: %s", name, reason)
            continue
        engines[name] = engine
    return engines


def _trial(detector: Detector, engines: dict[str, Engine]) -> Choice:
    """Run one image in all engines in turn, and return the fastest."""
    height, width = detector.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, height, width, generator=generator)
    size = torch.tensor([[width, height]])
    shortest = dict.fromkeys(engines, float("inf"))
    for turn in range(-1, REPEATS):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(image, size)
            seconds = time.perf_counter() - start
            if turn >= 0:
                shortest[name] = min(shortest[name], seconds)
    fastest = min(shortest, key=lambda name: shortest[name])
    milliseconds = {
        name: round(1000 * seconds, 3) for name, seconds in shortest.items()
    }
    return msgspec.convert(
        {"engine": fastest, "milliseconds": milliseconds}, Choice
    )


def _read(note: Path) -> Choice | None:
    """Return an earlier result; None if there is none or it is damaged."""
    try:
        with open_regular(note) as file:
            return msgspec.json.decode(file.read(), type=Choice)
    except (
        OSError,
        ConfigError,
        msgspec.MsgspecError,
        RecursionError,
        UnicodeError,
    ):
        return None


def _key(detector: Detector, engine: TorchEngine) -> str:
    """Return a digest of all that decides which engine is fastest and what it computes."""
    digest = hashlib.sha256()
    for fact in (*_machine_facts(), *_model_facts(detector, engine)):
        digest.update(f"{fact}\0".encode(errors="surrogateescape"))
    for name, tensor in engine.model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy())
    return digest.hexdigest()[:24]


def _machine_facts() -> Iterator[str]:
    yield processor_name()
    yield str(os.cpu_count())
    yield str(torch.get_num_threads())
    yield __version__
    for package in ("torch", "onnxruntime", "openvino"):
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"no {package}"


def _model_facts(detector: Detector, engine: TorchEngine) -> Iterator[str]:
    yield str(engine.model)
    yield str(sorted(_plain_values(engine.postprocessor).items()))
    yield str(detector.preprocessing)
    yield str(detector.classes)


def _plain_values(module: torch.nn.Module) -> dict[str, object]:
    """Return the attributes of a module that are numbers or flags."""
    values: dict[str, object] = {}
    for name, value in vars(module).items():
        if isinstance(value, int | float | str):
            values[name] = value
    return values


def _remove_oldest(folder: Path, keep: tuple[Path, ...]) -> None:
    """Remove the oldest files if the cache holds more than `MAX_CACHED`."""
    dated = []
    for path in folder.iterdir():
        # another process may remove files at the same time
        with suppress(OSError):
            if path not in keep:
                dated.append((path.stat().st_mtime, path))
    dated.sort(reverse=True)
    for _, path in dated[MAX_CACHED - len(keep) :]:
        with suppress(OSError):
            path.unlink()
