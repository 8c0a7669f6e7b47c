"""Anchors for the feature maps, and the selection of tokens as queries."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

ANCHOR_SIZE = 0.05
"""Side of an anchor of the finest level relative to the image; it doubles with each level."""

SelectMethod = Literal["default", "one2many", "agnostic"]


@lru_cache(maxsize=64)
def make_anchors(
    shapes: tuple[tuple[int, int], ...],
    margin: float,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return one anchor per token, before the sigmoid, and whether it lies inside the image.

    Args:
        shapes: (height, width) of each level, fine to coarse.
        margin: an anchor is valid if all its four numbers lie between `margin` and 1 - `margin`.
        device: device of the results.

    Returns:
        Anchors `[1, S, 4]` (cxcywh before the sigmoid, +inf if invalid) and validity `[1, S, 1]` bool.
    """
    with torch.inference_mode(False), torch.no_grad():
        levels = []
        for level, (height, width) in enumerate(shapes):
            rows = torch.arange(height, dtype=torch.float32)
            columns = torch.arange(width, dtype=torch.float32)
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            map_size = torch.tensor([width, height], dtype=torch.float32)
            centre = (torch.stack([x, y], -1) + 0.5) / map_size  # [h, w, 2]
            size = torch.full_like(centre, ANCHOR_SIZE * 2.0**level)
            levels.append(torch.cat([centre, size], -1).view(1, -1, 4))
        anchors = torch.cat(levels, 1)
        inside = (anchors > margin) & (anchors < 1 - margin)
        valid = inside.all(-1, keepdim=True)
        anchors = torch.log(anchors / (1 - anchors)).masked_fill(
            ~valid, torch.inf
        )
        return anchors.to(device), valid.to(device)


def select_tokens(
    logits: Tensor, num_queries: int, method: SelectMethod
) -> Tensor:
    """Return the indices of the most promising tokens, best first, `[B, min(num_queries, S)]`.

    Args:
        logits: class logits of all tokens, `[B, S, C]`.
        num_queries: maximum number of tokens.
        method: "default" ranks tokens by the score of their best class. "one2many" ranks (token, class)
            pairs, so that a token can be selected several times. "agnostic" ranks tokens by a single
            foreground score (C = 1).

    Example:
        >>> logits = torch.tensor([[[0.1, 0.2], [0.8, 0.9], [0.6, 0.3]]])
        >>> select_tokens(logits, 2, "default")
        tensor([[1, 2]])
        >>> select_tokens(logits, 2, "one2many")
        tensor([[1, 1]])
    """
    count = min(num_queries, logits.shape[1])
    if method == "one2many":
        best_pairs = logits.flatten(1).topk(count, dim=1).indices
        return best_pairs // logits.shape[-1]
    scores = (
        logits.squeeze(-1) if method == "agnostic" else logits.max(-1).values
    )
    return scores.topk(count, dim=1).indices


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return the tokens `[B, Q, D]` at indices `[B, Q]` of tokens `[B, S, D]`."""
    index = indices[..., None].expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, index)
