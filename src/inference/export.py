"""Export a detector to an ONNX file.

See docs/decisions/0016-onnx-export.md for the reasons behind the use of torch's exporters.
"""

from __future__ import annotations

import ast
import copy
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, ExportError
from ..detection.notes import ClassEntry
from ..runtime.files import prepare_output_dir, write_atomically
from ..runtime.log import least_severe, logger
from ..runtime.optional import import_optional
from ..runtime.own_files import refuse_foreign
from ..runtime.warning_filters import without_warnings
from ..zoo.dfine.deformable_attention import MultiScaleDeformableAttention
from .detector import Detector
from .engines import TorchEngine
from .exported_engines import INPUTS, OUTPUTS
from .metadata import FORMAT, METADATA_KEY, Metadata

if TYPE_CHECKING:
    import onnx

Exporter = Literal["dynamo", "torchscript"]
Sampling = Literal["grid_sample", "gather"]

OPSETS: dict[str, int] = {"dynamo": 18, "torchscript": 17}
"""Lowest and default opset of each exporter, which most runtimes can read. From opset 17 on,
LayerNormalization is a single op."""

UNCHECKED = ".unchecked.onnx"
"""End of the name of a file whose check did not finish."""

DISAGREES = ".disagrees.onnx"
"""End of the name of a file whose predictions differ from those of its model."""

BATCH = "N"
"""Name of a dynamic batch dimension."""

CONTROL_FLOW = ("If", "Loop", "Scan")
"""Ops that a graph must not contain, besides those whose names begin with Sequence."""


class Deployed(nn.Module):
    """Detector and post-processor in one module, with the fixed interface of exported models."""

    def __init__(self, model: nn.Module, postprocessor: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.postprocessor = postprocessor

    def forward(
        self, images: Tensor, orig_target_sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            images: `[N, 3, H, W]` float32.
            orig_target_sizes: `[N, 2]` int64, (width, height) of the original images in pixels.

        Returns:
            Labels `[N, R]` int64, boxes `[N, R, 4]` xyxy in pixels, and scores `[N, R]`.
        """
        return self.postprocessor(self.model(images), orig_target_sizes)


def export_onnx(
    detector: Detector,
    path: str | Path,
    *,
    batch_size: int | None = None,
    opset: int | None = None,
    exporter: Exporter = "dynamo",
    simplify: bool = False,
    sampling: Sampling = "grid_sample",
) -> Path:
    """Write a detector as an ONNX file, and its metadata as NAME.json beside it.

    Args:
        detector: detector loaded from a checkpoint, on the CPU.
        path: path of the `.onnx` file, which is created when it is complete.
        batch_size: fixed batch size; None exports a dynamic batch dimension.
        opset: version of the ONNX operator set; None uses the lowest of the exporter.
        exporter: "dynamo" (torch.export), or "torchscript", deprecated, for a fixed batch and runtimes that
            need opset 17.
        simplify: pass the graph through onnxslim or onnxsim.
        sampling: "gather" reads the points of the decoder with gather operations instead of GridSample, for
            runtimes whose GridSample is slow, wrong or missing. The numbers are the same up to rounding.

    Returns:
        Path of the file.

    Raises:
        ConfigError: for an engine other than PyTorch's, a device other than the CPU, a wrong opset, batch
            size or file name, or a missing package.
        ExportError: if the exported graph fails a check.
    """
    path = Path(path)
    opset = _checked_opset(opset, exporter, batch_size)
    if path.suffix != ".onnx":
        raise ConfigError(
            f"the file is called {path.name}, expected a name that ends with .onnx"
        )
    engine = detector.engine
    if not isinstance(engine, TorchEngine) or engine.device.type != "cpu":
        raise ConfigError(
            "only a detector from a checkpoint, loaded with device='cpu', can be exported"
        )
    results = (path, path.with_suffix(".json"), path.with_suffix(DISAGREES))
    refuse_foreign(results, "choose another --output")
    onnx = _import_onnx(exporter)
    simplifier = _import_simplifier() if simplify else None
    if opset > onnx.defs.onnx_opset_version():
        raise ConfigError(
            f"opset {opset} was requested, but onnx {onnx.__version__} knows up to "
            f"{onnx.defs.onnx_opset_version()}"
        )
    prepare_output_dir(path.parent)
    model = _sampling_by(engine.model, sampling)
    deployed = Deployed(model, engine.postprocessor).eval()
    example = _example_inputs(detector, batch_size or 2)
    exported_by = (
        _export_with_dynamo
        if exporter == "dynamo"
        else _export_with_torchscript
    )
    with torch.no_grad(), _without_exporter_messages():
        # computes cached tables, which would otherwise become part of the graph
        deployed(*example)
        proto = exported_by(
            deployed, example, opset, free_batch=batch_size is None
        )
        if simplifier is not None:
            proto = simplifier(proto)
    _order_gelu(proto)
    _name_nodes_by_module(proto)
    _remove_debug_notes(proto)
    metadata = _metadata_of(detector, batch_size)
    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(proto)
    layer_norms = _number_of_layer_norms(deployed)
    _check_graph(proto, opset, path, layer_norms)
    beside = path.with_suffix(".json")
    graph = proto.SerializeToString()
    write_atomically(path, lambda file: file.write(graph))
    text = metadata.to_json().encode()
    write_atomically(beside, lambda file: file.write(text))
    logger.info(
        "%s: opset %d, %s, %d operations, %.1f MB; %s beside it holds the same metadata",
        path,
        opset,
        f"batches of {batch_size}" if batch_size else "batches of any size",
        len(proto.graph.node),
        path.stat().st_size / 1e6,
        beside.name,
    )
    return path


def _sampling_by(model: nn.Module, sampling: Sampling) -> nn.Module:
    """Return the model, or a copy that samples with gather operations.

    Raises:
        ConfigError: if the sampling is unknown, or the model has no points that could be gathered.
    """
    if sampling == "grid_sample":
        return model
    if sampling != "gather":
        raise ConfigError(
            f"sampling is {sampling!r}, expected 'grid_sample' or 'gather'"
        )
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.sample_by_gather()
    return changed


def _example_inputs(
    detector: Detector, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return random images, and their sizes, for tracing the model."""
    height, width = detector.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, height, width, generator=generator)
    return images, torch.tensor([[width, height]] * batch_size)


def _checked_opset(
    opset: int | None, exporter: str, batch_size: int | None
) -> int:
    """Return the opset to write, after checking that it fits the exporter and the batch size."""
    if exporter not in OPSETS:
        raise ConfigError(
            f"exporter is '{exporter}', expected one of {', '.join(OPSETS)}"
        )
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"the batch is {batch_size}, expected at least 1")
    if exporter == "torchscript" and batch_size is None:
        raise ConfigError(
            "the torchscript exporter writes a fixed batch size into the graph; give --batch N, "
            "or use --exporter dynamo"
        )
    opset = OPSETS[exporter] if opset is None else opset
    least = min(OPSETS.values())
    if opset < least:
        raise ConfigError(
            f"opset {opset} was requested, expected at least {least}, the first in which LayerNormalization "
            "is a single op: decomposed, it overflows in fp16"
        )
    if opset < OPSETS[exporter]:
        raise ConfigError(
            f"opset {opset} was requested, but the {exporter} exporter writes {OPSETS[exporter]} and above; "
            f"for {opset} use --exporter torchscript --batch N"
        )
    return opset


