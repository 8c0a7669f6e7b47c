"""Choose the precision of computations: the data type of mixed precision, and float32 without TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
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


class _ConvolutionPrecision:
    """The precision of cuDNN's float32 operations, which all threads of a process share."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._before: list[str] = []

    def require_full(self) -> None:
        """Switch TF32 off for the first of the users that need full float32 at the same time."""
        with self._lock:
            if self._users == 0:
                settings = self._settings()
                self._before = [setting.fp32_precision for setting in settings]
                for setting in settings:
                    setting.fp32_precision = "ieee"
            self._users += 1

    def release(self) -> None:
        """Restore the precision when the last user has finished."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for setting, before in zip(self._settings(), self._before):
                    setting.fp32_precision = before

    def _settings(self) -> list[Any]:
        cudnn: Any = torch.backends.cudnn  # torch's type stubs lack these
        return [cudnn.conv, cudnn.rnn]


_PRECISION = _ConvolutionPrecision()


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 convolutions without TF32, so that results are the same on every GPU.

    By default cuDNN rounds the inputs of convolutions to TF32 (10 bits of mantissa) on GPUs since Ampere.
    torch's default for matrix products is full float32 already; a user who has changed it keeps the change.
    Several threads may use it at the same time. The context manager also works as a decorator.
    """
    _PRECISION.require_full()
    try:
        yield
    finally:
        _PRECISION.release()
