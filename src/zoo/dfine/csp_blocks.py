"""Convolutional fusion blocks of the encoder, and their fused forms for inference.

Attribute names are those of the released weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...ops.activations import build_activation, overwrite_input
from ...ops.batch_norm import BatchNorm2d


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and activation.

    For inference, convolution and norm are fused into one convolution with bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        act: str | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups=groups,
            bias=False,
        )
        self.norm = BatchNorm2d(out_channels)
        self.act = build_activation(act)
        self.conv_bn_fused: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H/stride, W/stride]`."""
        if self.conv_bn_fused is not None:
            return self.act(self.conv_bn_fused(x))
        return self.act(self.norm(self.conv(x)))

    def convert_to_deploy(self) -> None:
        """Replace convolution and norm by one convolution with bias."""
        if self.conv_bn_fused is None:
            self.conv_bn_fused = fuse_conv_bn_eval(self.conv, self.norm)
            overwrite_input(self.act)
            del self.conv, self.norm


class VGGBlock(nn.Module):
    """Sum of a 3x3 and a 1x1 convolution, with activation (RepVGG, Ding et al., 2021).

    For inference, both branches become one 3x3 convolution.
    """

    def __init__(self, channels: int, *, act: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.act = build_activation(act)
        self.conv: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        if self.conv is not None:
            return self.act(self.conv(x))
        return self.act(self.conv1(x) + self.conv2(x))

    def convert_to_deploy(self) -> None:
        """Replace both branches by their sum, with the 1x1 kernel in the middle of the 3x3 kernel."""
        if self.conv is None:
            self.conv1.convert_to_deploy()
            self.conv2.convert_to_deploy()
            conv = self.conv1.conv_bn_fused
            point = self.conv2.conv_bn_fused
            # The two conversions above made both convolutions, with biases.
            assert conv is not None and conv.bias is not None
            assert point is not None and point.bias is not None
            conv.weight.data[:, :, 1:2, 1:2] += point.weight.data
            conv.bias.data += point.bias.data
            self.conv = conv
            overwrite_input(self.act)
            del self.conv1, self.conv2


class CSPLayer(nn.Module):
    """Sum of two paths: a 1x1 convolution, and another one followed by a chain of blocks."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, *, act: str
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 1, act=act)
        self.conv2 = ConvNorm(in_channels, out_channels, 1, act=act)
        blocks = [VGGBlock(out_channels, act=act) for _ in range(num_blocks)]
        self.bottlenecks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H, W]`."""
        return self.bottlenecks(self.conv1(x)) + self.conv2(x)


class SplitCSPLayer(nn.Module):
    """One 1x1 convolution whose output is split; a chain of blocks follows one half (DEIMv2's csp2)."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, *, act: str
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, 2 * out_channels, 1, act=act)
        blocks = [VGGBlock(out_channels, act=act) for _ in range(num_blocks)]
        self.bottlenecks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H, W]`."""
        direct, refined = self.conv1(x).chunk(2, 1)
        return direct + self.bottlenecks(refined)


FusionBlock = Literal["gelan", "gelan_csp2", "gelan_slim"]
"""Kind of the encoder's fusion blocks.

"gelan" is D-FINE's. "gelan_csp2" has CSP stages with one convolution instead of two (DEIMv2 with HGNetv2).
"gelan_slim" also lacks the 3x3 convolution after each stage (DEIMv2 with DINOv3).
"""


class RepNCSPELAN4(nn.Module):
    """GELAN block (YOLOv9, Wang et al., 2024): channels are split, and half of them pass two CSP stages.

    All parts are then concatenated.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mid_channels: int,
        inner_channels: int,
        num_blocks: int,
        *,
        act: str,
        kind: FusionBlock = "gelan",
    ) -> None:
        super().__init__()
        half = mid_channels // 2
        csp_layer = CSPLayer if kind == "gelan" else SplitCSPLayer

        def stage(channels: int) -> nn.Sequential:
            layers: list[nn.Module] = [
                csp_layer(channels, inner_channels, num_blocks, act=act)
            ]
            if kind != "gelan_slim":
                layers.append(
                    ConvNorm(inner_channels, inner_channels, 3, act=act)
                )
            return nn.Sequential(*layers)

        self.cv1 = ConvNorm(in_channels, mid_channels, 1, act=act)
        self.cv2 = stage(half)
        self.cv3 = stage(inner_channels)
        self.cv4 = ConvNorm(
            mid_channels + 2 * inner_channels, out_channels, 1, act=act
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H, W]`."""
        parts = list(self.cv1(x).chunk(2, 1))
        parts.append(self.cv2(parts[-1]))
        parts.append(self.cv3(parts[-1]))
        return self.cv4(torch.cat(parts, 1))


class SCDown(nn.Module):
    """Downsampling by 2 (YOLOv10, 2024): a 1x1 convolution, then a depthwise 3x3 convolution of stride 2.

    There is no activation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(channels, channels, 1)
        self.cv2 = ConvNorm(channels, channels, 3, stride=2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, C, H/2, W/2]`."""
        return self.cv2(self.cv1(x))
