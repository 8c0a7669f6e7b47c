"""The condition for the forms of operations that only serve inference on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def is_cpu_inference(x: Tensor) -> bool:
    """Return whether `x` is in float32 on a CPU, gradients are off, and operations run at once.

    It is False under autocast, and while a model is traced or compiled: exported models need the form of the
    specification, and no tensor that is changed in place.

    Example:
        >>> with torch.no_grad():
        ...     is_cpu_inference(torch.ones(4))
        True
        >>> is_cpu_inference(torch.ones(4))
        False
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )
