"""Windowed attention in a DINOv3 ViT: most blocks attend within windows of the patch grid.

The windows follow ViTDet (Li et al., 2022) and LW-DETR (Chen et al., 2024). Attention is called window by
window as items of a batch, so the blocks, their weights and the state dict are those of the global ViT.
docs/decisions/0022 explains the design.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import Eva


@dataclass(frozen=True)
class WindowGrid:
    """A partition of a grid of patches into windows of one size, in row-major order."""

    height: int
    """Rows of patches in the image."""
    width: int
    """Columns of patches in the image."""
    rows: int
    """Rows of windows, which divide `height`."""
    columns: int
    """Columns of windows, which divide `width`."""

    @classmethod
    def fitting(cls, height: int, width: int, windows: int) -> WindowGrid:
        """Return the partition of a grid into at most `windows` x `windows` windows.

        The number of windows in a direction is the greatest common divisor of `windows` and the number of
        patches in this direction, so every grid can be divided.
        """
        return cls(
            height, width, math.gcd(windows, height), math.gcd(windows, width)
        )

    @property
    def num_windows(self) -> int:
        """Windows per image."""
        return self.rows * self.columns

    @property
    def window_size(self) -> tuple[int, int]:
        """Rows and columns of patches in a window."""
        return self.height // self.rows, self.width // self.columns

    def order(self, patches: Tensor) -> Tensor:
        """Put row-major patches `[B, H * W, D]` into the order of the windows, row-major within each."""
        rows, columns = self.window_size
        x = patches.unflatten(1, (self.rows, rows, self.columns, columns))
        return x.transpose(2, 3).flatten(1, 4)

    def to_map(self, patches: Tensor) -> Tensor:
        """Return a map `[B, D, H, W]` of patches `[B, H * W, D]` in the order of the windows."""
        rows, columns = self.window_size
        x = patches.unflatten(1, (self.rows, self.columns, rows, columns))
        x = x.permute(0, 5, 1, 3, 2, 4)  # [B, D, rows, h, columns, w]
        return x.flatten(4, 5).flatten(2, 3)


def windowed_taps(
    vit: Eva,
    images: Tensor,
    taps: Sequence[int],
    *,
    windows: int,
    window_blocks: Collection[int],
    norm: bool,
) -> list[Tensor]:
    """Run a ViT with windows in some blocks, and return the patch features of the tapped blocks.

    The patches are put into the order of the windows once and stay in it, because the order does not matter
    to a global block. Each window gets a copy of the class and register tokens; a global block takes the mean
    of the copies. Each patch keeps the rotary code of its place in the image.

    Args:
        vit: timm's ViT with rotary position codes.
        images: normalized images, `[B, 3, H, W]`.
        taps: ascending indices of the blocks to read.
        windows: windows per side, reduced as in `WindowGrid.fitting`.
        window_blocks: indices of the blocks that attend within windows.
        norm: apply the final norm of the ViT to the features.

    Returns:
        A map `[B, D, H/16, W/16]` for each tap.
    """
    rows, columns = images.shape[-2:]
    height, width = vit.patch_embed.dynamic_feat_size((rows, columns))
    grid = WindowGrid.fitting(int(height), int(width), windows)
    num_prefix = vit.num_prefix_tokens
    tokens, codes = vit._pos_embed(vit.patch_embed(images))
    assert codes is not None, "a DINOv3 ViT has rotary position codes"
    tokens = vit.norm_pre(tokens)
    layout = _Layout(num_prefix, grid.num_windows)
    ordered = grid.order(tokens[:, num_prefix:])
    tokens = torch.cat((tokens[:, :num_prefix], ordered), 1)
    batch_size = images.shape[0]
    if codes.dim() == 3:
        window_codes, global_codes = _prepared_codes_of(codes, grid, layout)
    else:
        window_codes, global_codes = _codes_of(codes, grid, batch_size)
    in_windows = False
    maps = []
    for index, block in enumerate(vit.blocks[: taps[-1] + 1]):
        windowed = index in window_blocks
        if windowed and not in_windows:
            tokens = layout.to_windows(tokens)
        elif in_windows and not windowed:
            tokens = layout.to_images(tokens)
        in_windows = windowed
        codes = window_codes if windowed else global_codes
        if vit.grad_checkpointing:
            tokens = checkpoint(block, tokens, rope=codes, use_reentrant=False)
        else:
            tokens = block(tokens, rope=codes)
        if index in taps:
            patches = tokens[:, num_prefix:]
            if norm:
                patches = vit.norm(patches)
            maps.append(
                grid.to_map(
                    patches.unflatten(0, (batch_size, -1)).flatten(1, 2)
                )
            )
    return maps


@dataclass(frozen=True)
class _Layout:
    """The two layouts of the tokens: one sequence per image, `[B, P + W * n, D]`, or one per window.

    The latter is `[B * W, P + n, D]`, for W windows of n patches and P class and register tokens.
    """

    num_prefix: int
    num_windows: int

    def to_windows(self, tokens: Tensor) -> Tensor:
        """Split sequences of images into those of windows; each gets a copy of the prefix."""
        prefix = tokens[:, : self.num_prefix]
        patches = tokens[:, self.num_prefix :]
        per_window = patches.shape[1] // self.num_windows
        copies = prefix[:, None].expand(-1, self.num_windows, -1, -1)
        split = patches.unflatten(1, (self.num_windows, per_window))
        return torch.cat((copies, split), 2).flatten(0, 1)

    def to_images(self, windows: Tensor) -> Tensor:
        """Join sequences of windows; the prefix becomes the mean of its copies."""
        split = windows.unflatten(0, (-1, self.num_windows))
        prefix = split[:, :, : self.num_prefix].mean(1)
        patches = split[:, :, self.num_prefix :].flatten(1, 2)
        return torch.cat((prefix, patches), 1)


def _codes_of(
    codes: Tensor, grid: WindowGrid, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return rotary codes of windows, `[B * W, 1, n, C]`, and of images in their order, `[W * n, C]`.

    Args:
        codes: codes of the patches in row-major order, `[H * W, C]`.
        grid: partition of the patches.
        batch_size: number of images, B.
    """
    ordered = grid.order(codes[None])[0]  # [W * n, C]
    split = ordered.unflatten(0, (grid.num_windows, 1, -1))  # [W, 1, n, C]
    return split.repeat(batch_size, 1, 1, 1), ordered


def _prepared_codes_of(
    codes: Tensor, grid: WindowGrid, layout: _Layout
) -> tuple[Tensor, Tensor]:
    """Return the codes of windows, `[3, W, 1, P + n, d]`, and of images in their order, `[3, P + W * n, d]`.

    Args:
        codes: what `prepared_codes` returns, with patches in row-major order, `[3, P + H * W, d]`.
        grid: partition of the patches.
        layout: number of tokens before the patches, and of windows.
    """
    prefix = codes[:, : layout.num_prefix]
    ordered = grid.order(codes[:, layout.num_prefix :])
    of_image = torch.cat((prefix, ordered), 1)
    of_windows = layout.to_windows(of_image).unflatten(0, (len(codes), -1))
    return of_windows[:, :, None], of_image
