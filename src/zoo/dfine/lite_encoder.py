"""DEIMv2's encoder for its smallest models: two levels from one map, fused without attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.registry import register
from ...core.validate import require
from ...ops.activations import build_activation
from ...ops.batch_norm import BatchNorm2d
from .csp_blocks import ConvNorm
from .hybrid_encoder import build_fusion_block, input_projection


@register()
class LiteEncoder(nn.Module):
    """DEIMv2's LiteEncoder. Attribute names are those of the released weights."""

    __role__ = "encoder"

    def __init__(
        self,
        in_channels: Sequence[int] = (512,),
        feat_strides: Sequence[int] = (16,),
        hidden_dim: int = 112,
        expansion: float = 0.34,
        depth_mult: float = 0.5,
        act: str = "silu",
    ) -> None:
        """Build the layers.

        Args:
            in_channels: channels of the backbone's only map, a list of one number.
            feat_strides: stride of this map, a list of one number.
            hidden_dim: channels of both output maps, D.
            expansion: inner width of the fusion blocks relative to `hidden_dim` / 2.
            depth_mult: number of blocks in each fusion stage relative to 3.
            act: activation.

        Raises:
            ConfigError: if there is not exactly one input map.
        """
        super().__init__()
        require(
            len(in_channels) == 1 and len(feat_strides) == 1,
            f"LiteEncoder reads one map, but in_channels is {list(in_channels)} and feat_strides "
            f"{list(feat_strides)}",
        )
        self.in_channels = list(in_channels)
        self.feat_strides = list(feat_strides)
        self.out_channels = [hidden_dim, hidden_dim]
        self.out_strides = [feat_strides[0], 2 * feat_strides[0]]
        self.input_proj = nn.ModuleList(
            [input_projection(in_channels[0], hidden_dim)]
        )
        self.down_sample1 = _pooled_convolution(hidden_dim, act)
        self.down_sample2 = _pooled_convolution(hidden_dim, act)
        self.bi_fusion = GlobalFusion(hidden_dim, act)
        self.fpn_block = build_fusion_block(
            hidden_dim, "sum", "gelan_csp2", expansion, depth_mult, act
        )
        self.pan_block = build_fusion_block(
            hidden_dim, "sum", "gelan_csp2", expansion, depth_mult, act
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Make and fuse two levels.

        Args:
            maps: the map of the backbone, `[B, C, h, w]`, in a list.

        Returns:
            Maps `[B, D, h, w]` and `[B, D, h / 2, w / 2]`.
        """
        fine = self.input_proj[0](maps[0])
        coarse = self.bi_fusion(self.down_sample1(fine))
        above = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        fine = self.fpn_block(fine + above)
        return [fine, self.pan_block(coarse + self.down_sample2(fine))]


class GlobalFusion(nn.Module):
    """The mean of a map over its positions is added to it, and a 1x1 convolution follows."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        self.cv = ConvNorm(channels, channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        return self.cv(x + x.mean((2, 3), keepdim=True))


def _pooled_convolution(channels: int, act: str) -> nn.Sequential:
    """Return average pooling of stride 2 and a 1x1 convolution, `[B, C, H, W]` to `[B, C, H/2, W/2]`."""
    return nn.Sequential(
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(channels, channels, 1, bias=False),
        BatchNorm2d(channels),
        build_activation(act),
    )
