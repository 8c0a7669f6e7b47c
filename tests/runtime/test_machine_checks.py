"""Checks of a machine, with limits and files that are simulated."""

import resource
from types import SimpleNamespace

import pytest
import torch

from src.core.errors import ConfigError, DataError, ResourceError
from src.runtime import machine_checks
from src.runtime.checks import Skipped
from src.runtime.machine_checks import (
    check_gpus,
    check_open_files,
    check_processor,
    check_reading,
    check_shared_memory,
    check_software,
    driver_version,
)

CPU = torch.device("cpu")


def test_versions_are_named_and_an_old_python_is_refused(monkeypatch):
    found = check_software()
    assert f"torch {torch.__version__}" in found.text
    monkeypatch.setattr(machine_checks.sys, "version_info", (3, 9, 1))
    with pytest.raises(ConfigError, match="expected Python 3.10 or newer"):
        check_software()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19",
            "535.104.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build",
            "570.86.15",
        ),
        ("something else", None),
    ],
)
def test_the_version_of_the_driver_is_read(
    text, version, tmp_path, monkeypatch
):
    file = tmp_path / "version"
    file.write_text(text)
    monkeypatch.setattr(machine_checks, "DRIVER_FILE", file)
    assert driver_version() == version


def test_a_driver_without_a_gpu_is_a_warning_and_no_driver_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine_checks, "driver_version", lambda: "470.1")
    found = check_gpus(CPU)
    assert found.status == "warning" and "driver 470.1 is loaded" in found.text
    monkeypatch.setattr(machine_checks, "driver_version", lambda: None)
    with pytest.raises(Skipped, match="torch finds no GPU"):
        check_gpus(CPU)


def test_more_processes_than_cores_are_a_warning(monkeypatch):
    monkeypatch.setattr(machine_checks, "usable_cores", lambda: 8)
    assert check_processor(2, 3).status == "ok"
    found = check_processor(2, 4)
    assert found.status == "warning"
    assert (
        "2 ranks and 4 loader workers for each are 10 processes" in found.text
    )


def test_shared_memory_must_hold_the_waiting_batches(monkeypatch):
    usage = SimpleNamespace(total=64e6, used=0, free=64e6)
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: usage)
    found = check_shared_memory(0)
    assert found.status == "warning" and "--shm-size=8g" in found.text
    with pytest.raises(ResourceError, match="need 65 MB.*has 64 MB"):
        check_shared_memory(65e6)
    usage.total = usage.free = 8e9
    assert check_shared_memory(65e6).status == "ok"


def test_a_low_limit_of_open_files_is_a_warning_with_the_command(monkeypatch):
    monkeypatch.setattr(
        machine_checks.resource, "getrlimit", lambda _: (1024, 65536)
    )
    assert check_open_files(100).status == "ok"
    found = check_open_files(2000)
    assert found.status == "warning" and "ulimit -n 4096" in found.text
    monkeypatch.setattr(
        machine_checks.resource,
        "getrlimit",
        lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    )
    assert check_open_files(2000).status == "ok"


def test_images_are_read_from_folders_within_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_checks, "SLOW_FILES", 0)
    with pytest.raises(DataError, match="does not exist or is not a folder"):
        check_reading(tmp_path / "none")
    with pytest.raises(DataError, match="has no image files"):
        check_reading(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.JPG").write_bytes(b"1" * 1000)
    (tmp_path / "2.png").write_bytes(b"1" * 500)
    (tmp_path / "notes.txt").write_bytes(b"1" * 500)
    found = check_reading(tmp_path)
    assert found.status == "ok"
    assert found.numbers["files"] == 2 and found.numbers["bytes"] == 1500
    monkeypatch.setattr(machine_checks, "SLOW_FILES", float("inf"))
    assert "storage is slow" in check_reading(tmp_path).text
