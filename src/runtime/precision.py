"""Choose the precision of computations: the data type of mixed precision, and float32 without TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return the data type for `torch.autocast`: bf16, or fp16 on CUDA devices that only emulate bf16.

    bf16 has the range of float32, so training in it needs no loss scaling; fp16 does.

    Args:
        device: from `runtime.distributed.pick_device`, which makes a CUDA device the current one.

    Returns:
        `torch.bfloat16` or `torch.float16`.
    """
    if device.type != "cuda":
        return torch.bfloat16
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 convolutions without TF32, so that results are the same on every GPU.

    By default cuDNN rounds the inputs of convolutions to TF32 (10 bits of mantissa) on GPUs since Ampere.
    torch's default for matrix products is full float32 already; a user who has changed it keeps the change.
    The context manager also works as a decorator.
    """
    cudnn: Any = torch.backends.cudnn  # torch's type stubs lack these settings
    settings = (cudnn.conv, cudnn.rnn)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, precision in zip(settings, before):
            setting.fp32_precision = precision
