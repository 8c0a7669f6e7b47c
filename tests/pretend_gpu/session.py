"""Run code on pretended GPUs, and write what was recorded at the end of the process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from tests.pretend_gpu.device import PretendedGpu


@contextmanager
def recording(report: Path | None) -> Iterator[PretendedGpu]:
    """Compute the operations of the body on pretended GPUs.

    NCCL is replaced by gloo, which also accepts CUDA tensors. The report is written even if the body ends the
    process with `os._exit`, as ranks do.
    """
    gpu = PretendedGpu()
    process = os.getpid()
    leave = os._exit
    join = dist.init_process_group

    def write() -> None:
        if report is not None and os.getpid() == process:
            report.write_text(json.dumps(gpu.report(), indent=1))

    def write_and_leave(code: int) -> None:
        write()
        leave(code)

    def join_with_gloo(
        backend: str | None = None, *arguments, **settings
    ) -> None:
        if backend is not None:
            backend = backend.replace("nccl", "gloo")
        join(backend, *arguments, **settings)

    os._exit = write_and_leave
    dist.init_process_group = join_with_gloo
    try:
        with gpu:
            yield gpu
    finally:
        write()
        os._exit = leave
        dist.init_process_group = join
