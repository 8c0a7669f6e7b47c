"""From the single-scale maps of a plain ViT to a pyramid: the Spatial Tuning Adapter.

Every level is a 1x1 view of a learned mixture of all taps, brought to its stride, plus details from a small
convolutional branch that sees the image itself. The reasons stand in docs/decisions/0005.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ConfigError

PATCH = 16
"""Stride of the taps."""

STRIDES = (8, 16, 32)
"""Strides that the adapter supports."""

POSITION_GRID = 40
"""Rows and columns of the learned position code; 640 pixels have as many patches."""


class SpatialTuningAdapter(nn.Module):
    """Turns taps of a ViT at stride 16 into maps at strides 8, 16 and 32."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Sequence[int] = 256,
        strides: Sequence[int] = STRIDES,
        num_taps: int = 3,
        *,
        upsample_mode: Literal["bilinear", "nearest"] = "bilinear",
        detail_channels: int = 16,
        layer_norm: bool = False,
        position_encoding: bool = False,
    ) -> None:
        """Build the layers.

        Args:
            in_channels: width of the ViT, D.
            out_channels: channels of the maps: one number for all, or one for each stride.
            strides: which maps to give, ascending, out of 8, 16 and 32.
            num_taps: number of ViT blocks that are read.
            upsample_mode: how stride 8 is made from stride 16.
            detail_channels: width of the detail branch's first layer; 0 for no branch.
            layer_norm: a LayerNorm of its own for each tap.
            position_encoding: add a learned position code, resized to the map.
        """
        super().__init__()
        if (
            list(strides) != sorted(set(strides))
            or not set(strides) <= set(STRIDES)
            or not strides
        ):
            raise ConfigError(
                f"DINOv3Backbone.feat_strides is {list(strides)}, expected ascending strides out of "
                f"{list(STRIDES)}"
            )
        self.strides = tuple(strides)
        self.upsample_mode = upsample_mode
        self.out_channels = _one_for_each(out_channels, strides)
        self.tap_norms = (
            nn.ModuleList(nn.LayerNorm(in_channels) for _ in range(num_taps))
            if layer_norm
            else None
        )
        self.tap_mix = nn.Parameter(
            torch.zeros(len(strides), num_taps)
        )  # softmax over taps: all equal at first
        self.row_code = (
            _position_code(in_channels, POSITION_GRID, 1) if position_encoding else None
        )
        self.column_code = (
            _position_code(in_channels, 1, POSITION_GRID) if position_encoding else None
        )
        self.shrink = (
            nn.Conv2d(in_channels, in_channels, 3, 2, 1, groups=in_channels, bias=False)
            if 32 in strides
            else None
        )
        self.project = nn.ModuleList(
            nn.Conv2d(in_channels, channels, 1, bias=False)
            for channels in self.out_channels
        )
        self.detail = (
            DetailBranch(detail_channels, max(strides)) if detail_channels else None
        )
        self.add_detail = (
            _project_details(self.detail, strides, self.out_channels)
            if self.detail
            else None
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels) for channels in self.out_channels
        )
        self.act = nn.GELU()

    def forward(self, taps: list[Tensor], images: Tensor) -> list[Tensor]:
        """Build the pyramid.

        Args:
            taps: patch features of some blocks, earliest first, `[B, D, H/16, W/16]` each.
            images: normalised images, `[B, 3, H, W]`.

        Returns:
            `[B, C, H/s, W/s]` for each stride s, C being its number of `out_channels`.
        """
        if self.tap_norms is not None:
            taps = [
                norm(tap.movedim(1, -1)).movedim(-1, 1)
                for norm, tap in zip(self.tap_norms, taps, strict=True)
            ]
        stacked = torch.stack(taps)  # [taps, B, D, h, w]
        shares = self.tap_mix.softmax(-1).to(stacked.dtype)
        details = self.detail(images) if self.detail is not None else {}
        maps = []
        for index, stride in enumerate(self.strides):
            x = torch.einsum("t,tbdhw->bdhw", shares[index], stacked) + self._position(
                stacked.shape[-2:]
            )
            x = self._to_stride(x, stride, self.project[index])
            if self.add_detail is not None:
                x = x + self.add_detail[index](details[stride])
            maps.append(self.act(self.norms[index](x)))
        return maps

    def _position(self, shape: torch.Size) -> Tensor | float:
        if self.row_code is None or self.column_code is None:
            return 0.0
        rows = F.interpolate(self.row_code, (shape[0], 1), mode="bilinear")
        columns = F.interpolate(self.column_code, (1, shape[1]), mode="bilinear")
        return rows + columns

    def _to_stride(self, x: Tensor, stride: int, project: nn.Module) -> Tensor:
        """Project and resample; upsampling comes last, where the map is small and the result the same."""
        if self.shrink is not None and stride > PATCH:
            return project(self.shrink(x))
        x = project(x)
        if stride == PATCH:
            return x
        options = {"align_corners": False} if self.upsample_mode == "bilinear" else {}
        return F.interpolate(
            x, scale_factor=float(PATCH // stride), mode=self.upsample_mode, **options
        )


def _position_code(channels: int, rows: int, columns: int) -> nn.Parameter:
    """Return a random position code, `[1, channels, rows, columns]`."""
    code = nn.Parameter(torch.empty(1, channels, rows, columns))
    nn.init.trunc_normal_(code, std=0.02)
    return code


def _project_details(
    detail: DetailBranch,
    strides: Sequence[int],
    out_channels: Sequence[int],
) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Conv2d(detail.out_channels[stride], channels, 1, bias=False)
        for stride, channels in zip(strides, out_channels)
    )


def _one_for_each(
    out_channels: int | Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Return the channels of each map.

    Raises:
        ConfigError: if their number is not that of the strides, or one is below 1.
    """
    channels = (
        [out_channels] * len(strides)
        if isinstance(out_channels, int)
        else list(out_channels)
    )
    if len(channels) != len(strides) or min(channels) < 1:
        raise ConfigError(
            f"DINOv3Backbone.out_channels is {out_channels}, expected one number from 1, or one for each of "
            f"the "
            f"{len(strides)} strides {list(strides)}"
        )
    return channels


class DetailBranch(nn.Module):
    """Stride-2 convolutions on the image, for edges and small objects that patches of 16 pixels blur."""

    def __init__(self, width: int, deepest: int) -> None:
        super().__init__()
        widths = {2: width, 4: 2 * width, 8: 4 * width, 16: 4 * width, 32: 4 * width}
        self.out_channels = {stride: widths[stride] for stride in STRIDES}
        self.layers = nn.ModuleList()
        previous = 3
        for stride, channels in widths.items():
            if stride > deepest:
                break
            self.layers.append(
                nn.Sequential(
                    nn.Conv2d(previous, channels, 3, 2, 1, bias=False),
                    nn.BatchNorm2d(channels),
                    nn.GELU(),
                )
            )
            previous = channels

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Map images `[B, 3, H, W]` to a map by stride."""
        maps = {}
        stride = 1
        for layer in self.layers:
            images = layer(images)
            stride = stride * 2
            maps[stride] = images
        return maps
