"""DEIMv2's Spatial Tuning Adapter: each level has one tap of the ViT and the details of its stride.

Both are concatenated and projected (DEIMv2, Huang et al., 2025). Attribute names below `detail` are those of
the released weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...ops.batch_norm import BatchNorm2d, merge_norms
from .spatial_tuning_adapter import PATCH, STRIDES, channels_of_maps


class ConcatAdapter(nn.Module):
    """Maps taps of a ViT at stride 16 to maps at strides 8, 16 and 32."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int | Sequence[int],
        strides: Sequence[int] = STRIDES,
        num_taps: int = 3,
        *,
        detail_channels: int = 16,
    ) -> None:
        """Build the layers.

        Args:
            in_channels: width of the ViT, D.
            out_channels: channels of the maps, one number for all or one for each stride.
            strides: strides of the maps, ascending, any of 8, 16 and 32.
            num_taps: number of ViT blocks that are read: one for each stride, or one for all.
            detail_channels: width of the first layer of the detail branch; 0 builds no branch.

        Raises:
            ConfigError: if `strides` or `out_channels` is invalid, or the taps do not fit the strides.
        """
        super().__init__()
        self.strides = tuple(strides)
        self.out_channels = channels_of_maps(out_channels, strides)
        if num_taps not in (1, len(self.strides)):
            raise ConfigError(
                f"DINOv3Backbone.tap_blocks names {num_taps} blocks, expected one, or one for each of the "
                f"{len(self.strides)} strides with adapter: concat"
            )
        self.detail: DetailPyramid | None = None
        if detail_channels:
            self.detail = DetailPyramid(detail_channels)
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for stride, channels in zip(self.strides, self.out_channels):
            inputs = in_channels
            if self.detail is not None:
                inputs += self.detail.out_channels[stride]
            self.convs.append(nn.Conv2d(inputs, channels, 1, bias=False))
            self.norms.append(BatchNorm2d(channels))

    def forward(self, taps: list[Tensor], images: Tensor) -> list[Tensor]:
        """Build the pyramid.

        Args:
            taps: patch features of some blocks, earliest first, `[B, D, H/16, W/16]` each.
            images: normalized images, `[B, 3, H, W]`.

        Returns:
            One map `[B, C_s, H/s, W/s]` for each stride s; C_s is its number of channels.
        """
        details = self.detail(images) if self.detail is not None else {}
        if len(taps) == 1:
            taps = taps * len(self.strides)
        maps = []
        for index, stride in enumerate(self.strides):
            parts = [_to_stride(taps[index], stride)]
            if details:
                parts.append(details[stride])
            x = self.convs[index](torch.cat(parts, 1))
            maps.append(self.norms[index](x))
        return maps

    def convert_to_deploy(self) -> None:
        """Merge the norms into the convolutions before them, in place."""
        if self.detail is not None:
            self.detail.convert_to_deploy()
        for index, norm in enumerate(self.norms):
            pair = nn.Sequential(self.convs[index], norm)
            merge_norms(pair)
            self.convs[index], self.norms[index] = pair


class DetailPyramid(nn.Module):
    """Convolutions on the image, whose maps are read before the activation of the next step."""

    def __init__(self, width: int) -> None:
        """Build the layers.

        Args:
            width: channels of the first layer.
        """
        super().__init__()
        self.out_channels = {8: 2 * width, 16: 4 * width, 32: 4 * width}
        self.stem = nn.Sequential(
            _halving(3, width),
            BatchNorm2d(width),
            nn.GELU(),
            nn.MaxPool2d(3, 2, 1),
        )
        self.conv2 = nn.Sequential(
            _halving(width, 2 * width), BatchNorm2d(2 * width)
        )
        self.conv3 = nn.Sequential(
            nn.GELU(), _halving(2 * width, 4 * width), BatchNorm2d(4 * width)
        )
        self.conv4 = nn.Sequential(
            nn.GELU(), _halving(4 * width, 4 * width), BatchNorm2d(4 * width)
        )

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Map images `[B, 3, H, W]` to a dict of maps by stride s, `[B, out_channels[s], H/s, W/s]`."""
        fine = self.conv2(self.stem(images))
        middle = self.conv3(fine)
        return {8: fine, 16: middle, 32: self.conv4(middle)}

    def convert_to_deploy(self) -> None:
        """Merge the norms into the convolutions, in place."""
        for step in (self.stem, self.conv2, self.conv3, self.conv4):
            merge_norms(step)


def _halving(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution, `[B, in, H, W]` to `[B, out, H/2, W/2]`."""
    return nn.Conv2d(in_channels, out_channels, 3, 2, 1, bias=False)


def _to_stride(tap: Tensor, stride: int) -> Tensor:
    """Resample a tap `[B, D, H/16, W/16]` to `[B, D, H/stride, W/stride]`."""
    if stride == PATCH:
        return tap
    return F.interpolate(tap, scale_factor=PATCH / stride, mode="bilinear")
