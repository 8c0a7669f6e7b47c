"""Choose the data type of mixed precision by the abilities of the device."""

from __future__ import annotations

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
