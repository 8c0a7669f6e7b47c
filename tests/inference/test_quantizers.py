"""The quantizers of the engines write int8 models, and leave given parts in float."""

import logging
import sys
from functools import partial

import numpy as np
import pytest
import torch

from src.core import ConfigError
from src.core.errors import ExportError
from src.inference.exported_engines import OnnxEngine, OpenVinoEngine
from src.inference.quantizers import (
    part_of,
    parts_of,
    quantize_for_onnx_runtime,
    quantize_for_openvino,
    quantizer_for,
)
from src.runtime.own_files import is_ours
from tests.fixtures.calibration_inputs import calibration_inputs

onnx = pytest.importorskip(
    "onnx", reason="onnx is not installed (tools/requirements.txt)"
)
NO_RUNTIME = "onnxruntime is not installed (tools/requirements.txt)"
NO_NNCF = "openvino or nncf is not installed (tools/requirements.txt)"


@pytest.fixture(scope="module")
def inputs() -> list[dict[str, np.ndarray]]:
    return calibration_inputs()


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


@pytest.fixture(scope="module")
def for_onnx_runtime(exported, inputs, tmp_path_factory):
    """An int8 model for ONNX Runtime, with the encoder in float."""
    pytest.importorskip("onnxruntime", reason=NO_RUNTIME)
    result = tmp_path_factory.mktemp("int8") / "int8.onnx"
    quantize_for_onnx_runtime(exported, result, inputs, ["encoder"])
    return result


@pytest.fixture(scope="module")
def for_openvino(exported, inputs, tmp_path_factory):
    """The same for OpenVINO."""
    pytest.importorskip("openvino", reason=NO_NNCF)
    pytest.importorskip("nncf", reason=NO_NNCF)
    result = tmp_path_factory.mktemp("int8") / "int8.xml"
    quantize_for_openvino(exported, result, inputs, ["encoder"])
    return result


def assert_detects(engine, inputs):
    images = torch.from_numpy(inputs[0]["images"])
    sizes = torch.from_numpy(inputs[0]["orig_target_sizes"])
    _, boxes, scores = engine(images, sizes)
    assert boxes.shape == (1, 20, 4)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_onnx_runtime_gets_int8_in_all_parts_but_those_in_float(
    exported, for_onnx_runtime, inputs
):
    parts = quantized_parts(for_onnx_runtime)
    assert parts == set(parts_of(exported)) - {"encoder"}
    assert for_onnx_runtime.stat().st_size < 0.8 * exported.stat().st_size
    assert_detects(OnnxEngine(for_onnx_runtime, "cpu"), inputs)


def test_openvino_gets_int8_in_all_parts_but_those_in_float(
    for_openvino, inputs
):
    import openvino

    model = openvino.Core().read_model(for_openvino)
    scaled = set()
    for op in model.get_ops():
        if op.get_type_name() == "FakeQuantize":
            for port in op.output(0).get_target_inputs():
                scaled.add(part_of(port.get_node().get_friendly_name()))
    assert "encoder" not in scaled
    assert any(part.startswith("backbone.") for part in scaled)
    assert_detects(OpenVinoEngine(for_openvino), inputs)


@pytest.mark.slow
def test_loggers_of_the_quantizers_are_as_before(
    exported, inputs, tmp_path, request
):
    """A program may have a handler of its own, for messages of the package or for all."""
    pytest.importorskip("openvino", reason=NO_NNCF)
    pytest.importorskip("nncf", reason=NO_NNCF)
    pytest.importorskip("onnxruntime", reason=NO_RUNTIME)
    loggers = [logging.getLogger("nncf"), logging.getLogger()]
    handler = logging.NullHandler()
    handler.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
        request.addfinalizer(partial(logger.removeHandler, handler))
    before = [logger.level for logger in loggers]
    quantize_for_openvino(exported, tmp_path / "int8.xml", inputs, [])
    quantize_for_onnx_runtime(exported, tmp_path / "int8.onnx", inputs, [])
    assert [logger.level for logger in loggers] == before
    assert handler.level == logging.INFO


def test_a_model_for_openvino_is_recognized_as_a_file_of_this_project(
    for_openvino, tmp_path
):
    assert is_ours(for_openvino)
    other = tmp_path / "other.xml"
    other.write_text('<net><rt_info><title value="x"/></rt_info></net>')
    assert not is_ours(other)


def test_an_engine_without_int8_is_refused():
    with pytest.raises(
        ConfigError, match="'tensorrt', expected one of openvino, onnxruntime"
    ):
        quantizer_for("tensorrt")


def test_a_missing_quantizer_is_reported_with_the_command_that_installs_it(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "openvino", object())
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match="int8 for OpenVINO needs NNCF: pip"):
        quantizer_for("openvino")


def test_a_failure_of_a_quantizer_is_one_sentence(exported, inputs, tmp_path):
    pytest.importorskip("onnxruntime", reason=NO_RUNTIME)
    bad = [{"images": inputs[0]["images"][:, :1]}]
    with pytest.raises(ExportError, match="could not quantize the model: "):
        quantize_for_onnx_runtime(exported, tmp_path / "int8.onnx", bad, [])
