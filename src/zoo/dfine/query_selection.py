"""Anchors for the feature maps, and the selection of tokens as queries."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

ANCHOR_SIZE = 0.05
"""Side of a finest-level anchor relative to the image; doubles with each level."""

SelectMethod = Literal["default", "one2many", "agnostic"]


@lru_cache(maxsize=64)
def make_anchors(
    shapes: tuple[tuple[int, int], ...],
    margin: float,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return one anchor a token, before the sigmoid, and which of them lie inside the image.

    Args:
        shapes: (height, width) of each level, fine to coarse.
        margin: all four numbers of a valid anchor lie between `margin` and 1 - `margin`.
        device: device of the tensors.

    Returns:
        anchors `[1, S, 4]` (cxcywh unactivated, +inf where invalid) and validity `[1, S, 1]`.
    """
    with torch.inference_mode(False), torch.no_grad():
        levels = []
        for level, (height, width) in enumerate(shapes):
            y, x = torch.meshgrid(
                torch.arange(height, dtype=torch.float32),
                torch.arange(width, dtype=torch.float32),
                indexing="ij",
            )
            centre = (torch.stack([x, y], -1) + 0.5) / torch.tensor(
                [width, height], dtype=torch.float32
            )
            levels.append(
                torch.cat(
                    [centre, torch.full_like(centre, ANCHOR_SIZE * 2.0**level)], -1
                ).view(1, -1, 4)
            )
        anchors = torch.cat(levels, 1)
        valid = ((anchors > margin) & (anchors < 1 - margin)).all(-1, keepdim=True)
        anchors = torch.log(anchors / (1 - anchors)).masked_fill(~valid, torch.inf)
        return anchors.to(device), valid.to(device)


def select_tokens(logits: Tensor, num_queries: int, method: SelectMethod) -> Tensor:
    """Return the indices of the most promising tokens, best first, `[B, min(num_queries, S)]`.

    Args:
        logits: class logits of all tokens, `[B, S, C]`.
        num_queries: how many to take, at most.
        method: "default" ranks tokens by their best class, "one2many" ranks (token, class) pairs, so that one
            token may be taken several times; "agnostic" ranks by a single foreground score (C = 1).
    """
    count = min(num_queries, logits.shape[1])
    if method == "one2many":
        return logits.flatten(1).topk(count, dim=1).indices // logits.shape[-1]
    scores = logits.squeeze(-1) if method == "agnostic" else logits.max(-1).values
    return scores.topk(count, dim=1).indices


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Select the tokens with indices `[B, Q]` from `[B, S, D]`; returns `[B, Q, D]`."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
