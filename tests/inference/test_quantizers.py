"""The quantizers of the engines write int8 models, and leave the parts in float that they are told to."""

import numpy as np
import pytest

from src.core import ConfigError
from src.core.errors import ExportError
from src.inference import quantizers
from src.inference.exported_engines import OnnxEngine, OpenVinoEngine
from src.inference.quantizers import (
    part_of,
    parts_of,
    quantize_for_onnx_runtime,
    quantize_for_openvino,
    quantizer_for,
)

onnx = pytest.importorskip(
    "onnx", reason="onnx is not installed (tools/requirements.txt)"
)
NO_RUNTIME = "onnxruntime is not installed (tools/requirements.txt)"
NO_NNCF = "openvino or nncf is not installed (tools/requirements.txt)"


@pytest.fixture(scope="module")
def inputs() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    images = rng.random((2, 1, 3, 64, 64), dtype=np.float32)
    size = np.array([[64, 64]])
    return [{"images": image, "orig_target_sizes": size} for image in images]


def quantized_parts(path) -> set[str]:
    """Return the parts with a MatMul or Conv whose weights are in int8."""
    graph = onnx.load(path).graph
    scaled = {
        name
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    parts = set()
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul") and node.input[1] in scaled:
            parts.add(part_of(node.name))
    return parts


def test_a_node_belongs_to_the_part_that_its_module_is_in():
    assert part_of("Gemm_4/model.decoder.dec_bbox_head.2") == (
        "decoder.dec_bbox_head"
    )
    assert part_of("Add_4/model.encoder") == "encoder"
    assert part_of("node_Split_1") == part_of("Cast_3/") == ""


def test_the_parts_of_a_model_are_in_the_order_of_the_graph(exported):
    parts = parts_of(exported)
    assert parts[0].startswith("backbone.")
    assert parts.index("encoder") < parts.index("decoder.decoder")
    assert len(set(parts)) == len(parts)


def test_a_graph_without_names_of_modules_is_refused(exported, tmp_path):
    model = onnx.load(exported)
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
    onnx.save(model, tmp_path / "unnamed.onnx")
    with pytest.raises(
        ExportError, match="no operation is named by its module"
    ):
        parts_of(tmp_path / "unnamed.onnx")


def test_onnx_runtime_gets_int8_in_all_parts_but_those_in_float(
    exported, inputs, tmp_path
):
    pytest.importorskip("onnxruntime", reason=NO_RUNTIME)
    result = tmp_path / "int8.onnx"
    quantize_for_onnx_runtime(exported, result, inputs, ["encoder"])
    parts = quantized_parts(result)
    assert parts == set(parts_of(exported)) - {"encoder"}
    assert result.stat().st_size < 0.6 * exported.stat().st_size


def test_openvino_gets_int8_in_all_parts_but_those_in_float(
    exported, inputs, tmp_path
):
    openvino = pytest.importorskip("openvino", reason=NO_NNCF)
    pytest.importorskip("nncf", reason=NO_NNCF)
    result = tmp_path / "int8.xml"
    quantize_for_openvino(exported, result, inputs, ["encoder"])
    model = openvino.Core().read_model(result)
    parts = {
        part_of(op.get_friendly_name())
        for op in model.get_ops()
        if op.get_type_name() == "FakeQuantize"
    }
    assert "encoder" not in parts
    assert any(part.startswith("backbone.") for part in parts)


@pytest.mark.parametrize(
    ("quantize", "suffix", "engine", "package"),
    [
        (quantize_for_onnx_runtime, ".onnx", OnnxEngine, "onnxruntime"),
        (quantize_for_openvino, ".xml", OpenVinoEngine, "nncf"),
    ],
)
def test_an_int8_model_runs_in_its_engine(
    quantize, suffix, engine, package, exported, inputs, tmp_path
):
    pytest.importorskip(package, reason=f"{package} is not installed")
    result = tmp_path / f"int8{suffix}"
    quantize(exported, result, inputs, [])
    import torch

    images = torch.from_numpy(inputs[0]["images"])
    sizes = torch.from_numpy(inputs[0]["orig_target_sizes"])
    _, boxes, scores = engine(result)(images, sizes)
    assert boxes.shape == (1, 20, 4)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_an_engine_without_int8_is_refused():
    with pytest.raises(
        ConfigError, match="'tensorrt', expected one of openvino, onnxruntime"
    ):
        quantizer_for("tensorrt")


def test_a_missing_quantizer_is_reported_with_the_command_that_installs_it(
    monkeypatch,
):
    import sys

    monkeypatch.setitem(sys.modules, "openvino", object())
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match="int8 for OpenVINO needs NNCF: pip"):
        quantizer_for("openvino")


def test_a_failure_of_a_quantizer_is_one_sentence(exported, inputs, tmp_path):
    pytest.importorskip("onnxruntime", reason=NO_RUNTIME)
    bad = [{"images": inputs[0]["images"][:, :1]}]
    with pytest.raises(ExportError, match="could not quantize the model: "):
        quantizers.quantize_for_onnx_runtime(
            exported, tmp_path / "int8.onnx", bad, []
        )