def _import_onnx(exporter: str) -> ModuleType:
    """Import the packages of an exporter; return `onnx`."""
    if exporter == "dynamo":
        import_optional("onnxscript")
    return import_optional("onnx")


def _export_with_dynamo(
    deployed: nn.Module,
    example: tuple[Tensor, ...],
    opset: int,
    *,
    free_batch: bool,
) -> onnx.ModelProto:
    batch = torch.export.Dim(BATCH)
    shapes = {name: {0: batch} for name in INPUTS} if free_batch else None
    program = torch.onnx.export(
        deployed,
        example,
        dynamo=True,
        input_names=INPUTS,
        output_names=OUTPUTS,
        opset_version=opset,
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert program is not None  # torch returns it if no file is named
    return program.model_proto


def _export_with_torchscript(
    deployed: nn.Module,
    example: tuple[Tensor, ...],
    opset: int,
    *,
    free_batch: bool,
) -> onnx.ModelProto:
    import onnx

    assert not free_batch
    file = io.BytesIO()
    torch.onnx.export(
        deployed,
        example,
        file,  # type: ignore[arg-type]  # the signature has paths alone; the older exporter takes files
        dynamo=False,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        opset_version=opset,
    )
    return onnx.load_from_string(file.getvalue())


@contextmanager
def _without_exporter_messages() -> Iterator[None]:
    """Suppress the exporters' messages; `_check_graph` and the comparison of results report real problems."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    with without_warnings(), least_severe(logging.ERROR, *names):
        yield


def _import_simplifier() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """Return a function that simplifies a graph."""
    try:
        import onnxslim

        return onnxslim.slim
    except ImportError:
        onnxsim = import_optional("onnxsim")

    def simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
        result, fits = onnxsim.simplify(proto)
        if not fits:
            raise ExportError(
                "onnxsim reports that its result differs; export without --simplify"
            )
        return result

    return simplified


def _order_gelu(proto: onnx.ModelProto) -> None:
    """Write each GELU as 0.5 * (x * (1 + erf(...))), the order that ONNX Runtime fuses to one operation.

    The exporter writes x * (0.5 * (1 + erf(...))). The numbers stay the same, as 0.5 is a power of two.
    """
    nodes = proto.graph.node
    made_by = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for half in nodes:
        if half.op_type != "Mul" or len(readers.get(half.output[0], [])) != 1:
            continue
        outer = readers[half.output[0]][0]
        factor, sum_name = half.input
        add = made_by.get(sum_name)
        if factor in made_by or add is None or outer.op_type != "Mul":
            continue
        is_erf = [
            name in made_by and made_by[name].op_type == "Erf"
            for name in add.input
        ]
        if add.op_type == "Add" and any(is_erf):
            place = list(outer.input).index(half.output[0])
            half.input[0] = outer.input[1 - place]  # x
            outer.input[1 - place] = factor


def _name_nodes_by_module(proto: onnx.ModelProto) -> None:
    """Name each node by the module that it comes from, such as `Conv_3/model.encoder.input_proj.0.conv`.

    Profiles of runtimes show these names, and int8 leaves parts of the model in float by them. The type is
    in front, because TensorRT accepts one wildcard in a name: `LayerNormalization_*:fp32`. The older
    exporter names nodes in this way itself.
    """
    for number, node in enumerate(proto.graph.node):
        for entry in node.metadata_props:
            if entry.key == "pkg.torch.onnx.name_scopes":
                scopes = ast.literal_eval(entry.value)
                # the last scope is the operation
                module = scopes[-2] if len(scopes) > 1 else ""
                node.name = f"{node.op_type}_{number}/{module}"


def _remove_debug_notes(proto: onnx.ModelProto) -> None:
    """Remove the exporter's debugging information.

    It contains source lines and local paths, and is as large as a small model.
    """
    proto.doc_string = ""
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    for part in (
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
        *proto.graph.initializer,
        *proto.functions,
    ):
        part.doc_string = ""
        del part.metadata_props[:]


def _number_of_layer_norms(model: nn.Module) -> int:
    """Return how many LayerNorms a model has; DEIMv2's smallest models have none."""
    return sum(isinstance(part, nn.LayerNorm) for part in model.modules())


def _check_graph(
    proto: onnx.ModelProto, opset: int, path: Path, layer_norms: int
) -> None:
    """Refuse graphs that some runtimes cannot run, or that do not have the fixed interface.

    Args:
        proto: the exported model.
        opset: opset that was asked for.
        path: the file, for messages.
        layer_norms: number of LayerNorms in the model.
    """
    standard = {"", "ai.onnx"}
    graph = proto.graph
    ops = {node.op_type for node in graph.node}
    domains = {node.domain for node in graph.node}
    branching = []
    for op in sorted(ops):
        if op in CONTROL_FLOW or op.startswith("Sequence"):
            branching.append(op)
    faults = []
    if branching:
        faults.append(f"it has control flow ({', '.join(branching)})")
    if layer_norms and "LayerNormalization" not in ops:
        faults.append("LayerNormalization is decomposed")
    for entry in proto.opset_import:
        if entry.domain in standard and entry.version != opset:
            faults.append(f"its opset is {entry.version}, not {opset}")
    if domains - standard:
        faults.append(
            f"it has operations of {', '.join(sorted(domains - standard))}"
        )
    inputs = tuple(entry.name for entry in graph.input)
    outputs = tuple(entry.name for entry in graph.output)
    if inputs != INPUTS or outputs != OUTPUTS:
        faults.append(
            f"it has the inputs {', '.join(inputs)} and the outputs {', '.join(outputs)}"
        )
    if faults:
        raise ExportError(
            f"{path} was not written: {'; '.join(faults)}; tested with torch 2.14, installed is "
            f"{torch.__version__}"
        )


def _metadata_of(detector: Detector, batch_size: int | None) -> Metadata:
    """Return the metadata to store in the exported file."""
    meta = detector.meta
    return Metadata(
        preprocessing=detector.preprocessing.ops,
        classes=[
            ClassEntry(id=entry["id"], name=entry["name"])
            for entry in detector.classes
        ],
        threshold=detector.threshold,
        input_size=list(detector.preprocessing.input_size),
        batch_size=batch_size,
        licences=list(meta.get("licences") or []),
        commit=meta.get("commit"),
        checkpoint=Path(meta["file"]).name if "file" in meta else None,
        bit_depth=detector.bit_depth,
        format=1 if detector.bit_depth is None else FORMAT,
    )
