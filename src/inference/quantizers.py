"""Quantize an exported graph to 8-bit integers with the quantizer of the engine that will run it.

ONNX Runtime has its own quantizer, OpenVINO has NNCF. Both measure the ranges of activations on prepared
images, and leave given parts of the model in float. `int8_export` decides which these are.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np

from ..core.errors import ConfigError, ExportError, first_line
from ..runtime.log import least_severe
from ..runtime.optional import import_optional
from ..runtime.own_files import MARK, WRITER
from .exported_engines import LONGEST_REASON
from .openvino_core import openvino_core

Int8Engine: TypeAlias = Literal["openvino", "onnxruntime"]

Inputs: TypeAlias = dict[str, np.ndarray]
"""Prepared inputs of the graph by name, of one image."""

QUANTIZED_OPS = ("Conv", "MatMul", "Gemm")
"""Operations that ONNX Runtime computes in int8; NNCF chooses by itself."""

SUFFIXES: dict[str, str] = {"openvino": ".xml", "onnxruntime": ".onnx"}
"""End of the file's name for each engine."""


class Quantizer(Protocol):
    """Interface of the quantizers."""

    def __call__(
        self,
        graph: Path,
        result: Path,
        images: Sequence[Inputs],
        float_parts: Collection[str],
    ) -> None:
        """Write an int8 model.

        Args:
            graph: exported `.onnx` file in float.
            result: file to write, `.onnx`, or `.xml` with a `.bin` beside it.
            images: inputs that show the ranges of activations.
            float_parts: names of parts (`parts_of`) that stay in float.

        Raises:
            ConfigError: if the quantizer is not installed.
            ExportError: if the quantizer fails.
        """


def part_of(node: str) -> str:
    """Return the part of the model that a node belongs to.

    Example:
        >>> part_of("MatMul_40/model.backbone.vit.blocks.3.mlp.fc1")
        'backbone.vit'
        >>> part_of("Conv_7/model.encoder.lateral_convs.0")
        'encoder'
        >>> part_of("TopK_9/postprocessor")
        ''
    """
    # OpenVINO adds words behind another slash
    module = node.partition("/")[2].partition("/")[0].split(".")
    if module[0] != "model" or len(module) < 2:
        return ""
    levels = 2 if module[1] == "encoder" else 3
    return ".".join(module[1:levels])


def parts_of(graph: Path) -> list[str]:
    """Return the parts of an exported model with operations that can be quantized, in the order of the graph.

    Args:
        graph: `.onnx` file whose nodes are named by modules, as `export_onnx` writes them.

    Raises:
        ExportError: if no node is named by a module.
    """
    parts = dict.fromkeys(part for part, _ in _quantizable(graph))
    parts.pop("", None)
    if not parts:
        raise ExportError(
            f"{graph}: no operation is named by its module, so no part could stay in float; export "
            "with torch 2.14, which was tested"
        )
    return list(parts)


def _quantizable(graph: Path) -> Iterator[tuple[str, str]]:
    """Yield part and name of each node with weights that can be quantized."""
    onnx = import_optional("onnx")
    content = onnx.load(str(graph)).graph
    weights = {entry.name for entry in content.initializer}
    for node in content.node:
        if node.op_type in QUANTIZED_OPS and node.input[1] in weights:
            yield part_of(node.name), node.name


def quantize_for_onnx_runtime(
    graph: Path,
    result: Path,
    images: Sequence[Inputs],
    float_parts: Collection[str],
) -> None:
    """Write an `.onnx` file for ONNX Runtime, with one scale per channel of the weights (`Quantizer`)."""
    import_optional("onnx")
    import_optional("onnxruntime")
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Gives the images one by one."""

        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> Inputs | None:
            return next(self._images, None)

    # products of activations, as in attention, have no weights and stay in float
    nodes = []
    for part, name in _quantizable(graph):
        if part not in float_parts:
            nodes.append(name)
    try:
        # it advises preprocessing with the root logger
        with least_severe(logging.ERROR, ""):
            quantization.quantize_static(
                str(graph),
                str(result),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED_OPS),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_quantize=nodes,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
    except Exception as error:
        raise _failed("ONNX Runtime's quantizer", error) from error


def quantize_for_openvino(
    graph: Path,
    result: Path,
    images: Sequence[Inputs],
    float_parts: Collection[str],
) -> None:
    """Write an `.xml` file for OpenVINO with NNCF, which smooths inputs of linear layers (`Quantizer`)."""
    openvino = import_optional("openvino")
    nncf = import_optional("nncf")
    # also keeps the stack for signals, because NNCF makes cores of its own
    model = openvino_core().read_model(str(graph))
    ignored = None
    if float_parts:
        patterns = [
            f"[^/]*/model\\.{part}([./].*)?" for part in sorted(float_parts)
        ]
        ignored = nncf.IgnoredScope(patterns=patterns, validate=False)
    try:
        with least_severe(logging.ERROR, "nncf"):
            quantized = nncf.quantize(
                model,
                nncf.Dataset(list(images)),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(images),
                ignored_scope=ignored,
            )
    except Exception as error:
        raise _failed("NNCF", error) from error
    quantized.set_rt_info(WRITER, MARK)
    openvino.save_model(quantized, str(result), compress_to_fp16=False)


def _failed(name: str, error: Exception) -> ExportError:
    reason = first_line(error)[:LONGEST_REASON]
    return ExportError(f"{name} could not quantize the model: {reason}")


QUANTIZERS: dict[str, Quantizer] = {
    "openvino": quantize_for_openvino,
    "onnxruntime": quantize_for_onnx_runtime,
}


def quantizer_for(engine: str) -> Quantizer:
    """Return the quantizer of an engine, after importing its packages.

    Raises:
        ConfigError: if the engine has none, or a package is missing.
    """
    if engine not in QUANTIZERS:
        raise ConfigError(
            f"int8 was requested for {engine!r}, expected one of {', '.join(QUANTIZERS)}"
        )
    packages = {"openvino": ("openvino", "nncf")}
    for package in packages.get(engine, ("onnxruntime",)):
        import_optional(package)
    return QUANTIZERS[engine]
