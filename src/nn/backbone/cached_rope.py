"""Rotary position codes (RoPE) that are computed once per image size.

timm computes them on the CPU in every forward pass; the copy to a GPU synchronizes host and device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MAX_SIZES = 64
"""Number of sizes whose codes are kept."""


class CachedRope(nn.Module):
    """Wrapper of timm's RoPE that keeps its codes for each size and device."""

    def __init__(self, rope: Any) -> None:
        """Wrap `rope`, a `RotaryEmbeddingDinoV3`."""
        super().__init__()
        self.rope = rope
        self._codes: dict[tuple, Tensor] = {}

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Return the codes of a grid of patches, (height, width), as `[height * width, channels]`."""
        is_random = self.rope.training and self.rope.aug_active
        is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if is_random or is_traced:
            return self.rope.get_embed(shape=shape)
        periods = self.rope.periods
        key = (*shape, periods.device, periods.dtype)
        if key not in self._codes:
            if len(self._codes) >= MAX_SIZES:
                self._codes.clear()
            # made in an evaluation, they must still be usable in training
            with torch.inference_mode(False), torch.no_grad():
                self._codes[key] = self.rope.get_embed(shape=shape)
        return self._codes[key]
