"""Failing devices (F34), simulated by the errors that torch and NCCL raise."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from src.runtime.device_faults import record_collectives
from src.runtime.distributed import join_group, rank, sum_over_ranks
from src.runtime.process import explain, run_command
from tests.fixtures.ports import free_port
from tests.fixtures.processes import run_forked

ECC = (
    "CUDA error: uncorrectable ECC error encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call"
)
IN_A_COLLECTIVE = (
    "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error: Cuda failure 'uncorrectable NVLink error detected during the execution'"
)
TIMEOUT = (
    "Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=71, OpType=ALLREDUCE) ran for 600025 milliseconds before timing out"
)


@pytest.fixture
def collective_fails(tmp_path, monkeypatch):
    """Return a function that fails `all_reduce` on one of two ranks, and returns how that rank ends."""
    monkeypatch.setattr("src.runtime.distributed._GRACE", 0.0)

    def run(words: str, recorded: bool = True):
        def command() -> None:
            os.environ.update(RANK="0", WORLD_SIZE="1")
            monkeypatch.setattr(
                "src.runtime.process.is_distributed", lambda: True
            )
            monkeypatch.setattr(
                "src.runtime.distributed.is_distributed", lambda: True
            )
            monkeypatch.setattr("src.runtime.distributed.world_size", lambda: 2)
            monkeypatch.setattr(dist, "get_rank", lambda *_: 0)

            def all_reduce(*_, **__):
                if recorded:
                    Path(
                        f"{os.environ['TORCH_FR_DUMP_TEMP_FILE']}0"
                    ).write_bytes(b"...")
                raise dist.DistBackendError(words)

            monkeypatch.setattr(dist, "all_reduce", all_reduce)
            record_collectives(tmp_path / "run", rank())
            sum_over_ranks(torch.zeros(1))

        return run_forked(
            lambda: run_command(command, status_dir=lambda: tmp_path), tmp_path
        )

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ECC,
            "a device failed: CUDA error: uncorrectable ECC error encountered; see nvidia-smi -q",
        ),
        (
            IN_A_COLLECTIVE,
            "a device failed: Last error: Cuda failure 'uncorrectable NVLink error detected",
        ),
        (TIMEOUT, "another rank ended or does not respond"),
    ],
    ids=["ECC", "NVLink", "timeout"],
)
def test_f34_fault_in_a_collective_is_exit_7_in_one_line_with_what_was_recorded(
    collective_fails, tmp_path, words, expected
):
    ended = collective_fails(words)
    assert ended.code == 7
    assert (
        ended.err.startswith(f"error[7]: {expected}")
        and ended.err.count("\n") == 1
    )
    assert (
        f"flight recorder (torchfrtrace reads it): {tmp_path}/run/flight_recorder.rank0"
        in ended.err
    )


def test_f34_without_a_recording_none_is_named(collective_fails):
    assert "flight recorder" not in collective_fails(ECC, recorded=False).err


def test_f34_device_of_a_single_process_is_a_resource_and_a_kernels_own_fault_is_not():
    assert explain(torch.AcceleratorError(ECC))[0] == 6
    assert (
        explain(
            torch.AcceleratorError("CUDA error: device-side assert triggered")
        )[0]
        == 1
    )


def test_f34_recording_leaves_what_a_user_has_set_and_removes_what_an_earlier_run_left(
    tmp_path, monkeypatch
):
    for name in (
        "TORCH_FR_BUFFER_SIZE",
        "TORCH_NCCL_DUMP_ON_TIMEOUT",
        "TORCH_FR_DUMP_TEMP_FILE",
    ):
        monkeypatch.setenv(name, "1")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "7")
    monkeypatch.setenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", f"{tmp_path}/mine")
    (tmp_path / "mine3").touch()
    record_collectives(tmp_path, 3)
    assert (
        "TORCH_FR_BUFFER_SIZE" not in os.environ
        and "TORCH_FR_DUMP_TEMP_FILE" not in os.environ
    )
    assert (
        os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
        and not (tmp_path / "mine3").exists()
    )


def test_f34_nothing_is_recorded_without_a_device(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "src.runtime.distributed.record_collectives",
        lambda *_: pytest.fail("NCCL is not there"),
    )
    monkeypatch.setattr(
        dist,
        "TCPStore",
        lambda *_, **__: (_ for _ in ()).throw(RuntimeError("far enough")),
    )
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Exception, match="far enough"):
        join_group(torch.device("cpu"), records=tmp_path)
