"""Engines for exported models: ONNX Runtime, OpenVINO and TensorRT; each package is imported when it is used.

All have the inputs `images [N, 3, H, W]` float32 and `orig_target_sizes [N, 2]` int64 (width, height), and
the outputs `labels [N, R]` int64, `boxes [N, R, 4]` xyxy in pixels, `scores [N, R]`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.commands import command_name
from ..core.errors import (
    CheckpointError,
    ConfigError,
    NumericsError,
    first_line,
)
from ..runtime.distributed import pick_device
from ..runtime.log import logger
from ..runtime.optional import import_optional
from ..runtime.weight_files import checked_path
from .engines import EngineOutput
from .metadata import METADATA_KEY
from .openvino_core import openvino_core

INPUTS = ("images", "orig_target_sizes")
OUTPUTS = ("labels", "boxes", "scores")

LONGEST_REASON = 300
"""Maximum characters of a runtime's error in a message."""

VERSIONS_WITH_WRONG_FP16 = ("8.5", "10.3", "10.4")
"""Versions of TensorRT whose fp16 engines users report to be wrong for these models (docs/deployment.md)."""


class ExportedEngine(ABC):
    """Base class of the engines: splits and pads batches to the size that the model accepts."""

    batch_size: int | None = None
    """Fixed batch size; None accepts any size."""
    largest: int | None = None
    """Maximum batch size; None if there is no limit."""
    input_size: tuple[int, int] | None = None
    """(height, width) of the model's input; None accepts any size."""
    metadata: str | None = None
    """Metadata in the file, as JSON; None if the file has none."""

    def __call__(self, images: Tensor, sizes: Tensor) -> EngineOutput:
        """Detect objects (`Engine`)."""
        step = self.batch_size or self.largest or max(1, len(images))
        parts = []
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            batch_sizes = sizes[start : start + step]
            count = len(batch)
            if self.batch_size is not None:
                batch = _filled_up(batch, self.batch_size)
                batch_sizes = _filled_up(batch_sizes, self.batch_size)
            found = self._compute(batch, batch_sizes)
            parts.append([part[:count] for part in found])
        labels, boxes, scores = (torch.cat(column) for column in zip(*parts))
        return labels.long(), boxes.float(), scores.float()

    @abstractmethod
    def _compute(self, images: Tensor, sizes: Tensor) -> Iterable[Tensor]:
        """Run the model once; return `OUTPUTS` on the CPU."""


def _filled_up(rows: Tensor, count: int) -> Tensor:
    """Return `count` rows: the given ones, followed by copies of the last one."""
    missing = count - len(rows)
    if not missing:
        return rows
    copies = rows[-1:].expand(missing, *rows.shape[1:])
    return torch.cat([rows, copies])


