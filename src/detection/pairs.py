"""Pictures of ground truth and predictions side by side, with captions that explain the line styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .captions import CaptionLine, caption_size, with_caption
from .drawing import DrawnObjects, draw_at_size, readable_size
from .outcomes import CORRECT_STYLE, FALSE_STYLE, MISSED_STYLE, Outcomes

GAP = 8
"""White pixels between two pictures side by side."""


class ImagePair(NamedTuple):
    """An image with its ground truth and its predictions."""

    image: Tensor
    """`[3, H, W]` uint8."""
    truth: DrawnObjects
    outcomes: Outcomes
    name: str
    """Name of the image, for the caption."""
    threshold: float
    """Minimum score of the predictions, for the caption."""


def draw_pair(
    pair: ImagePair, size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the ground truth, and the predictions with the missed objects, on two pictures of equal size.

    Args:
        pair: image with its objects.
        size: (height, width) of each picture; None enlarges small images.

    Returns:
        Two pictures `[3, height, width]` uint8, the ground truth first.
    """
    if size is None:
        size = readable_size(pair.image)
    truth = draw_at_size(pair.image, pair.truth, size)
    predictions = draw_at_size(pair.image, pair.outcomes.drawn, size)
    return truth, predictions


def captioned_pair(
    pair: ImagePair, size: tuple[int, int] | None = None
) -> Tensor:
    """Draw a pair in a row, each picture with two lines above it: name, number of objects, and legend.

    Args:
        pair: image with its objects.
        size: (height, width) of each picture without its caption; None enlarges small images.

    Returns:
        `[3, h, w]` uint8, where w is twice the width and a gap.
    """
    pictures = draw_pair(pair, size)
    captions: list[list[CaptionLine]] = [
        [[pair.name], [f"ground truth: {len(pair.truth.labels)}"]],
        [[f"predictions, score >= {pair.threshold:.2f}"], legend(pair)],
    ]
    height, width = pictures[0].shape[1:]
    # the name of the image is cut rather than set in small type
    sizes = [
        caption_size(captions[0][1:], height, width),
        caption_size(captions[1], height, width),
    ]
    captioned = []
    for picture, lines in zip(pictures, captions):
        captioned.append(with_caption(picture, lines, min(sizes)))
    return side_by_side(captioned)


def legend(pair: ImagePair) -> CaptionLine:
    """Return the line that explains the styles, with the number of boxes in each."""
    return [
        CORRECT_STYLE,
        f"correct {pair.outcomes.correct}",
        FALSE_STYLE,
        f"false {pair.outcomes.false}",
        MISSED_STYLE,
        f"missed {pair.outcomes.missed}",
    ]


def side_by_side(pictures: Sequence[Tensor]) -> Tensor:
    """Join pictures `[3, H, W]` uint8 of equal height in a row, with gaps between them."""
    gap = torch.full((3, pictures[0].shape[1], GAP), 255, dtype=torch.uint8)
    parts = [pictures[0]]
    for picture in pictures[1:]:
        parts += [gap, picture]
    return torch.cat(parts, 2)
