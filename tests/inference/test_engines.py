"""Exported models in ONNX Runtime and OpenVINO; TensorRT as far as it goes without a GPU."""

import json
import shutil
import sys
from functools import cache
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

from src.core import CheckpointError, ConfigError, NumericsError
from src.inference import Detector
from src.inference.exported_engines import (
    ExportedEngine,
    OnnxEngine,
    OpenVinoEngine,
    TensorRtEngine,
    _execution_providers,
    warn_of_wrong_fp16,
)
from src.inference.reading import read_image
from tests.fixtures.exported import give_nan, overflow_scores, spoil
from tests.fixtures.pictures import REFUSED, write_modes, write_orientations
from tests.fixtures.slow import slow
from tests.fixtures.tiny import ROOT

onnx = pytest.importorskip(
    "onnx", reason="onnx is not installed (tools/requirements.txt)"
)


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def load(request):
    """Return a function that loads a file into an engine, each file once."""
    pytest.importorskip(
        {"onnx": "onnxruntime"}.get(request.param, request.param),
        reason=f"{request.param} is not installed (tools/requirements.txt)",
    )
    return cache(
        {"onnx": Detector.from_onnx, "openvino": Detector.from_openvino}[
            request.param
        ]
    )


def agree(found, expected) -> None:
    assert [one.names for one in found] == [other.names for other in expected]
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.02)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_images_gives_what_torch_gives(
    load, exported, detector, val_images, count
):
    other = load(exported)
    assert other.engine.batch_size is None
    agree(
        other.predict(val_images[:count], threshold=0.3, batch_size=count),
        detector.predict(val_images[:count], threshold=0.3),
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_fixed_batch_is_filled_up_and_the_rest_thrown_away(
    load, exported_fixed, detector, val_images, count
):
    other = load(exported_fixed)
    assert other.engine.batch_size == 2
    agree(
        other.predict(val_images[:count], threshold=0.3),
        detector.predict(val_images[:count], threshold=0.3),
    )


def test_classes_threshold_preprocessing_and_origin_are_those_of_the_checkpoint(
    load, exported, detector, val_images
):
    other = load(exported)
    assert (other.classes, other.threshold, other.preprocessing.ops) == (
        detector.classes,
        detector.threshold,
        detector.preprocessing.ops,
    )
    assert (
        other.meta["checkpoint"] == "trained_tiny.pth"
        and other.meta["commit"] == detector.meta["commit"]
    )
    image = torch.randint(0, 255, (3, 40, 70), dtype=torch.uint8)
    assert torch.equal(
        other.preprocessing([image])[0], detector.preprocessing([image])[0]
    )


def test_the_json_beside_it_serves_where_the_file_has_lost_its_metadata(
    load, exported, tmp_path, val_images
):
    proto = onnx.load(exported)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    with pytest.raises(
        CheckpointError, match="bare.json does not exist beside it"
    ):
        load(tmp_path / "bare.onnx")
    shutil.copy(exported.with_suffix(".json"), tmp_path / "bare.json")
    assert (
        len(load(tmp_path / "bare.onnx").predict(val_images[0], threshold=0.0))
        == 20
    )


def test_openvino_format_is_read_with_its_json_file(
    exported, detector, val_images, tmp_path
):
    openvino = pytest.importorskip("openvino")
    openvino.save_model(
        openvino.Core().read_model(exported),
        tmp_path / "tiny.xml",
        compress_to_fp16=False,
    )
    shutil.copy(exported.with_suffix(".json"), tmp_path / "tiny.json")
    agree(
        Detector.from_openvino(tmp_path / "tiny.xml").predict(
            val_images, threshold=0.3
        ),
        detector.predict(val_images, threshold=0.3),
    )


def test_a_foreign_model_is_refused_with_what_it_takes_and_gives(
    load, tmp_path
):
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["input"], ["output"])],
        "g",
        [tensor("input", 1, [1, 3, 8, 8])],
        [tensor("output", 1, [1, 3, 8, 8])],
    )
    onnx.save(
        onnx.helper.make_model(
            graph,
            opset_imports=[onnx.helper.make_opsetid("", 17)],
            ir_version=8,
        ),
        tmp_path / "foreign.onnx",
    )
    with pytest.raises(
        CheckpointError,
        match="foreign.onnx takes input and gives output, expected images, "
        "orig_target_sizes and labels, boxes, scores",
    ):
        load(tmp_path / "foreign.onnx")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"no model at all", "cannot be loaded by"),
    ],
)
def test_an_unreadable_file_is_refused_in_one_line(
    load, tmp_path, content, message
):
    if content is not None:
        (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load(tmp_path / "a.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "engine, package, message",
    [
        (OnnxEngine, "onnxruntime", "pip install onnxruntime"),
        (OpenVinoEngine, "openvino", "pip install openvino"),
    ],
)
def test_without_the_package_one_line_says_what_to_install(
    exported, monkeypatch, engine, package, message
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=message):
        engine(exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            overflow_scores,
            "weight .*dec_score_head.* contains values that are not finite",
        ),
        (give_nan, "scores that are not finite for image 1 .*val_00000.jpg"),
    ],
)
def test_an_exported_model_that_gives_nan_is_an_error_and_not_no_objects(
    load, exported, val_images, tmp_path, change, message
):
    path = spoil(exported, tmp_path, change)
    shutil.copy(exported.with_suffix(".json"), path.with_suffix(".json"))
    with pytest.raises(NumericsError, match=message):
        load(path).predict(val_images[:2])


