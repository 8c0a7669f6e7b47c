"""Linear layers and 1x1 convolutions that run in oneDNN where it is faster than MKL.

torch runs linear layers in MKL on a CPU, and with one thread also 1x1 convolutions. MKL uses vectors of 256
bits on processors of AMD; oneDNN uses 512 bits where the processor has them, which takes half of the time.
The numbers are the same up to rounding. docs/decisions/0036 has measurements.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 512
"""Linear layers of fewer rows stay in MKL, because oneDNN takes longer to start."""

FEWEST_CHANNELS = 64
"""Layers with fewer inputs or outputs stay in MKL, because oneDNN is slower for them or gains little."""

_ONEDNN = {"dilation": 2}
"""Setting that makes torch call oneDNN for a 1x1 convolution, whose result does not depend on the dilation.

Without it, torch takes MKL if it has one thread (`ConvParams::use_mkldnn` in ATen).
"""


@functools.cache
def is_faster() -> bool:
    """Return whether oneDNN is faster than MKL on this processor: one of AMD with AVX-512.

    Example:
        >>> is_faster() in (True, False)
        True
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    names = platform.processor().encode()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        names += listing.read_bytes()
    return b"AuthenticAMD" in names


def takes(x: Tensor) -> bool:
    """Return whether an operation on `x` runs in oneDNN by this module; never while a model is traced.

    Example:
        >>> takes(torch.ones(4, dtype=torch.float64))
        False
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return is_faster() and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map `[..., in]` to `[..., out]`, like `torch.nn.functional.linear`.

    oneDNN gets the rows as the pixels of an image, and the layer as a 1x1 convolution. Nothing is copied.

    Args:
        x: `[..., in]`.
        weight: `[out, in]`.
        bias: `[out]`.

    Example:
        >>> linear(torch.ones(600, 64), torch.full((64, 64), 0.5)).unique()
        tensor([32.])
    """
    if not takes(x) or min(weight.shape) < FEWEST_CHANNELS:
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if rows < FEWEST_ROWS:
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)  # [1, in, rows, 1]
    y = F.conv2d(pixels, weight[:, :, None, None], bias, **_ONEDNN)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` that may run in oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        return linear(input, self.weight, self.bias)


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution of stride 1 that may run in oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        """Map `[B, in, H, W]` to `[B, out, H, W]`."""
        channels = min(self.in_channels, self.out_channels)
        if not takes(input) or channels < FEWEST_CHANNELS:
            return super().forward(input)
        return F.conv2d(input, self.weight, self.bias, **_ONEDNN)


def use_onednn(model: nn.Module) -> None:
    """Let linear layers and 1x1 convolutions of a model run in oneDNN where it is faster.

    Their classes become `Linear` and `PointwiseConv2d`; parameters and their names stay. Subclasses of
    torch's layers and layers within `nn.MultiheadAttention` are left alone.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
        >>> use_onednn(model)
        >>> [type(layer).__name__ for layer in model]
        ['Linear', 'PointwiseConv2d', 'Conv2d']
    """
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
        elif type(layer) is nn.Conv2d and _is_pointwise(layer):
            layer.__class__ = PointwiseConv2d


def _is_pointwise(layer: nn.Conv2d) -> bool:
    """Return True for a 1x1 convolution that mixes all channels of a pixel and nothing else."""
    is_single = layer.kernel_size == (1, 1) and layer.stride == (1, 1)
    return is_single and layer.groups == 1 and layer.padding in (0, (0, 0))
