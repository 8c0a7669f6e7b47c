"""Tools that export, run and measure, in the process of the test."""

import json
import shutil

import pytest
import torch

import src.inference.checked_export
from src.detection.weight_file import read_weights
from tests.fixtures.exported import shift_boxes, spoil
from tests.fixtures.run_here import run_here
from tests.fixtures.tiny import DEMO_CONFIG, ROOT, tiny_config
from tests.fixtures.trained_tiny import TRAINED

EXPORT = "tools/deployment/export_onnx.py"


def entries(folder) -> list[dict]:
    return json.loads((folder / "predictions.json").read_text())


def test_an_export_is_written_beside_its_checkpoint_and_checked(
    tmp_path, tiny_data
):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    checkpoint = shutil.copy(TRAINED, tmp_path / "best.pth")
    ended = run_here(
        EXPORT,
        "-r",
        checkpoint,
        "--batch",
        2,
        "--exporter",
        "torchscript",
        "--check",
        "--images",
        tiny_data.folder / "images",
        "--count",
        5,
    )
    assert ended.code == 0, ended.err
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.pth",
        "best.onnx",
        "best.json",
    }
    assert (
        "opset 17, batches of 2" in ended.out and "5 images agree" in ended.out
    )


def test_an_export_that_disagrees_is_put_aside_with_exit_code_8(
    tmp_path, exported, tiny_data, monkeypatch
):
    pytest.importorskip("onnxruntime")

    def export(detector, path, **settings):
        shutil.copy(spoil(exported, tmp_path, shift_boxes), path)
        shutil.copy(exported.with_suffix(".json"), path.with_suffix(".json"))
        return path

    monkeypatch.setattr(src.inference.checked_export, "export_onnx", export)
    ended = run_here(
        EXPORT,
        "-r",
        TRAINED,
        "--output",
        tmp_path / "a.onnx",
        "--check",
        "--images",
        tiny_data.folder / "images",
        "--count",
        3,
    )
    assert ended.code == 8
    assert (
        ended.err.startswith("error[8]: ")
        and "worst " in ended.err
        and ".jpg" in ended.err
        and ended.err.count("\n") == 1
    )
    assert (
        not (tmp_path / "a.onnx").exists()
        and not (tmp_path / "a.json").exists()
        and (tmp_path / "a.disagrees.onnx").exists()
    )


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["-r", "none.pth"], 4, "none.pth does not exist"),
        (
            ["-r", TRAINED, "--opset", "13"],
            2,
            "opset 13 was requested, expected at least 17",
        ),
        (
            ["-r", TRAINED, "--check", "--images", "nowhere"],
            3,
            "nowhere does not exist",
        ),
        (
            ["-r", TRAINED, "--input-size", "60", "64"],
            2,
            "not a multiple of 32",
        ),
    ],
)
def test_an_export_refuses_what_it_cannot_use(arguments, code, message):
    ended = run_here(EXPORT, *arguments)
    assert (ended.code, message in ended.err) == (code, True), ended.err