@pytest.mark.parametrize("value", [float("nan"), 2.5, -1, "high", None, True])
def test_a_threshold_out_of_range_is_refused(exported, tmp_path, value):
    pytest.importorskip("onnxruntime")

    def change(proto):
        (entry,) = [
            entry for entry in proto.metadata_props if entry.key == "dfine"
        ]
        entry.value = json.dumps(
            {**json.loads(entry.value), "threshold": value}
        )

    message = r"damaged metadata|metadata\.threshold is .*, expected a number"
    with pytest.raises(CheckpointError, match=message):
        Detector.from_onnx(spoil(exported, tmp_path, change))


def test_devices_that_are_not_there_are_refused(exported):
    pytest.importorskip("onnxruntime")
    with pytest.raises(
        ConfigError,
        match="device 'cuda:77' was requested|device cuda:77 was requested",
    ):
        OnnxEngine(exported, "cuda:77")
    pytest.importorskip("openvino")
    with pytest.raises(ConfigError, match="device TPU was requested, OpenVINO"):
        OpenVinoEngine(exported, "tpu")


@pytest.mark.parametrize("torch_has_cuda", [True, False])
def test_onnx_runtime_uses_cuda_if_it_and_torch_have_it(
    monkeypatch, torch_has_cuda
):
    place = "src.inference.exported_engines.pick_device"
    monkeypatch.setattr(place, torch.device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_has_cuda)
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def cuda(number: int) -> list:
        return [("CUDAExecutionProvider", {"device_id": number}), both[1]]

    assert _execution_providers(None, both) == (
        cuda(0) if torch_has_cuda else both[1:]
    )
    assert _execution_providers(None, both[1:]) == both[1:]
    assert _execution_providers("cpu", both) == both[1:]
    assert _execution_providers("cuda:1", both) == cuda(1)
    with pytest.raises(
        ConfigError, match="device cuda:1 was requested, but this ONNX"
    ):
        _execution_providers("cuda:1", both[1:])


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="for machines without CUDA"
)
def test_tensorrt_needs_cuda(exported):
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        TensorRtEngine(exported)
    with pytest.raises(ConfigError, match="TensorRT runs only on CUDA devices"):
        TensorRtEngine(exported, "cpu")


def test_an_engine_of_another_tensorrt_is_refused(exported, monkeypatch):
    trt, place = (
        MagicMock(__version__="10.9.0"),
        "src.inference.exported_engines",
    )
    trt.Runtime().deserialize_cuda_engine.return_value = None
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(f"{place}.pick_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    message = "is not an engine that TensorRT 10.9.0 can use on a GPU"
    with pytest.raises(CheckpointError, match=message):
        TensorRtEngine(exported)


def test_versions_of_tensorrt_with_reported_wrong_results_are_logged(caplog):
    for version in ("10.3.0", "10.4.0.26", "8.5.1"):
        warn_of_wrong_fp16(version)
    assert caplog.text.count("users report wrong results of fp16 engines") == 3
    caplog.clear()
    warn_of_wrong_fp16("10.6.0")
    warn_of_wrong_fp16("10.13.3")
    assert not caplog.text


def documented_runner(page: str) -> str:
    """Return the runner of a page about deployment."""
    blocks = (ROOT / "docs" / page).read_text().split("```")
    (runner,) = [
        block.removeprefix("python")
        for block in blocks
        if "ort.InferenceSession" in block
    ]
    return runner


@pytest.fixture
def runner_folder(exported, tmp_path, monkeypatch):
    """A folder with what the documentation demands beside the runner."""
    pytest.importorskip("onnxruntime")
    shutil.copy(exported, tmp_path / "best.onnx")
    shutil.copy(ROOT / "src/data/dataset/picture.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("picture", None)


def test_the_runner_in_the_documentation_finds_what_the_detector_finds(
    runner_folder, val_images
):
    runner = documented_runner("deployment.md")
    assert len(runner.strip().splitlines()) <= 20
    Image.open(val_images[0]).resize((120, 90)).save("image.jpg")
    names: dict = {}
    exec(runner, names)
    expected = Detector.from_onnx("best.onnx").predict("image.jpg")
    assert [name for name, _, _ in names["found"]] == expected.names and len(
        expected
    ) > 0
    np.testing.assert_allclose(
        [box for _, _, box in names["found"]], expected.boxes, atol=1
    )


@pytest.mark.parametrize("page", ["deployment.md", *slow("deployment_cn.md")])
def test_the_runner_in_the_documentation_reads_pictures_as_the_detector_does(
    runner_folder, page
):
    runner = documented_runner(page)
    paths = write_modes(runner_folder)
    for name in REFUSED:
        del paths[name]
    paths |= write_orientations(runner_folder, 6)
    for name, path in paths.items():
        names: dict = {}
        exec(runner.replace("image.jpg", path.name), names)
        seen, _ = read_image(path)
        expected = seen.permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(names["image"]), expected), name


class Counting(ExportedEngine):
    """Gives the number of its run and each image's mean."""

    def __init__(self, batch_size=None, largest=None) -> None:
        self.batch_size, self.largest, self.batches = batch_size, largest, []

    def _compute(self, images, sizes):
        self.batches.append(len(images))
        means = images.flatten(1).mean(1, keepdim=True)
        return means.int(), means[..., None].expand(-1, 1, 4), means


@pytest.mark.parametrize(
    "settings, batches",
    [
        ({}, [5]),
        ({"largest": 3}, [3, 2]),
        ({"batch_size": 2}, [2, 2, 2]),
        ({"batch_size": 8}, [8]),
    ],
)
def test_batches_are_cut_and_filled_to_what_an_engine_takes(settings, batches):
    engine = Counting(**settings)
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
    labels, boxes, scores = engine(images, torch.ones(5, 2, dtype=torch.long))
    assert engine.batches == batches
    assert (
        labels.dtype == torch.int64
        and labels[:, 0].tolist() == scores[:, 0].tolist() == [0, 1, 2, 3, 4]
        and boxes.shape == (5, 1, 4)
    )
