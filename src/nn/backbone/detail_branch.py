"""The detail branch of the Spatial Tuning Adapter: convolutions on the image, and the maps that use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...ops.batch_norm import BatchNorm2d, merge_norms


class DetailBranch(nn.Module):
    """Convolutions of stride 2 on the image, for edges and small objects that patches of 16 pixels blur."""

    def __init__(self, width: int, deepest: int) -> None:
        """Build the layers.

        Args:
            width: channels of the first layer.
            deepest: stride of the last layer, a power of 2 from 2 to 32.
        """
        super().__init__()
        widths = {
            2: width,
            4: 2 * width,
            8: 4 * width,
            16: 4 * width,
            32: 4 * width,
        }
        self.out_channels = widths
        self.layers = nn.ModuleList()
        previous = 3
        for stride, channels in widths.items():
            if stride > deepest:
                break
            layer = nn.Sequential(
                nn.Conv2d(previous, channels, 3, 2, 1, bias=False),
                BatchNorm2d(channels),
                nn.GELU(),
            )
            self.layers.append(layer)
            previous = channels

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Map images `[B, 3, H, W]` to a dict of maps by stride s, `[B, out_channels[s], H/s, W/s]`."""
        maps = {}
        stride = 1
        for layer in self.layers:
            images = layer(images)
            stride = stride * 2
            maps[stride] = images
        return maps

    def convert_to_deploy(self) -> None:
        """Merge the norms into the convolutions, in place."""
        for layer in self.layers:
            merge_norms(cast("nn.Sequential", layer))


def strides_of_details(
    detail_strides: Sequence[int] | None,
    strides: Sequence[int],
    detail_channels: int,
) -> tuple[int, ...]:
    """Return the strides of the maps that get details; none if there is no detail branch.

    Args:
        detail_strides: the setting; None means all of `strides`.
        strides: strides of the maps of the adapter.
        detail_channels: width of the first layer of the branch; 0 builds no branch.

    Raises:
        ConfigError: if they are not ascending ones out of `strides`, or if there are no detail channels.
    """
    if detail_strides is None:
        return tuple(strides) if detail_channels else ()
    wanted = tuple(detail_strides)
    ascending = wanted == tuple(sorted(set(wanted)))
    if not wanted or not ascending or not set(wanted) <= set(strides):
        raise ConfigError(
            f"DINOv3Backbone.detail_strides is {list(wanted)}, expected ascending strides out of "
            f"feat_strides {list(strides)}; to build no detail branch, set detail_channels to 0"
        )
    if not detail_channels:
        raise ConfigError(
            f"DINOv3Backbone.detail_strides is {list(wanted)}, but detail_channels is 0 and builds no detail "
            f"branch; remove detail_strides, or set detail_channels to 1 or more"
        )
    return wanted


def detail_projections(
    detail: DetailBranch,
    strides: Sequence[int],
    channels_of: dict[int, int],
) -> nn.ModuleList:
    """Return a 1x1 convolution for each stride, from channels of the detail branch to those of the map.

    Args:
        detail: the detail branch.
        strides: strides of the maps that get details.
        channels_of: channels of the map of each stride.
    """
    projections = nn.ModuleList()
    for stride in strides:
        inputs = detail.out_channels[stride]
        projections.append(
            nn.Conv2d(inputs, channels_of[stride], 1, bias=False)
        )
    return projections