class OnnxEngine(ExportedEngine):
    """An ONNX file in ONNX Runtime."""

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Load the file.

        Args:
            path: `.onnx`.
            device: cpu, cuda or cuda:N; None uses CUDA if ONNX Runtime supports it, else the CPU.
            threads: number of threads per operation on the CPU; None uses torch's number.

        Raises:
            ConfigError: if ONNX Runtime is not installed or cannot use the device.
            CheckpointError: if the file is missing, damaged or has another interface.
        """
        path = checked_path(path)
        ort = import_optional("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        providers = _execution_providers(device, ort.get_available_providers())
        # the exceptions of ONNX Runtime have no common base class
        try:
            session = ort.InferenceSession(
                str(path), options, providers=providers
            )
        except Exception as error:
            reason = first_line(error)[:LONGEST_REASON]
            raise CheckpointError(
                f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: {reason}"
            ) from None
        self._session = session
        self.providers = session.get_providers()
        shapes = {entry.name: entry.shape for entry in session.get_inputs()}
        outputs = [entry.name for entry in session.get_outputs()]
        _check_interface(path, list(shapes), outputs)
        batch, _, height, width = shapes[INPUTS[0]]
        self.batch_size = batch if isinstance(batch, int) else None
        if isinstance(height, int) and isinstance(width, int):
            self.input_size = (height, width)
        properties = session.get_modelmeta().custom_metadata_map
        self.metadata = properties.get(METADATA_KEY)
        _refuse_bad_constants(path, _onnx_constants(path))

    def _compute(self, images: Tensor, sizes: Tensor) -> Iterable[Tensor]:
        found = self._session.run(list(OUTPUTS), _numpy_inputs(images, sizes))
        return map(torch.from_numpy, found)


class OpenVinoEngine(ExportedEngine):
    """An ONNX file or an OpenVINO `.xml` file in OpenVINO."""

    def __init__(
        self,
        path: str | Path,
        device: str | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Read and compile the model, in float32.

        Args:
            path: `.onnx`, or `.xml` with its `.bin`.
            device: name of the device in OpenVINO: CPU, GPU, NPU, AUTO ...; None uses the CPU.
            threads: number of threads on the CPU; None uses torch's number.

        Raises:
            ConfigError: if OpenVINO is not installed or does not know the device.
            CheckpointError: if the file is missing, damaged or has another interface.
        """
        path = checked_path(path)
        device = (device or "CPU").upper()
        openvino = import_optional("openvino")
        core = openvino_core()
        known = {name.split(".")[0] for name in core.available_devices}
        if device != "AUTO" and device.split(".")[0] not in known:
            raise ConfigError(
                f"device {device} was requested, OpenVINO {openvino.__version__} sees "
                f"{', '.join(core.available_devices)}"
            )
        settings: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
        if (
            device == "CPU"
        ):  # by default OpenVINO uses bf16 on CPUs that support it
            settings |= {
                "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": "f32",
            }
        try:
            model = core.read_model(str(path))
            inputs = [_openvino_name(port) for port in model.inputs]
            outputs = [_openvino_name(port) for port in model.outputs]
        except Exception as error:
            reason = first_line(error)[:LONGEST_REASON]
            raise CheckpointError(
                f"{path} cannot be loaded by OpenVINO {openvino.__version__}: {reason}"
            ) from None
        _check_interface(path, inputs, outputs)
        _refuse_bad_constants(path, _openvino_constants(model))
        try:
            self._model = core.compile_model(model, device, settings)
        except Exception as error:
            reason = first_line(error)[:LONGEST_REASON]
            raise CheckpointError(
                f"{path} cannot be compiled by OpenVINO {openvino.__version__} for {device}: {reason}"
            ) from None
        batch, _, height, width = model.input(INPUTS[0]).partial_shape
        self.batch_size = None if batch.is_dynamic else batch.get_length()
        if not height.is_dynamic and not width.is_dynamic:
            self.input_size = (height.get_length(), width.get_length())
        self.metadata = _onnx_metadata(path) if path.suffix == ".onnx" else None

    def _compute(self, images: Tensor, sizes: Tensor) -> Iterable[Tensor]:
        found = self._model(_numpy_inputs(images, sizes))
        return [torch.from_numpy(np.array(found[name])) for name in OUTPUTS]


