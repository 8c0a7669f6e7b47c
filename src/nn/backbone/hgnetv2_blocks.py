"""The convolutional blocks of PP-HGNetV2. Attribute names are those of the released weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.batch_norm import BatchNorm2d


class LearnableAffineBlock(nn.Module):
    """y = scale * x + bias with two learned numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        # This rounds twice, like the official code; addcmul would round once.
        return (self.scale * x).add_(self.bias)


class ConvBNAct(nn.Module):
    """Convolution without bias, batch norm, and optionally ReLU followed by a learnable affine block."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        use_act: bool = True,
        use_lab: bool = False,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups=groups,
            bias=False,
        )
        self.bn = BatchNorm2d(out_channels)
        self.act = nn.ReLU() if use_act else nn.Identity()
        self.lab = (
            LearnableAffineBlock() if use_act and use_lab else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H/stride, W/stride]`."""
        return self.lab(self.act(self.bn(self.conv(x))))


class LightConvBNAct(nn.Module):
    """A 1x1 convolution without activation, then a depthwise convolution with activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        use_lab: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = ConvBNAct(in_channels, out_channels, 1, use_act=False)
        self.conv2 = ConvBNAct(
            out_channels,
            out_channels,
            kernel_size,
            groups=out_channels,
            use_lab=use_lab,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H, W]`."""
        return self.conv2(self.conv1(x))


class Stem(nn.Module):
    """Downsampling by 4, with two parallel paths between strided convolutions.

    One path has convolutions with 2x2 kernels, the other max pooling.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        use_lab: bool = False,
    ) -> None:
        super().__init__()
        self.stem1 = ConvBNAct(
            in_channels, mid_channels, 3, stride=2, use_lab=use_lab
        )
        self.stem2a = ConvBNAct(
            mid_channels, mid_channels // 2, 2, use_lab=use_lab, padding=0
        )
        self.stem2b = ConvBNAct(
            mid_channels // 2, mid_channels, 2, use_lab=use_lab, padding=0
        )
        self.stem3 = ConvBNAct(
            mid_channels * 2, mid_channels, 3, stride=2, use_lab=use_lab
        )
        self.stem4 = ConvBNAct(mid_channels, out_channels, 1, use_lab=use_lab)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H/4, W/4]`."""
        x = _pad_right_bottom(self.stem1(x))
        convolved = self.stem2b(_pad_right_bottom(self.stem2a(x)))
        both = torch.cat([_MaxOfFour.apply(x), convolved], 1)
        return self.stem4(self.stem3(both))


class HGBlock(nn.Module):
    """A chain of layers whose input and outputs are concatenated and passed through two 1x1 convolutions."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        num_layers: int,
        kernel_size: int,
        *,
        light: bool,
        residual: bool,
        use_lab: bool,
    ) -> None:
        super().__init__()
        self.residual = residual
        layer = LightConvBNAct if light else ConvBNAct
        channels = in_channels
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            self.layers.append(
                layer(channels, mid_channels, kernel_size, use_lab=use_lab)
            )
            channels = mid_channels
        concatenated = in_channels + num_layers * mid_channels
        squeezed = out_channels // 2
        self.aggregation = nn.Sequential(
            ConvBNAct(concatenated, squeezed, 1, use_lab=use_lab),
            ConvBNAct(squeezed, out_channels, 1, use_lab=use_lab),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H, W]`."""
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        y = self.aggregation(torch.cat(outputs, 1))
        return y + x if self.residual else y


class HGStage(nn.Module):
    """An optional depthwise convolution of stride 2, then blocks, of which all but the first are residual."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        num_blocks: int,
        num_layers: int,
        kernel_size: int,
        *,
        downsample: bool,
        light: bool,
        use_lab: bool,
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if downsample:
            self.downsample = ConvBNAct(
                in_channels,
                in_channels,
                3,
                stride=2,
                groups=in_channels,
                use_act=False,
            )
        self.blocks = nn.Sequential()
        for index in range(num_blocks):
            block = HGBlock(
                out_channels if index else in_channels,
                mid_channels,
                out_channels,
                num_layers,
                kernel_size,
                light=light,
                residual=index > 0,
                use_lab=use_lab,
            )
            self.blocks.append(block)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H, W]`, or half the size if the stage downsamples."""
        return self.blocks(self.downsample(x))


def _pad_right_bottom(x: Tensor) -> Tensor:
    """Add a column of zeros on the right and a row of zeros below."""
    return F.pad(x, (0, 1, 0, 1))


class _MaxOfFour(torch.autograd.Function):
    """Max pooling with a 2x2 window and stride 1, in a fraction of the time of torch's on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        above = x[..., :-1, :]
        below = x[..., 1:, :]
        rows = torch.maximum(above, below)
        left = rows[..., :-1]
        right = rows[..., 1:]
        ctx.save_for_backward(above < below, left < right)
        return torch.maximum(left, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        below_is_larger, right_is_larger = ctx.saved_tensors
        rows = _route_gradient(grad, right_is_larger, dim=-1)
        return _route_gradient(rows, below_is_larger, dim=-2)


def _route_gradient(grad: Tensor, to_second: Tensor, dim: int) -> Tensor:
    """Send each gradient to one of two neighbours along a dimension, and add up what each neighbour receives.

    Args:
        grad: gradients of the maxima.
        to_second: True where the second neighbour is the maximum.
        dim: -1 or -2.

    Returns:
        Gradients of the neighbours; `dim` is longer by one.
    """
    second = grad * to_second
    pad = (0, 1) if dim == -1 else (0, 0, 0, 1)
    total = F.pad(grad - second, pad)
    total.narrow(dim, 1, grad.shape[dim]).add_(second)
    return total
