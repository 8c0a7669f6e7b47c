"""Maps as rows of tokens."""

from __future__ import annotations

from torch import Tensor


def flatten_map(x: Tensor) -> Tensor:
    """Return a map `[B, D, h, w]` as `[B, D, h*w]`.

    Tokens `[B, h*w, D]` that are made of it give a gradient with D innermost. For B = 1 torch 2.14's batch
    norm on a CPU mixes the two layouts up and hands on a wrong gradient, so it is given its own.
    """
    if x.requires_grad and len(x) == 1:
        x.register_hook(Tensor.contiguous)
    return x.flatten(2)
