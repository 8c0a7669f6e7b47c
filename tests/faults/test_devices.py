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


NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {kind} (run with NCCL_DEBUG=WARN "
    "for details), NCCL version 2.27.5\n{name}: {explanation}\nLast error:\n{last}"
)
DUPLICATE = NCCL.format(
    kind="invalid usage",
    name="ncclInvalidUsage",
    explanation="This usually reflects invalid usage of NCCL library.",
    last="Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
)
SHARED_MEMORY = NCCL.format(
    kind="unhandled system error",
    name="ncclSystemError",
    explanation="System call (e.g. socket, malloc) or external library call failed or device error.",
    last="Error while creating shared memory segment /dev/shm/nccl-9W1r3p (size 33030528)",
)
NO_MEMORY = NCCL.format(
    kind="unhandled cuda error",
    name="ncclUnhandledCudaError",
    explanation="Call to CUDA function failed.",
    last="Cuda failure 2 'out of memory'",
)
SYSTEM = NCCL.format(
    kind="unhandled system error",
    name="ncclSystemError",
    explanation="System call failed.",
    last="socketStartConnect: Connect to 10.0.0.7<43219> failed : Software caused connection abort",
)


@pytest.mark.parametrize(
    ("words", "code", "reason", "advice"),
    [
        (
            DUPLICATE,
            7,
            "Duplicate GPU detected : rank 1 and rank 0",
            "at most one process per GPU",
        ),
        (
            SHARED_MEMORY,
            7,
            "shared memory segment /dev/shm/nccl-9W1r3p",
            "--shm-size=8g",
        ),
        (NO_MEMORY, 6, "NCCL error in", "reduce total_batch_size"),
        (
            SYSTEM,
            7,
            "socketStartConnect: Connect to 10.0.0.7",
            "NCCL_DEBUG=WARN",
        ),
    ],
    ids=["duplicate GPU", "shared memory", "memory of NCCL", "network"],
)
def test_f34_the_reason_of_a_collective_that_fails_everywhere_is_in_the_last_line(
    collective_fails, words, code, reason, advice
):
    ended = collective_fails(words)
    assert ended.code == code and ended.err.count("\n") == 1
    assert reason in ended.err and advice in ended.err
    assert "another rank" not in ended.err


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
    ids=["context or pinned memory", "cuBLAS", "cuDNN"],
)
def test_memory_that_is_not_of_torchs_allocator_is_a_resource_with_advice(
    words,
):
    code, message = explain(RuntimeError(words))
    assert code == 6
    assert (
        message.startswith("out of memory: ") and "total_batch_size" in message
    )


def test_a_gpu_without_kernels_in_this_torch_is_explained():
    words = (
        "CUDA error: no kernel image is available for execution on the device"
    )
    code, message = explain(torch.AcceleratorError(words))
    assert code == 6
    assert "has no kernels for this GPU" in message and "-d cpu" in message


def test_an_illegal_memory_access_is_explained():
    words = "CUDA error: an illegal memory access was encountered"
    code, message = explain(torch.AcceleratorError(words))
    assert code == 1 and "CUDA_LAUNCH_BLOCKING=1" in message


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
