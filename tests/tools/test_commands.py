"""Every command answers, and refuses what it cannot use in one line."""

import json
import subprocess
import sys

import pytest

from tests.fixtures.coco_files import write_coco
from tests.fixtures.commands import run_python
from tests.fixtures.run_here import run_here
from tests.fixtures.tiny import DEMO_CONFIG, ROOT
from tests.fixtures.trained_tiny import TRAINED

DEMO_IMAGE = ROOT / "docs/images/demo.jpg"

WITHOUT_INPUT = {
    "tools/benchmark/import_cost.py",
    "tools/dataset/make_synthetic.py",
}
"""Commands that read no file that a user names."""

HARNESSES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob("tests/harness/*.py")
    if not path.name.startswith("test_")
)
"""Commands for those who work on this project."""

COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        ROOT / "train.py",
        ROOT / "tools/doctor.py",
        ROOT / "tools/models.py",
        ROOT / "tools/reproduce.py",
        *ROOT.glob("tools/*/*.py"),
        *ROOT.glob("reference/*.py"),
    ]
)


@pytest.mark.parametrize("command", COMMANDS + HARNESSES)
def test_help_answers_without_importing_torch(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    result = run_python(command, "--help", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_make_synthetic_writes_a_coco_set_with_overlaps_and_empty_images(
    tmp_path,
):
    result = run_python(
        "tools/dataset/make_synthetic.py",
        "--output",
        tmp_path,
        "--train",
        "40",
        "--val",
        "3",
        "--size",
        "64",
    )
    assert result.returncode == 0, result.stderr
    labels = json.loads((tmp_path / "train.json").read_text())
    counts = [
        sum(a["image_id"] == image["id"] for a in labels["annotations"])
        for image in labels["images"]
    ]
    assert len(counts) == 40 and 0 in counts and max(counts) >= 3
    assert all(
        (tmp_path / "images" / image["file_name"]).exists()
        for image in labels["images"]
    )


def test_compare_names_a_checkpoint_that_is_not_there(tmp_path):
    result = run_python(
        "tools/visualization/compare.py",
        "-c",
        DEMO_CONFIG,
        "-r",
        tmp_path / "none.pth",
    )
    assert result.returncode == 4
    assert (
        result.stderr
        == f"error[4]: {tmp_path / 'none.pth'} does not exist (looked from {ROOT})\n"
    )


MISSING = "/nowhere/none"

NEEDS_INPUT = {
    "tools/deployment/export_onnx.py": ["-r", MISSING],
    "tools/inference/torch_inf.py": ["-r", TRAINED, "-i", MISSING],
    "tools/inference/onnx_inf.py": ["--onnx", MISSING, "-i", DEMO_IMAGE],
    "tools/inference/openvino_inf.py": [
        "-ov_model",
        MISSING,
        "-image",
        DEMO_IMAGE,
    ],
    "tools/inference/serve.py": [MISSING],
    "tools/inference/trt_inf.py": ["-trt", MISSING, "-i", DEMO_IMAGE],
    "tools/benchmark/trt_benchmark.py": ["--engine_dir", MISSING],
    "tools/benchmark/benchmark.py": ["-r", MISSING],
    "tools/benchmark/ablate.py": [MISSING],
    "tools/benchmark/everything.py": ["--data", MISSING],
    "tools/benchmark/get_info.py": ["-r", MISSING],
    "tools/visualization/compare.py": ["-c", DEMO_CONFIG, "-r", MISSING],
    "tools/visualization/report.py": ["-r", MISSING],
    "tools/visualization/fiftyone_vis.py": ["-r", MISSING],
    "tools/dataset/check.py": ["--annotations", MISSING, "--images", "docs"],
    "tools/dataset/convert.py": [MISSING, "--output", "/tmp"],
    "tools/dataset/remap_obj365.py": ["--base_dir", MISSING],
    "tools/dataset/resize_obj365.py": ["--base_dir", MISSING],
    "tools/doctor.py": ["-c", MISSING],
    "tools/models.py": ["check", MISSING],
    "tools/reproduce.py": ["dfine_n_coco", "-d", "cpu", "--data", MISSING],
    "reference/convert_weight.py": [MISSING],
    "train.py": ["-c", MISSING],
}

OPTIONAL = [
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxslim",
    "onnxsim",
    "openvino",
    "tensorrt",
    "transformers",
    "cv2",
    "fiftyone",
    "wandb",
    "starlette",
    "uvicorn",
    "python_multipart",
    "prometheus_client",
    "mlflow",
    "clearml",
]


def test_every_command_that_reads_something_is_tried_without_it():
    others = {
        command for command in COMMANDS if command.startswith("reference/")
    }
    assert set(COMMANDS) - others - WITHOUT_INPUT == set(NEEDS_INPUT) - {
        "reference/convert_weight.py"
    }


@pytest.mark.parametrize("command", NEEDS_INPUT)
def test_a_missing_input_is_named_before_a_package_that_is_not_installed(
    command, monkeypatch, tmp_path
):
    monkeypatch.chdir(ROOT)
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)
    output = ["--output", tmp_path] if "_inf.py" in command else []
    ended = run_here(command, *NEEDS_INPUT[command], *output)
    assert (
        ended.code in (2, 3, 4)
        and MISSING in ended.err
        and ended.err.count("\n") == 1
    ), ended
    assert "pip install" not in ended.err


def test_a_reader_that_stops_early_ends_a_command_quietly(tmp_path):
    labels = write_coco(
        tmp_path,
        {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8}
                for i in range(3000)
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 0, i]}
                for i in range(3000)
            ],
            "categories": [{"id": 1, "name": "a"}],
        },
        draw=False,
    )
    ended = subprocess.run(
        f"set -o pipefail; {sys.executable} tools/dataset/check.py --quick --annotations "
        f"{labels} --images {tmp_path} --show 3000 | head -1",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.count("\n") == 1
    assert (ended.stderr, ended.returncode) == (
        f"error[3]: 6,002 faults in {labels}\n",
        3,
    )  # the result still counts