class TensorRtEngine(ExportedEngine):
    """A TensorRT engine (API of version 10), with torch's memory on the device as its buffers."""

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        """Load the engine, which runs only on the kind of GPU and version of TensorRT that built it.

        Args:
            path: file written by `trtexec --saveEngine`.
            device: cuda or cuda:N; None uses the first CUDA device.

        Raises:
            ConfigError: if TensorRT is not installed or older than 10, or the device does not exist.
            CheckpointError: if the file is missing, damaged, built elsewhere or has another interface.
        """
        path = checked_path(path)
        self.device = pick_device(device or "cuda")
        if self.device.type != "cuda":
            raise ConfigError(
                f"TensorRT runs only on CUDA devices, but {self.device} was requested"
            )
        trt = import_optional("tensorrt")
        if int(trt.__version__.split(".")[0]) < 10:
            raise ConfigError(
                f"TensorRT {trt.__version__} is installed, expected 10 or later"
            )
        warn_of_wrong_fp16(trt.__version__)
        is_debugging = logger.isEnabledFor(logging.DEBUG)
        level = trt.Logger.DEBUG if is_debugging else trt.Logger.ERROR
        self._runtime = trt.Runtime(trt.Logger(level))
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise CheckpointError(
                f"{path} is not an engine that TensorRT {trt.__version__} can use on "
                f"{torch.cuda.get_device_name(self.device)}: engines run only on the version and GPU that "
                "built them; build it here (docs/deployment.md)"
            )
        self._engine = engine
        inputs: list[str] = []
        outputs: list[str] = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(name)
        _check_interface(path, inputs, outputs)
        self._context = engine.create_execution_context()
        self._stream = torch.cuda.Stream(self.device)
        types = {
            trt.float32: torch.float32,
            trt.float16: torch.float16,
            trt.int32: torch.int32,
            trt.int64: torch.int64,
        }
        self._types = {
            name: types[engine.get_tensor_dtype(name)]
            for name in (*inputs, *outputs)
        }
        first = engine.get_tensor_shape(INPUTS[0])[0]
        if first != -1:
            self.batch_size = first
            return
        smallest, _, largest = engine.get_tensor_profile_shape(INPUTS[0], 0)
        self.largest = largest[0]
        self.batch_size = largest[0] if smallest[0] == largest[0] else None

    @torch.inference_mode()
    def _compute(self, images: Tensor, sizes: Tensor) -> Iterable[Tensor]:
        # inputs that are on the GPU already may still be computed there
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            buffers: dict[str, Tensor] = {}
            for name, value in zip(INPUTS, (images, sizes)):
                moved = value.to(
                    self.device, self._types[name], non_blocking=True
                )
                buffers[name] = moved.contiguous()
            for name, value in buffers.items():
                self._context.set_input_shape(name, tuple(value.shape))
            for name in OUTPUTS:
                shape = tuple(self._context.get_tensor_shape(name))
                dtype = self._types[name]
                buffers[name] = torch.empty(
                    shape, dtype=dtype, device=self.device
                )
            for name, value in buffers.items():
                self._context.set_tensor_address(name, value.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError(
                    f"TensorRT could not run a batch of {len(images)}; start again with --debug to see what "
                    "it logs"
                )
            # copying to the CPU synchronizes with this stream
            return [buffers[name].cpu() for name in OUTPUTS]


def _numpy_inputs(images: Tensor, sizes: Tensor) -> dict[str, np.ndarray]:
    """Return the inputs of a model by name."""
    values = (images.contiguous().numpy(), sizes.contiguous().numpy())
    return dict(zip(INPUTS, values))


def warn_of_wrong_fp16(version: str) -> None:
    """Log a warning for versions of TensorRT whose fp16 engines are reported to give wrong results.

    Example:
        >>> warn_of_wrong_fp16("10.6.0")  # a version that gives correct results: no warning
    """
    major_and_minor = ".".join(version.split(".")[:2])
    if major_and_minor in VERSIONS_WITH_WRONG_FP16:
        logger.warning(
            "TensorRT %s: users report wrong results of fp16 engines of these models with %s, correct ones "
            "from 10.6 on; compare with torch before you rely on the engine (docs/deployment.md)",
            version,
            ", ".join(VERSIONS_WITH_WRONG_FP16),
        )


def _execution_providers(
    device: str | None, available: list[str]
) -> list[str | tuple[str, dict[str, int]]]:
    """Return ONNX Runtime's execution providers for a device."""
    has_cuda = "CUDAExecutionProvider" in available
    if device is not None:
        picked = pick_device(device)
    elif has_cuda and torch.cuda.is_available():
        picked = torch.device("cuda")
    else:
        picked = torch.device("cpu")
    if picked.type != "cuda":
        return ["CPUExecutionProvider"]
    if not has_cuda:
        raise ConfigError(
            f"device {device} was requested, but this ONNX Runtime has {', '.join(available)}; pip install "
            "onnxruntime-gpu in its place"
        )
    cuda = ("CUDAExecutionProvider", {"device_id": picked.index or 0})
    return [cuda, "CPUExecutionProvider"]


def _check_interface(path: Path, inputs: list[str], outputs: list[str]) -> None:
    """Check that a model has exactly the inputs `INPUTS` and the outputs `OUTPUTS`, in any order."""
    if sorted(inputs) != sorted(INPUTS) or sorted(outputs) != sorted(OUTPUTS):
        raise CheckpointError(
            f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}, expected {', '.join(INPUTS)} "
            f"and {', '.join(OUTPUTS)}; export the checkpoint with {command_name('export')}"
        )


def _openvino_name(port: Any) -> str:
    """Return the name of a port in the interface; if no name matches, all names of the port."""
    names = sorted(port.get_names())
    for name in names:
        if name in INPUTS + OUTPUTS:
            return name
    return ", ".join(names)


def _openvino_constants(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the constants of an OpenVINO model by name."""
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            yield op.get_friendly_name(), np.asarray(op.data)


def _onnx_constants(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights of an ONNX file by name; without the onnx package, yield nothing."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        return
    for weight in onnx.load(str(path)).graph.initializer:
        yield weight.name, numpy_helper.to_array(weight, str(path.parent))


def _refuse_bad_constants(
    path: Path, constants: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Check that all weights are finite.

    Runtimes order scores that are not finite arbitrarily, so outputs do not show the problem. Constant tables
    may contain infinity by design, such as anchors outside the valid range.

    Raises:
        NumericsError: with the first weight that is not finite.
    """
    for name, values in constants:
        if values.dtype.kind != "f":
            continue
        is_weight = name.rpartition(".")[2] in ("weight", "bias")
        if np.isnan(values).any() or (is_weight and np.isinf(values).any()):
            raise NumericsError(
                f"{path}: weight {name} contains values that are not finite; export the model again"
            )


def _onnx_metadata(path: Path) -> str | None:
    """Read the metadata of an ONNX file; None without the onnx package, so that NAME.json is used."""
    try:
        import onnx
    except ImportError:
        return None
    for entry in onnx.load(str(path), load_external_data=False).metadata_props:
        if entry.key == METADATA_KEY:
            return entry.value
    return None