@pytest.mark.parametrize(
    "command, flag", [("onnx_inf", "--onnx"), ("openvino_inf", "-ov_model")]
)
def test_exported_models_write_what_the_checkpoint_writes(
    command, flag, exported, tiny_data, tmp_path
):
    pytest.importorskip("onnxruntime" if command == "onnx_inf" else "openvino")
    images = tiny_data.folder / "images"
    assert (
        run_here(
            "tools/inference/torch_inf.py",
            "-r",
            TRAINED,
            "-i",
            images,
            "--output",
            tmp_path / "a",
            "--frames",
            4,
            "--no-draw",
            "-d",
            "cpu",
        ).code
        == 0
    )
    ended = run_here(
        f"tools/inference/{command}.py",
        flag,
        exported,
        "-image" if command == "openvino_inf" else "-i",
        images,
        "--output",
        tmp_path / "b",
        "--frames",
        4,
    )
    assert ended.code == 0, ended.err
    expected, found = entries(tmp_path / "a"), entries(tmp_path / "b")
    assert [(e["file_name"], e["category_id"]) for e in found] == [
        (e["file_name"], e["category_id"]) for e in expected
    ]
    assert [e["score"] for e in found] == pytest.approx(
        [e["score"] for e in expected], abs=1e-4
    )
    assert len(list((tmp_path / "b").glob("*.jpg"))) == 4


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="for machines without CUDA"
)
def test_tensorrt_tools_say_that_there_is_no_gpu(exported, tmp_path):
    (tmp_path / "a.engine").touch()
    for command in (
        [
            "tools/inference/trt_inf.py",
            "-trt",
            exported,
            "-i",
            ROOT / "docs/images/demo.jpg",
        ],
        [
            "tools/benchmark/trt_benchmark.py",
            "--engine_dir",
            tmp_path,
            "--infer_dir",
            ROOT / "docs/images",
        ],
    ):
        ended = run_here(*command)
        assert ended.code == 2 and "finds no CUDA device here" in ended.err


def test_get_info_counts_every_parameter_once_and_the_operations_of_the_parts(
    tmp_path,
):
    ended = run_here(
        "tools/benchmark/get_info.py",
        "-r",
        TRAINED,
        "--json",
        tmp_path / "info.json",
    )
    assert ended.code == 0, ended.err
    info = json.loads((tmp_path / "info.json").read_text())
    model = tiny_config(num_classes=4).model
    for form, parameters in (
        ("train", model.parameters()),
        ("deploy", model.deploy().parameters()),
    ):
        counts = info["parameters"][form]
        assert (
            counts["all"]
            == sum(p.numel() for p in parameters)
            == counts["backbone"] + counts["encoder"] + counts["decoder"]
        )
    table = [line for line in ended.out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in table] == [
        "| part",
        "| ---",
        "| backbone",
        "| encoder",
        "| decoder",
        "| all",
    ]
    flops = info["flops"]
    assert (
        flops["all"]
        == flops["backbone"] + flops["encoder"] + flops["decoder"]
        > 0
    )
    tokens, width, depth = 16 + 5, 32, 2
    attention = (
        depth * 4 * tokens * tokens * width
    )  # two products of 2 * n * n * d
    assert (
        flops["backbone"] > depth * 2 * 12 * tokens * width * width + attention
    )
    assert 0.01 < info["forward_memory_mib"] < 10


def test_get_info_gives_the_published_numbers_of_n(tmp_path):
    ended = run_here(
        "tools/benchmark/get_info.py",
        "-c",
        ROOT / "configs/dfine/dfine_hgnetv2_n_coco.yml",
        "--json",
        tmp_path / "info.json",
    )
    assert ended.code == 0, ended.err
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["parameters"] == {
        "train": {
            "backbone": 1850396,
            "encoder": 703824,
            "decoder": 1228473,
            "all": 3782693,
        },
        "deploy": {
            "backbone": 1850396,
            "encoder": 698388,
            "decoder": 1205015,
            "all": 3753799,
        },
    }
    encoder, decoder = (
        2 * 400 * 400 * 128,
        3 * 2 * 300 * 300 * 128,
    )  # products of attention, which other counters leave out
    assert info["flops"]["all"] / 2e9 - (
        encoder + decoder
    ) / 1e9 == pytest.approx(3.551, rel=0.002)


def test_get_info_needs_a_configuration_or_a_checkpoint():
    ended = run_here("tools/benchmark/get_info.py")
    assert (
        ended.code == 2
        and "give a configuration (-c) or a checkpoint (-r)" in ended.err
    )


def test_benchmark_measures_the_plain_vit_and_every_engine(tmp_path):
    ended = run_here(
        "tools/benchmark/benchmark.py",
        "-c",
        DEMO_CONFIG,
        "--input-size",
        64,
        64,
        "--engines",
        "torch",
        "--repeats",
        3,
        "--warmup",
        1,
        "--batch",
        2,
        "--json",
        tmp_path / "times.json",
    )
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == ["bare ViT-S/16", "torch"]
    assert rows[0]["ratio"] == 1 and all(
        row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in rows
    )


