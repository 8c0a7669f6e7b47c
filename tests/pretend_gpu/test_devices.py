"""Choice of the device, and errors of CUDA and NCCL."""

import pytest
import torch
import torch.distributed as dist

from src.runtime.distributed import sum_over_ranks
from src.runtime.process import explain, run_command
from tests.fixtures.processes import run_forked

WRONG_RANKS = (
    "NCCL error in: ProcessGroupNCCL.cpp:3690, invalid usage (run with NCCL_DEBUG=WARN for details)\n"
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
    "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"
)
SMALL_SHARED_MEMORY = (
    "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled system error (run with NCCL_DEBUG=INFO)\n"
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.\n"
    "Last error:\nError while creating shared memory segment /dev/shm/nccl-sT3x (size 9637888)"
)
WRONG_DRIVER = (
    "NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 35 'CUDA driver version is insufficient for CUDA runtime version'"
)


def fail_in_a_collective(words: str, folder, monkeypatch) -> str:
    """Return the last line of a rank whose first collective fails."""

    def all_reduce(*_, **__):
        raise dist.DistBackendError(words)

    def command() -> None:
        sum_over_ranks(torch.zeros(1))

    for module in ("process", "distributed"):
        name = f"src.runtime.{module}.is_distributed"
        monkeypatch.setattr(name, lambda: True)
    monkeypatch.setattr("src.runtime.distributed.world_size", lambda: 2)
    monkeypatch.setattr("src.runtime.distributed._GRACE", 0.0)
    monkeypatch.setattr(dist, "get_rank", lambda *_: 0)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    ended = run_forked(lambda: run_command(command), folder)
    assert ended.code == 7
    return ended.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (WRONG_RANKS, "Duplicate GPU detected"),
        (SMALL_SHARED_MEMORY, "/dev/shm/nccl-sT3x"),
        (WRONG_DRIVER, "CUDA driver version is insufficient"),
    ],
    ids=["invalid usage", "system error", "unhandled CUDA error"],
)
def test_the_words_of_nccl_reach_the_last_line(
    tmp_path, monkeypatch, words, expected
):
    line = fail_in_a_collective(words, tmp_path, monkeypatch)
    assert expected in line and "does not respond" not in line


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_errors_outside_the_allocator_are_a_lack_of_memory(words):
    code, message = explain(torch.AcceleratorError(words))
    assert code == 6 and "total_batch_size" in message


def test_a_gpu_that_torch_was_not_built_for_is_not_a_bug():
    words = (
        "CUDA error: no kernel image is available for execution on the device"
    )
    code, message = explain(torch.AcceleratorError(words))
    assert code != 1 and "this is a bug" not in message


def picked(gpu, name: str | None, devices: int, **environment: str) -> str:
    (result,) = gpu.call(
        "pick", name=name, devices=devices, environment=environment
    )
    assert result.code == 0, result.output
    return result.value


FOURTH = {
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "4",
    "RANK": "3",
    "WORLD_SIZE": "4",
}
"""Environment of the last of four ranks on a machine."""


@pytest.mark.slow
def test_each_rank_takes_the_gpu_of_its_number(gpu):
    assert picked(gpu, None, devices=4, **FOURTH) == "cuda:3"
    assert picked(gpu, "cuda", devices=4, **FOURTH) == "cuda:3"
    assert picked(gpu, "cuda:1", devices=2) == "cuda:1"


def test_a_numbered_gpu_is_refused_for_several_ranks(gpu):
    message = picked(gpu, "cuda:0", devices=4, **FOURTH)
    assert message.startswith("ConfigError") and "cuda:0" in message


def test_a_rank_with_a_gpu_of_its_own_takes_it(gpu):
    only = FOURTH | {"CUDA_VISIBLE_DEVICES": "3"}
    assert picked(gpu, None, devices=1, **only) == "cuda:0"


@pytest.mark.parametrize("name", ["mps", "meta"])
def test_devices_that_cannot_train_are_refused(gpu, name):
    assert picked(gpu, name, devices=1).startswith("ConfigError")
