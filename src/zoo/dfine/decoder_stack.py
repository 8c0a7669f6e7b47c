"""The stack of decoder layers, which refines the boxes of queries layer by layer.

It is separate from `DFINETransformer`, which selects the queries and owns their heads. The edges of a box are
predicted as distributions (`distribution.py`). Letters: B images, S tokens, L queries including those for
denoising, C classes, D channels, K bins.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.activations import inverse_sigmoid
from ...ops.deformable import LevelTokens
from .decoder_heads import Heads, keep_heads
from .decoder_layers import LQE, DecoderLayer
from .distribution import (
    distance_to_box,
    expected_distances,
    weighting_sequence,
)

POSITION_LIMIT = 10.0
"""Largest magnitude of a position code."""


class Layers(NamedTuple):
    """Results of the decoder's layers; denoising queries come first along L.

    The lists have one entry per layer in training, and one entry in all in eval mode.
    """

    boxes: list[Tensor]
    """Boxes, `[B, L, 4]` cxcywh in 0..1."""
    logits: list[Tensor]
    """Class logits, `[B, L, C]`."""
    corners: list[Tensor]
    """Logits of the edge distributions, `[B, L, 4 * K]`."""
    reference: Tensor
    """Initial boxes that distances refer to, `[B, L, 4]` cxcywh, detached."""
    pre_boxes: Tensor
    """The initial boxes with their graph, `[B, L, 4]`."""
    pre_logits: Tensor
    """Class logits of the first layer without quality offset, `[B, L, C]`; empty in eval mode."""


class TransformerDecoder(nn.Module):
    """The stack of decoder layers with their quality heads.

    Box and class heads belong to `DFINETransformer`, which passes them to `forward`.
    """

    project: Tensor | None
    """Weighting sequence W of a deployed decoder, `[K]`."""

    def __init__(
        self,
        layers: list[DecoderLayer],
        widths: list[int],
        reg_max: int,
        up: nn.Parameter,
        reg_scale: nn.Parameter,
        eval_idx: int,
        *,
        activation: str = "relu",
        refines_position: bool = True,
    ) -> None:
        """Store the layers, and build their quality heads.

        Args:
            layers: the decoder layers.
            widths: channels of the queries in each layer.
            reg_max: number of bins less one.
            up: parameter of the weighting sequence, `[1]`.
            reg_scale: scale of distances, `[1]`.
            eval_idx: index of the layer whose output is used.
            activation: activation of the quality heads.
            refines_position: compute the position codes again for the boxes of each layer; otherwise those
                of the initial boxes are used in all layers.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.lqe_layers = nn.ModuleList(
            LQE(activation=activation) for _ in layers
        )
        self.refines_position = refines_position
        self.widths = widths
        self.reg_max = reg_max
        self.eval_idx = eval_idx
        self.up = up
        self.reg_scale = reg_scale
        self.register_buffer("project", None, persistent=False)

    def forward(
        self,
        content: Tensor,
        reference_unact: Tensor,
        memory: Tensor,
        shapes: list[tuple[int, int]],
        heads: Heads,
        mask: Tensor | None,
    ) -> Layers:
        """Run all layers, or in eval mode those up to `eval_idx`.

        Args:
            content: content of the queries, `[B, L, D]`.
            reference_unact: initial boxes before the sigmoid, `[B, L, 4]` cxcywh.
            memory: tokens of the encoder, `[B, S, D]`.
            shapes: (height, width) of each level.
            heads: box, class and position heads.
            mask: `[L, L]`, True where a query (row) must not see another; or None.

        Returns:
            The predictions of all layers, or in eval mode those of layer `eval_idx` alone.
        """
        weights = self._weights()
        # Sampling points take the type of the maps; bfloat16 would round them to 1/256 of the image.
        memory = memory.float()
        values = _values_of(self.layers[0], memory, shapes)
        x = content
        reference = reference_unact.sigmoid()
        located = reference  # boxes that the position codes stand for
        initial = reference.new_empty(0)
        pre_boxes = reference.new_empty(0)
        pre_logits = reference.new_empty(0)
        previous: Tensor | float = 0.0
        distances: Tensor | float = 0.0
        position = reference.new_empty(0)
        all_boxes = []
        all_logits = []
        all_corners = []
        for index, layer in enumerate(self.layers):
            width = self.widths[index]
            if width != x.shape[-1]:  # layers after eval_idx may be wider
                x = _stretch(x, width)
                memory = _stretch(memory, width)
                values = _values_of(layer, memory, shapes)
                previous = x.detach()
            if (
                index == 0
                or self.refines_position
                or width != position.shape[-1]
            ):
                position = _position_code(heads.position, located, width)
            x = layer(x, reference, values, position, mask)
            if index == 0:
                shift = heads.pre_box(x).float()
                pre_boxes = (shift + inverse_sigmoid(reference)).sigmoid()
                initial = pre_boxes.detach()
                if self.training:
                    pre_logits = heads.score[0](x)
            corners: Tensor = heads.box[index](x + previous).float() + distances
            moves = expected_distances(corners, weights)
            boxes = distance_to_box(initial, moves, self.reg_scale)
            if self.training or index == self.eval_idx:
                logits = heads.score[index](x)
                all_boxes.append(boxes)
                all_corners.append(corners)
                all_logits.append(logits + self.lqe_layers[index](corners))
            if index == self.eval_idx and not self.training:
                break
            distances = corners
            reference = boxes.detach()
            if self.refines_position:
                located = reference
            previous = x.detach()
        return Layers(
            all_boxes, all_logits, all_corners, initial, pre_boxes, pre_logits
        )

    def _weights(self) -> Tensor:
        """Return the weighting sequence W, `[K]`; a deployed decoder has computed it already."""
        if self.project is not None:
            return self.project
        return weighting_sequence(self.reg_max, self.up, self.reg_scale)

    def convert_to_deploy(self) -> None:
        """Drop the layers that only training needs, and compute the weighting sequence once."""
        up = self.up.double()
        reg_scale = self.reg_scale.double()
        self.project = weighting_sequence(self.reg_max, up, reg_scale).float()
        self.layers = self.layers[: self.eval_idx + 1]
        kept = range(self.eval_idx, self.eval_idx + 1)
        self.lqe_layers = keep_heads(self.lqe_layers, kept)


def _values_of(
    layer: nn.Module, memory: Tensor, shapes: list[tuple[int, int]]
) -> list[Tensor] | LevelTokens:
    """Return what a layer samples from tokens `[B, S, D]` of levels with (h, w) in `shapes`."""
    return cast("DecoderLayer", layer).cross_attn.values_of(memory, shapes)


def _position_code(head: nn.Module, boxes: Tensor, width: int) -> Tensor:
    """Return the position codes of boxes `[B, L, 4]` for a layer of a width, `[B, L, width]`."""
    code = head(boxes).clamp(-POSITION_LIMIT, POSITION_LIMIT)
    return code if width == code.shape[-1] else _stretch(code, width)


def _stretch(x: Tensor, width: int) -> Tensor:
    """Widen tokens `[B, N, D]` to `[B, N, width]` by repeating channels."""
    return F.interpolate(x, size=width, mode="nearest")
