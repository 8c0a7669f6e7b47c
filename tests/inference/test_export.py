"""A checkpoint is exported to an ONNX file with the same predictions and its own usage data."""

import json
import sys

import numpy as np
import pytest
import torch

from src.core import CheckpointError, ConfigError
from src.detection.class_names import named_classes
from src.inference import Detector, Preprocessing
from src.inference.agreement import check_agreement
from src.inference.engines import TorchEngine
from src.inference.export import export_onnx
from src.inference.metadata import METADATA_KEY, Metadata, metadata_for
from tests.fixtures.slow import slow
from tests.fixtures.tiny import tiny_config
from tests.fixtures.trained_tiny import TRAINED

onnx = pytest.importorskip(
    "onnx", reason="onnx is not installed (tools/requirements.txt)"
)


def ops_of(path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_interface_is_the_frozen_one(exported):
    graph = onnx.load(exported).graph
    shapes = {
        entry.name: [
            d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim
        ]
        for entry in (*graph.input, *graph.output)
    }
    assert shapes == {
        "images": ["N", 3, 64, 64],
        "orig_target_sizes": ["N", 2],
        "labels": ["N", 20],
        "boxes": ["N", 20, 4],
        "scores": ["N", 20],
    }
    kinds = [
        entry.type.tensor_type.elem_type
        for entry in (*graph.input, *graph.output)
    ]
    assert kinds == [
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
        onnx.TensorProto.INT64,
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT,
    ]


def test_layer_norm_is_one_operation_tables_are_constants_and_nothing_branches(
    exported, detector
):
    ops, calls, model = ops_of(exported), [], detector.engine.model
    hooks = [
        m.register_forward_hook(lambda *_: calls.append(1))
        for m in model.modules()
        if isinstance(m, torch.nn.LayerNorm)
    ]
    with torch.inference_mode():
        model(torch.rand(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    assert ops.count("LayerNormalization") == len(calls) > 10
    assert not {
        op
        for op in ops
        if op in ("If", "Loop", "Scan", "Sin", "Cos", "Range")
        or op.startswith("Sequence")
    }


def test_the_file_says_nothing_about_the_machine_that_wrote_it(exported):
    assert b".py" not in exported.read_bytes()


def test_each_exporter_writes_its_lowest_opset(exported, exported_fixed):
    assert [
        onnx.load(path).opset_import[0].version
        for path in (exported, exported_fixed)
    ] == [18, 17]
    assert "LayerNormalization" in ops_of(exported_fixed)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"opset": 16}, "opset 16 was requested, expected at least 17"),
        (
            {"opset": 17},
            "dynamo exporter writes 18 and above; for 17 use --exporter torchscript --batch N",
        ),
        (
            {"exporter": "torchscript"},
            "give --batch N, or use --exporter dynamo",
        ),
        (
            {"exporter": "other"},
            "exporter is 'other', expected one of dynamo, torchscript",
        ),
        ({"batch_size": 0}, "the batch is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    detector, tmp_path, settings, message
):
    with pytest.raises(ConfigError, match=message):
        export_onnx(detector, tmp_path / "a.onnx", **settings)
    assert not list(tmp_path.iterdir())


def test_other_names_and_engines_are_refused(detector, tmp_path):
    with pytest.raises(ConfigError, match="ends with .onnx"):
        export_onnx(detector, tmp_path / "a.engine")
    with pytest.raises(ConfigError, match="only a detector from a checkpoint"):
        export_onnx(
            Detector.from_parts(
                lambda images, sizes: None,
                detector.preprocessing,
                detector.classes,
            ),
            tmp_path / "a.onnx",
        )


def test_labels_that_have_the_name_of_the_metadata_are_not_replaced(
    detector, tmp_path
):
    (tmp_path / "val.json").write_text('{"images": []}')
    with pytest.raises(
        ConfigError,
        match="val.json would be replaced, but this project did not write it",
    ):
        export_onnx(detector, tmp_path / "val.onnx")
    assert (tmp_path / "val.json").read_text() == '{"images": []}' and not (
        tmp_path / "val.onnx"
    ).exists()


def test_without_a_simplifier_one_line_says_what_to_install(
    detector, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(
        ConfigError, match="--simplify needs onnxslim or onnxsim"
    ):
        export_onnx(detector, tmp_path / "a.onnx", simplify=True)


def test_metadata_is_in_the_onnx_file_and_in_the_json_file(exported, detector):
    text = next(
        entry.value
        for entry in onnx.load(exported).metadata_props
        if entry.key == METADATA_KEY
    )
    assert text == exported.with_suffix(".json").read_text()
    metadata = Metadata.from_json(text, exported)
    assert (
        metadata.preprocessing == detector.preprocessing.ops
        and metadata.classes == detector.classes
    )
    assert (
        metadata.threshold == detector.threshold
        and metadata.input_size == [64, 64]
        and metadata.batch_size is None
    )
    assert (
        metadata.checkpoint == TRAINED.name
        and metadata.commit == detector.meta["commit"]
    )


def test_metadata_that_is_missing_damaged_or_too_new_is_refused(
    exported, tmp_path
):
    content = json.loads(exported.with_suffix(".json").read_text())
    with pytest.raises(
        CheckpointError, match="a.json does not exist beside it"
    ):
        metadata_for(tmp_path / "a.engine", None)
    for text, message in (
        ("{", "damaged metadata"),
        ("[]", "metadata is a list of 0, expected a mapping"),
        ('{"format": 1}', "metadata has no preprocessing"),
        (
            json.dumps(content | {"format": 3}),
            "format 3, this version reads up to 2",
        ),
        (
            json.dumps(content | {"classes": [{"id": 1}]}),
            r"metadata\.classes\[0\] has no name",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            metadata_for(tmp_path / "a.engine", text)
    assert metadata_for(
        exported, json.dumps(content | {"later": 1})
    ).input_size == [
        64,
        64,
    ]


@pytest.mark.slow
def test_bit_depth_is_carried_by_metadata_that_older_readers_refuse(
    detector, exported, tmp_path
):
    plain = Metadata.from_json(exported.with_suffix(".json").read_text(), "a")
    assert (plain.bit_depth, plain.format) == (None, 1)
    deep = Detector.from_parts(
        detector.engine,
        detector.preprocessing,
        detector.classes,
        bit_depth=12,
    )
    written = export_onnx(deep, tmp_path / "deep.onnx")
    metadata = Metadata.from_json(
        written.with_suffix(".json").read_text(), written
    )
    assert (metadata.bit_depth, metadata.format) == (12, 2)
    assert Detector.from_onnx(written).bit_depth == 12
    with pytest.raises(CheckpointError, match="bit_depth"):
        Metadata.from_json(
            metadata.to_json().replace('"bit_depth": 12', '"bit_depth": 3'), "a"
        )


def test_an_hgnetv2_detector_is_exported_too(tmp_path):
    cfg = tiny_config(
        num_classes=3,
        DFINE={"backbone": "HGNetv2"},
        HGNetv2={
            "name": "B0",
            "return_idx": [2, 3],
            "pretrained": False,
            "freeze_at": -1,
        },
        HybridEncoder={
            "in_channels": [512, 1024],
            "feat_strides": [16, 32],
            "use_encoder_idx": [1],
        },
        DFINETransformer={
            "feat_channels": [32, 32],
            "feat_strides": [16, 32],
            "num_levels": 2,
            "num_points": [2, 2],
            "num_layers": 1,
            "eval_idx": 0,
        },
    )
    model = cfg.model
    detector = Detector.from_parts(
        TorchEngine(
            model.deploy(), cfg.postprocessor.deploy(), torch.device("cpu")
        ),
        Preprocessing.from_config(cfg),
        named_classes(None, 3),
    )
    path = export_onnx(
        detector, tmp_path / "hgnet.onnx", batch_size=2, exporter="torchscript"
    )  # the quick one
    onnx.checker.check_model(onnx.load(path), full_check=True)
    pytest.importorskip("onnxruntime")
    images = [
        np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
        for seed in range(8)
    ]
    check_agreement(
        detector,
        Detector.from_onnx(path),
        images,
        [f"noise {seed}" for seed in range(8)],
    )


@pytest.mark.parametrize("exporter", ["torchscript", *slow("dynamo")])
def test_a_detector_with_windows_is_exported_too(exporter, tmp_path):
    cfg = tiny_config(
        num_classes=3, DINOv3Backbone={"windows": 2, "window_blocks": [0]}
    )
    torch.manual_seed(0)
    model = cfg.model
    for parameter in model.parameters():  # zeros would hide differences
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    detector = Detector.from_parts(
        TorchEngine(
            model.deploy(), cfg.postprocessor.deploy(), torch.device("cpu")
        ),
        Preprocessing.from_config(cfg),
        named_classes(None, 3),
    )
    batch_size = 2 if exporter == "torchscript" else None
    path = export_onnx(
        detector,
        tmp_path / "windows.onnx",
        batch_size=batch_size,
        exporter=exporter,
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(8)]
    names = [f"noise {number}" for number in range(8)]
    check_agreement(detector, Detector.from_onnx(path), images, names)


@pytest.mark.slow
def test_gather_in_place_of_grid_sample_gives_the_same_predictions(
    detector, val_images, tmp_path
):
    pytest.importorskip(
        "onnxruntime",
        reason="onnxruntime is not installed (tools/requirements.txt)",
    )
    path = export_onnx(detector, tmp_path / "gather.onnx", sampling="gather")
    assert "GridSample" not in ops_of(path)
    names = [str(image) for image in val_images[:3]]
    check_agreement(
        detector, Detector.from_onnx(path, device="cpu"), names, names
    )


def test_an_unknown_sampling_is_refused(detector, tmp_path):
    with pytest.raises(ConfigError, match="sampling is 'nearest', expected"):
        export_onnx(detector, tmp_path / "a.onnx", sampling="nearest")


def test_nodes_are_named_by_their_modules(exported):
    names = [node.name for node in onnx.load(exported).graph.node]
    assert len(set(names)) == len(names)
    assert any(
        name.startswith("Conv_") and "/model.encoder." in name for name in names
    )
