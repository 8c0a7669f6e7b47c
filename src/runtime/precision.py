"""The number format that mixed precision computes in, by what a device can do."""

from __future__ import annotations

import torch


def autocast_dtype(device: torch.device) -> torch.dtype:
    """Return the type for `torch.autocast`: bf16, or fp16 on a CUDA device that has bf16 only by emulation.

    bf16 has the range of float32, so training in it needs no loss scaling; fp16 does.

    Args:
        device: from `runtime.distributed.pick_device`, which makes a CUDA device the current one.

    Returns:
        `torch.bfloat16` or `torch.float16`.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16
