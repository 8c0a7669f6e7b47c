"""Grids of pictures in their true aspect ratios: each row fills the width, so there are no holes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER = 4
"""White pixels around and between the pictures of a grid."""

TALLEST_ROW = 2.0
"""Maximum height of a row as a multiple of its ideal height, for rows of very narrow pictures."""


def row_lengths(count: int, columns: int) -> list[int]:
    """Divide pictures among rows of almost equal length, at most `columns` each; longer rows come first.

    Example:
        >>> row_lengths(7, columns=3)
        [3, 2, 2]
    """
    rows = -(-count // columns)
    short, longer_rows = divmod(count, max(1, rows))
    return [short + (number < longer_rows) for number in range(rows)]


def cell_sizes(
    aspect_ratios: Sequence[float],
    columns: int,
    width: int,
    extra_width: int = 0,
) -> list[list[tuple[int, int]]]:
    """Choose the size of each picture of a grid, so that each row has one height and fills the width.

    Example:
        >>> cell_sizes([1.0, 1.0, 2.0], columns=2, width=324)
        [[(156, 156), (156, 156)], [(158, 316)]]

    Args:
        aspect_ratios: width divided by height of each picture.
        columns: maximum number of pictures in a row.
        width: width of the grid in pixels, borders included.
        extra_width: pixels in the width of each picture that are not scaled, such as a gap inside it.

    Returns:
        (height, width) in pixels by row, without `extra_width`.
    """
    sizes = []
    start = 0
    for length in row_lengths(len(aspect_ratios), columns):
        ratios = aspect_ratios[start : start + length]
        start += length
        inner = width - BORDER * (length + 1) - extra_width * length
        ideal = inner / length
        height = min(inner / sum(ratios), TALLEST_ROW * ideal)
        row = [
            (max(1, round(height)), max(1, round(ratio * height)))
            for ratio in ratios
        ]
        if height == inner / sum(ratios):
            # rounding must not leave a gap at the right
            others = sum(cell_width for _, cell_width in row[:-1])
            row[-1] = (row[-1][0], max(1, inner - others))
        sizes.append(row)
    return sizes


def join_rows(rows: Sequence[Sequence[Tensor]], width: int) -> Tensor:
    """Join the pictures of a grid.

    Args:
        rows: pictures `[3, h, w]` uint8; those of a row have the same height.
        width: width of the grid in pixels, borders included.

    Returns:
        `[3, H, width]` uint8.
    """
    joined = [_paper(BORDER, width)]
    for row in rows:
        height = row[0].shape[1]
        parts = [_paper(height, BORDER)]
        for picture in row:
            parts += [picture, _paper(height, BORDER)]
        line = torch.cat(parts, 2)
        missing = width - line.shape[2]
        joined += [F.pad(line, (0, missing), value=255), _paper(BORDER, width)]
    return torch.cat(joined, 1)


def _paper(height: int, width: int) -> Tensor:
    """Return white pixels, `[3, height, width]` uint8."""
    return torch.full((3, height, width), 255, dtype=torch.uint8)
