"""The Spatial Tuning Adapter, which makes a pyramid from the maps of a plain ViT, all of one size.

Every level is the 1x1 projection of a learned mixture of all taps, resampled to its stride. Details from a
small convolutional branch on the image are added. docs/decisions/0005 explains the design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...ops.batch_norm import BatchNorm2d, merge_norms
from .detail_branch import DetailBranch, detail_projections, strides_of_details

PATCH = 16
"""Stride of the taps."""

STRIDES = (8, 16, 32)
"""Strides that the adapter supports."""

POSITION_GRID = 40
"""Rows and columns of the learned position code: the number of patches in 640 pixels."""

OWN_SHARE = 0.85
"""Share of each level's own tap in its mixture before training, with `start: smooth`."""

DETAIL_SCALE = 0.5
"""Factor on the random weights of `add_detail` before training, with `start: smooth`."""


class SpatialTuningAdapter(nn.Module):
    """Maps taps of a ViT at stride 16 to maps at strides 8, 16 and 32."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Sequence[int] = 256,
        strides: Sequence[int] = STRIDES,
        num_taps: int = 3,
        *,
        upsample_mode: Literal["bilinear", "nearest"] = "bilinear",
        detail_channels: int = 16,
        detail_strides: Sequence[int] | None = None,
        layer_norm: bool = False,
        position_encoding: bool = False,
        start: Literal["smooth", "random"] = "smooth",
    ) -> None:
        """Build the layers.

        Args:
            in_channels: width of the ViT, D.
            out_channels: channels of the maps, one number for all or one for each stride.
            strides: strides of the maps, ascending, any of 8, 16 and 32.
            num_taps: number of ViT blocks that are read.
            upsample_mode: interpolation from stride 16 to stride 8.
            detail_channels: width of the first layer of the detail branch; 0 builds no branch.
            detail_strides: strides of the maps that get details; None means all of them.
            layer_norm: apply a new LayerNorm to each tap.
            position_encoding: add a learned position code, resized to the map.
            start: values before training. "smooth" gives each level mainly its own tap (`OWN_SHARE`), makes
                the map of stride 32 from means of 2 x 2 cells, and reduces the details (`DETAIL_SCALE`);
                "random" gives all taps equal shares and all convolutions random weights.

        Raises:
            ConfigError: if `strides`, `out_channels` or `detail_strides` is invalid.
        """
        super().__init__()
        self.strides = tuple(strides)
        self.upsample_mode = upsample_mode
        self.out_channels = channels_of_maps(out_channels, strides)
        self.tap_norms: nn.ModuleList | None = None
        if layer_norm:
            norms = [nn.LayerNorm(in_channels) for _ in range(num_taps)]
            self.tap_norms = nn.ModuleList(norms)
        # Logits of the mixture of taps for each stride.
        self.tap_mix = nn.Parameter(torch.zeros(len(strides), num_taps))
        self.row_code: nn.Parameter | None = None
        self.column_code: nn.Parameter | None = None
        if position_encoding:
            self.row_code = _position_code(in_channels, POSITION_GRID, 1)
            self.column_code = _position_code(in_channels, 1, POSITION_GRID)
        self.shrink: nn.Conv2d | None = None
        if 32 in strides:
            self.shrink = nn.Conv2d(
                in_channels,
                in_channels,
                3,
                2,
                1,
                groups=in_channels,
                bias=False,
            )
        self.project = nn.ModuleList(
            nn.Conv2d(in_channels, channels, 1, bias=False)
            for channels in self.out_channels
        )
        self.detail: DetailBranch | None = None
        self.add_detail: nn.ModuleList | None = None
        self.detail_strides = strides_of_details(
            detail_strides, strides, detail_channels
        )
        if self.detail_strides:
            self.detail = DetailBranch(detail_channels, self.detail_strides[-1])
            self.add_detail = detail_projections(
                self.detail,
                self.detail_strides,
                dict(zip(self.strides, self.out_channels)),
            )
        self.norms = nn.ModuleList(
            BatchNorm2d(channels) for channels in self.out_channels
        )
        self.act = nn.GELU()
        if start == "smooth":
            self._start_smoothly()

    def forward(self, taps: list[Tensor], images: Tensor) -> list[Tensor]:
        """Build the pyramid.

        Args:
            taps: patch features of some blocks, earliest first, `[B, D, H/16, W/16]` each.
            images: normalized images, `[B, 3, H, W]`.

        Returns:
            One map `[B, C_s, H/s, W/s]` for each stride s; C_s is its number of channels.
        """
        if self.tap_norms is not None:
            normed = []
            for norm, tap in zip(self.tap_norms, taps, strict=True):
                normed.append(norm(tap.movedim(1, -1)).movedim(-1, 1))
            taps = normed
        stacked = torch.stack(taps)  # [taps, B, D, h, w]
        shares = self.tap_mix.softmax(-1).to(stacked.dtype)  # [strides, taps]
        details = self.detail(images) if self.detail is not None else {}
        maps = []
        for index, stride in enumerate(self.strides):
            x = torch.einsum("t,tbdhw->bdhw", shares[index], stacked)
            x = x + self._position(stacked.shape[-2:])
            x = self._to_stride(x, stride, self.project[index])
            if self.add_detail is not None and stride in self.detail_strides:
                projection = self.add_detail[self.detail_strides.index(stride)]
                x = x + projection(details[stride])
            maps.append(self.act(self.norms[index](x)))
        return maps

    @torch.no_grad()
    def convert_to_deploy(self) -> None:
        """Merge the norms into the convolutions before them, in place. Converting again changes nothing."""
        if self.detail is not None:
            self.detail.convert_to_deploy()
        for index, stride in enumerate(self.strides):
            norm = self.norms[index]
            if self.add_detail is not None and stride in self.detail_strides:
                projection = self.add_detail[self.detail_strides.index(stride)]
                _scale_as_norm(projection, norm)
            pair = nn.Sequential(self.project[index], norm)
            merge_norms(pair)
            self.project[index], self.norms[index] = pair

    @torch.no_grad()
    def _start_smoothly(self) -> None:
        """Set the values before training that docs/decisions/0023 explains."""
        self.tap_mix.copy_(own_tap_logits(*self.tap_mix.shape))
        if self.shrink is not None:
            # Row and column 0 of the kernel lie outside of the 2 x 2 cells that a cell at stride 32 covers.
            self.shrink.weight.zero_()
            self.shrink.weight[..., 1:, 1:] = 0.25
        if self.add_detail is not None:
            for projection in self.add_detail:
                cast("nn.Conv2d", projection).weight.mul_(DETAIL_SCALE)

    def _position(self, shape: torch.Size) -> Tensor | float:
        """Return the position code for maps of a shape (h, w), `[1, D, h, w]`, or 0 if there is none."""
        if self.row_code is None or self.column_code is None:
            return 0.0
        rows = F.interpolate(self.row_code, (shape[0], 1), mode="bilinear")
        columns = F.interpolate(
            self.column_code, (1, shape[1]), mode="bilinear"
        )
        return rows + columns

    def _to_stride(self, x: Tensor, stride: int, project: nn.Module) -> Tensor:
        """Project a map `[B, D, h, w]` to its channels, and resample it to a stride.

        Upsampling follows the projection, which gives the same result on a smaller map.
        """
        if self.shrink is not None and stride > PATCH:
            return project(self.shrink(x))
        x = project(x)
        if stride == PATCH:
            return x
        options = (
            {"align_corners": False} if self.upsample_mode == "bilinear" else {}
        )
        return F.interpolate(
            x,
            scale_factor=float(PATCH // stride),
            mode=self.upsample_mode,
            **options,
        )


def _scale_as_norm(projection: nn.Module, norm: nn.Module) -> None:
    """Multiply the kernel of a convolution without bias by the factors of a batch norm in eval mode."""
    if isinstance(projection, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        assert norm.running_var is not None
        factors = norm.weight / (norm.running_var + norm.eps).sqrt()
        projection.weight.mul_(factors[:, None, None, None])


def own_tap_logits(levels: int, taps: int) -> Tensor:
    """Return logits of mixtures in which each level has `OWN_SHARE` of its own tap, `[levels, taps]`.

    The other taps have equal shares. Levels and taps are both spread evenly over the depth, and the own tap
    of a level is the nearest one; of two at the same distance, the later.

    Example:
        >>> own_tap_logits(levels=3, taps=3).softmax(-1)
        tensor([[0.8500, 0.0750, 0.0750],
                [0.0750, 0.8500, 0.0750],
                [0.0750, 0.0750, 0.8500]])
    """
    logits = torch.zeros(levels, taps)
    if taps == 1:
        return logits
    logit = math.log(OWN_SHARE * (taps - 1) / (1 - OWN_SHARE))
    for level in range(levels):
        # Middles of level and tap: (level + 1/2) / levels is nearest to (tap + 1/2) / taps.
        tap = ((2 * level + 1) * taps) // (2 * levels)
        logits[level, tap] = logit
    return logits


def _position_code(channels: int, rows: int, columns: int) -> nn.Parameter:
    """Return a random position code, `[1, channels, rows, columns]`."""
    code = nn.Parameter(torch.empty(1, channels, rows, columns))
    nn.init.trunc_normal_(code, std=0.02)
    return code


def channels_of_maps(
    out_channels: int | Sequence[int], strides: Sequence[int]
) -> list[int]:
    """Return the channels of each map of a pyramid.

    Args:
        out_channels: one number for all maps, or one for each.
        strides: strides of the maps.

    Raises:
        ConfigError: if the strides are not ascending ones out of 8, 16 and 32, if there is not one number for
            each stride, or if a number is below 1.
    """
    ascending = list(strides) == sorted(set(strides))
    if not strides or not ascending or not set(strides) <= set(STRIDES):
        raise ConfigError(
            f"DINOv3Backbone.feat_strides is {list(strides)}, expected ascending strides out of "
            f"{list(STRIDES)}"
        )
    if isinstance(out_channels, int):
        channels = [out_channels] * len(strides)
    else:
        channels = list(out_channels)
    if len(channels) != len(strides) or min(channels) < 1:
        raise ConfigError(
            f"DINOv3Backbone.out_channels is {out_channels}, expected one number from 1, or one for each of "
            f"the {len(strides)} strides {list(strides)}"
        )
    return channels
