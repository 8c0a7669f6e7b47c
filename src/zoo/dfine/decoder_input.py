"""The input of the decoder: the encoder's maps become one sequence of tokens.

Each level has a projection to D channels. If the decoder reads more levels than the encoder has maps, the
coarser levels are made here. Letters: B images, S tokens, D channels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ...ops.batch_norm import BatchNorm2d
from ...ops.cpu_inference import is_cpu_inference
from ...ops.maps import flatten_map


def build_input_projections(
    feat_channels: Sequence[int], width: int, num_levels: int
) -> nn.ModuleList:
    """Build one projection per level; the first extra level is made from the last map.

    Args:
        feat_channels: channels of the encoder's maps, fine to coarse.
        width: channels of the tokens, D. Maps that have them already are not projected.
        num_levels: number of levels, at least the number of maps.
    """
    projections: list[nn.Module] = []
    for channels in feat_channels:
        if channels == width:
            projections.append(nn.Identity())
        else:
            projections.append(_projection(channels, width, kernel_size=1))
    channels = feat_channels[-1]
    for _ in range(len(feat_channels), num_levels):
        projections.append(
            _projection(channels, width, kernel_size=3, stride=2)
        )
        channels = width
    return nn.ModuleList(projections)


def flatten_levels(
    maps: Sequence[Tensor], projections: nn.ModuleList
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Project the maps to D channels, make the coarser levels that have no map, and join all tokens.

    Args:
        maps: maps of the encoder, `[B, C_l, h, w]`, fine to coarse.
        projections: result of `build_input_projections`.

    Returns:
        Tokens `[B, S, D]`, level by level and each in row-major order, and (height, width) of each level.
    """
    levels = [project(x) for project, x in zip(projections, maps)]
    coarsest = maps[-1]
    for level in range(len(maps), len(projections)):
        coarsest = projections[level](coarsest)
        levels.append(coarsest)
    shapes = [(int(x.shape[2]), int(x.shape[3])) for x in levels]
    flat = [flatten_map(x) for x in levels]  # [B, D, h * w]
    if is_cpu_inference(flat[0]):  # all layers that follow read tokens
        return torch.cat([x.transpose(1, 2) for x in flat], 1), shapes
    return torch.cat(flat, 2).transpose(1, 2), shapes


def extended_strides(strides: Sequence[int], num_levels: int) -> list[int]:
    """Return one stride per level; each extra level has twice the stride of the one before."""
    extended = list(strides)
    while len(extended) < num_levels:
        extended.append(extended[-1] * 2)
    return extended


def level_shapes(
    image_hw: Sequence[int], strides: Iterable[int]
) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of each level for an image of (height, width)."""
    height, width = image_hw
    shapes = []
    for stride in strides:
        shapes.append((math.ceil(height / stride), math.ceil(width / stride)))
    return tuple(shapes)


def _projection(
    in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1
) -> nn.Sequential:
    """Return a convolution with batch norm, `[B, in, h, w]` to `[B, out, h / stride, w / stride]`."""
    padding = kernel_size // 2
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, bias=False
    )
    nn.init.xavier_uniform_(conv.weight)
    norm = BatchNorm2d(out_channels)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm))
