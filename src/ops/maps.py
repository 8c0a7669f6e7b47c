"""Conversion of feature maps to tokens."""

from __future__ import annotations

from torch import Tensor


def flatten_map(x: Tensor) -> Tensor:
    """Return a map `[B, D, h, w]` as `[B, D, h*w]`.

    The gradient of tokens `[B, h*w, D]` made from it has D as its innermost dimension. For B = 1, batch norm
    of torch 2.14 on the CPU confuses the two layouts and returns a wrong gradient, so a hook makes the
    gradient contiguous.

    Example:
        >>> import torch
        >>> flatten_map(torch.zeros(2, 8, 4, 5)).shape
        torch.Size([2, 8, 20])
    """
    if x.requires_grad and len(x) == 1:
        x.register_hook(Tensor.contiguous)
    return x.flatten(2)
