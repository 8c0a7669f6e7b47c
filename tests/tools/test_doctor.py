"""The first command on a new machine: it checks everything, and one failure does not stop the rest."""

import json
from types import SimpleNamespace

import pytest
import torch

from src.runtime import machine_checks
from src.solver import speed_checks
from tests.fixtures.commands import run_python, write_tiny_config
from tests.fixtures.run_here import run_here

DOCTOR = "tools/doctor.py"

LOCAL = [
    "device",
    "software",
    "GPUs",
    "processor",
    "shared memory",
    "open files",
    "data folder",
    "loader",
    "float32 steps",
    "bf16 steps",
    "fp16 steps",
    "memory",
]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine_checks, "driver_version", lambda: None)


@pytest.fixture
def config(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(speed_checks, "SPEED_SECONDS", 0.0)
    return write_tiny_config(tmp_path, tiny_data)


def read(path):
    report = json.loads(path.read_text())
    return report, {check["name"]: check for check in report["checks"]}


def test_a_machine_without_a_gpu_passes_and_the_run_is_estimated(
    config, tmp_path
):
    path = tmp_path / "doctor.json"
    ended = run_here(DOCTOR, "-c", config, "-d", "cpu", "--report", path)
    assert ended.code == 0, ended
    report, checks = read(path)
    assert report["finished"] and report["exit_code"] == 0
    assert list(checks) == [*LOCAL, "ranks", "speed", "this run"]
    assert checks["GPUs"]["status"] == "skipped"
    assert checks["loader"]["numbers"]["images"] == 24
    for name in ("loader", "float32 steps", "bf16 steps", "memory", "speed"):
        assert checks[name]["status"] == "ok", checks[name]
    assert checks["this run"]["text"].startswith(
        "this data (24 images), 2 epochs: about"
    )
    for name, check in checks.items():
        assert f"{check['status']:8}{name}" in ended.out
    assert "skipped GPUs           torch finds no GPU\n" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 110


def test_without_a_configuration_only_the_machine_is_checked(tmp_path):
    path = tmp_path / "doctor.json"
    ended = run_here(DOCTOR, "--quick", "--report", path)
    assert ended.code == 0, ended
    _, checks = read(path)
    skipped = {n for n, c in checks.items() if c["status"] == "skipped"}
    assert skipped >= {"data folder", "loader", "memory", "speed", "this run"}
    assert checks["float32 steps"]["text"] == "--quick"


def test_missing_data_does_not_stop_the_other_checks_and_ends_with_code_3(
    config, tmp_path
):
    path = tmp_path / "doctor.json"
    missing = tmp_path / "no_images"
    setting = f"train_dataloader.dataset.img_folder={missing}"
    ended = run_here(DOCTOR, "-c", config, "-u", setting, "--report", path)
    assert ended.code == 3
    assert ended.err.startswith("error[3]: 2 of 15 checks failed: data folder")
    report, checks = read(path)
    assert report["finished"] and report["exit_code"] == 3
    assert str(missing) in checks["data folder"]["text"]
    assert checks["data folder"]["code"] == 3
    assert checks["speed"]["status"] == "ok"
    assert checks["this run"]["text"].startswith("COCO (118,287 images)")


def test_a_full_shared_memory_outranks_missing_data(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        machine_checks.shutil,
        "disk_usage",
        lambda path: SimpleNamespace(total=64e6, used=64e6, free=0),
    )
    ended = run_here(
        DOCTOR,
        "-c",
        config,
        "-u",
        "train_dataloader.num_workers=1",
        "--images",
        tmp_path / "nowhere",
        "--quick",
    )
    assert ended.code == 6
    assert "shared memory is full (/dev/shm has 64 MB" in " ".join(
        ended.out.split()
    )
    assert "shared memory, data folder" in ended.err


def test_a_device_that_does_not_exist_ends_with_code_2_after_all_checks():
    ended = run_here(DOCTOR, "-d", "cuda:7", "--quick")
    assert ended.code == 2
    assert "failed  device         device 'cuda:7' was requested" in ended.out
    assert "this run" in ended.out


@pytest.mark.slow
def test_two_ranks_are_connected_and_only_rank_0_prints(tiny_data, tmp_path):
    config = write_tiny_config(tmp_path, tiny_data)
    path = tmp_path / "doctor.json"
    ended = run_python(
        DOCTOR, "-c", config, "-d", "cpu", "--report", path, ranks=2
    )
    assert ended.returncode == 0, ended
    assert ended.stdout.count("software") == 1
    _, checks = read(path)
    assert list(checks) == [*LOCAL, "start", "ranks", "speed", "this run"]
    assert len(checks["software"]["by_rank"]) == 2
    numbers = checks["ranks"]["numbers"]
    assert numbers["ranks"] == 2 and numbers["backend"] == "gloo"
    assert numbers["all_reduce_gb_per_second"] > 0
    assert list(numbers["pairs_gb_per_second"]) == ["0-1"]
    assert checks["speed"]["numbers"]["ranks"] == 2
    assert checks["loader"]["text"].endswith("batches of 2")
