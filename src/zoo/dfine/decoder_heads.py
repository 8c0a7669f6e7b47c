"""Functions that build, initialize and drop the heads of the decoder.

The heads themselves are attributes of `DFINETransformer`, because these are their names in the released
weights. Letters: B images, L queries including those for denoising, C classes, D channels, K bins.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from torch import nn

from .decoder_layers import MLP

PRIOR_PROBABILITY = 0.01
"""Initial score of every class."""

QueryPosition = Literal["refined", "initial"]
"""Whether position codes are computed for the boxes of each layer, or once for the initial boxes."""


class Heads(NamedTuple):
    """Heads that `DFINETransformer` passes to its stack of layers."""

    box: nn.ModuleList
    """For each layer, queries `[B, L, D]` to logits of the edge distributions `[B, L, 4 * K]`."""
    score: nn.ModuleList
    """For each layer, queries to class logits `[B, L, C]`."""
    position: nn.Module
    """Boxes `[B, L, 4]` to position codes `[B, L, D]`."""
    pre_box: nn.Module
    """Queries of the first layer to shifts of their boxes before the sigmoid, `[B, L, 4]`."""


def build_position_head(
    width: int, query_position: QueryPosition, activation: str
) -> MLP:
    """Return the head from boxes `[B, L, 4]` to position codes `[B, L, D]`.

    Codes that are computed only once, from the initial boxes, come from one more layer.
    """
    if query_position == "refined":
        return MLP(4, 2 * width, width, 2, activation)
    return MLP(4, width, width, 3, activation)


def build_query_projection(width: int, is_used: bool) -> nn.Module:
    """Return a linear layer with LayerNorm from D to D channels, or the identity."""
    if not is_used:
        return nn.Identity()
    projection = nn.Linear(width, width)
    nn.init.xavier_uniform_(projection.weight)
    parts = OrderedDict(proj=projection, norm=nn.LayerNorm(width))
    return nn.Sequential(parts)


def build_box_heads(
    widths: Sequence[int], outputs: int, num_shared: int, activation: str
) -> nn.ModuleList:
    """Return one box head per layer; shared ones are the same module at several indices.

    Args:
        widths: channels of the queries in each layer.
        outputs: number of outputs, 4 * K.
        num_shared: number of layers, the first ones, that share one head.
        activation: activation of the heads.
    """
    heads = nn.ModuleList()
    for index, width in enumerate(widths):
        if 0 < index < num_shared:
            heads.append(heads[0])
        else:
            heads.append(MLP(width, width, outputs, 3, activation))
    return heads


def initialize_heads(
    position_head: MLP,
    score_heads: Iterable[nn.Module],
    box_heads: Iterable[nn.Module],
) -> None:
    """Let all class scores start at the prior probability, and all boxes at their references."""
    for linear in position_head.linears:
        nn.init.xavier_uniform_(linear.weight)
    prior_logit = math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
    for score_head in score_heads:
        nn.init.constant_(score_head.get_parameter("bias"), prior_logit)
    for box_head in box_heads:
        if isinstance(box_head, MLP):
            box_head.start_at_zero()


def keep_heads(heads: nn.ModuleList, kept: range) -> nn.ModuleList:
    """Return the heads with those at other indices than `kept` replaced by the identity."""
    result = nn.ModuleList()
    for index, head in enumerate(heads):
        result.append(head if index in kept else nn.Identity())
    return result