def test_benchmark_compares_with_the_plain_vit_at_another_size(tmp_path):
    size = ("--input-size", 96, 96, "--yardstick-size", 32, 64)
    ended = run_here(
        "tools/benchmark/benchmark.py",
        *("-c", DEMO_CONFIG, "--engines", "torch", "--repeats", 1),
        *size,
        *("--json", tmp_path / "times.json"),
    )
    assert ended.code == 0, ended.err
    assert "input 96 x 96" in ended.out
    assert "bare ViT-S/16 at 32 x 64" in ended.out
    report = json.loads((tmp_path / "times.json").read_text())
    assert report["input_size"] == [96, 96]
    assert report["yardstick_size"] == [32, 64]


def test_benchmark_measures_variants_of_a_configuration_in_one_table(tmp_path):
    ended = run_here(
        "tools/benchmark/benchmark.py",
        "-c",
        DEMO_CONFIG,
        "--input-size",
        64,
        64,
        "--engines",
        "torch",
        "--repeats",
        2,
        "--warmup",
        1,
        "--variant",
        "DINOv3Backbone.windows=2",
        "DINOv3Backbone.window_blocks=[0]",
        "--json",
        tmp_path / "times.json",
    )
    assert ended.code == 0, ended.err
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert [row["engine"] for row in rows] == [
        "bare ViT-S/16",
        "torch",
        "torch, DINOv3Backbone.windows=2 DINOv3Backbone.window_blocks=[0]",
    ]
    assert rows[0]["least_cpu_ratio"] == 1
    lines = ended.out.splitlines()
    header = [line for line in lines if line.startswith("| engine | median ms")]
    assert len(header) == 1  # a table has a line for each row
    assert all(0 < row["least_cpu_ms"] <= row["cpu_ms"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("-r", TRAINED, "--variant", "DINOv3Backbone.windows=2"),
            "--variant changes settings of a configuration",
        ),
        (
            ("-c", DEMO_CONFIG, "--variant", "eval_spatial_size=[64, 96]"),
            "--variant eval_spatial_size=[64, 96] has the input size",
        ),
    ],
    ids=["checkpoint", "size"],
)
def test_benchmark_refuses_variants_that_cannot_be_compared(arguments, message):
    ended = run_here("tools/benchmark/benchmark.py", *arguments)
    assert ended.code == 2 and message in ended.err


def test_converted_weights_are_the_average_with_what_the_checkpoint_says_about_itself(
    tmp_path,
):
    trained = torch.load(TRAINED, weights_only=True)
    average = {
        key: value + 1
        if value.is_floating_point() and key not in ("decoder.anchors",)
        else value
        for key, value in trained["model"].items()
    }
    torch.save(
        {
            "model": trained["model"],
            "ema": {"module": average, "updates": 3},
            "optimizer": {},
            "meta": trained["meta"],
        },
        tmp_path / "last.pth",
    )
    ended = run_here("reference/convert_weight.py", tmp_path / "last.pth")
    assert ended.code == 0, ended.err
    content = torch.load(tmp_path / "last_converted.pth", weights_only=True)
    assert (
        set(content) == {"model", "meta", "written_by"}
        and content["meta"] == trained["meta"]
    )
    assert all(
        torch.equal(content["model"][key], average[key]) for key in average
    )
    assert (
        read_weights(tmp_path / "last_converted.pth").classes
        == trained["meta"]["classes"]
    )


def test_without_an_average_there_is_nothing_to_convert(tmp_path):
    shutil.copy(TRAINED, tmp_path / "best.pth")
    ended = run_here("reference/convert_weight.py", tmp_path / "best.pth")
    assert ended.code == 4 and "has no average of weights ('ema')" in ended.err
    assert list(tmp_path.iterdir()) == [tmp_path / "best.pth"]
