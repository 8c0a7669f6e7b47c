"""Rotary position codes (RoPE) that are computed once per image size.

timm computes them on the CPU in every forward pass; the copy to a GPU synchronizes host and device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MAX_SIZES = 64
"""Number of sizes whose codes are kept."""


class CachedRope(nn.Module):
    """Wrapper of timm's RoPE that keeps its codes for each size and device."""

    periods: Tensor | None
    """Periods that are part of the state dict, `[head width / 4]` float32, or None.

    DINOv3's files round them to bfloat16, so models that were trained with these need them.
    """

    def __init__(self, rope: Any, *, store_periods: bool = False) -> None:
        """Wrap a rotary embedding.

        Args:
            rope: timm's `RotaryEmbeddingDinoV3`.
            store_periods: make the periods a part of the state dict.
        """
        super().__init__()
        self.rope = rope
        self._codes: dict[tuple, Tensor] = {}
        self._prepare: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("periods", rope.periods if store_periods else None)

    def prepare_with(self, prepare: Callable[[Tensor], Tensor]) -> None:
        """Let `get_embed` return what a function makes of the codes, which is also kept for each size."""
        self._prepare = prepare
        self._codes.clear()

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Return the codes of a grid of patches, (height, width), as `[height * width, channels]`.

        After `prepare_with`, the shape is that of the function.
        """
        is_random = self.rope.training and self.rope.aug_active
        is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if is_random or is_traced:
            return self._computed(shape)
        periods = self.rope.periods
        key = (*shape, periods.device, periods.dtype)
        if key not in self._codes:
            if len(self._codes) >= MAX_SIZES:
                self._codes.clear()
            # made in an evaluation, they must still be usable in training
            with torch.inference_mode(False), torch.no_grad():
                self._codes[key] = self._computed(shape)
        return self._codes[key]

    def _computed(self, shape: tuple[int, int]) -> Tensor:
        """Return the codes of a grid, computed now."""
        codes = self.rope.get_embed(shape=shape)
        return codes if self._prepare is None else self._prepare(codes)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> CachedRope:
        """Move or convert the buffers; both modules then hold the same periods again."""
        super()._apply(fn, recurse)
        self._share_periods()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Load the periods, and forget the codes of earlier ones."""
        super()._load_from_state_dict(*arguments)
        self._share_periods()

    def _share_periods(self) -> None:
        """Let timm's module compute with the periods of the state dict."""
        self._codes.clear()
        if self.periods is not None:
            self.rope.periods = self.periods
