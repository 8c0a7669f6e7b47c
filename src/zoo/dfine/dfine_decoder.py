"""The decoder: selects queries from the encoder's tokens and refines boxes as distributions, layer by
layer."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.registry import register
from ...ops.activations import inverse_sigmoid
from ...ops.maps import flatten_map
from .decoder_layers import LQE, MLP, DecoderLayer
from .deformable_attention import split_heads
from .denoising import DenoisingQueries, make_denoising_queries
from .distribution import distance_to_box, expected_distances, weighting_sequence
from .query_selection import SelectMethod, gather_tokens, make_anchors, select_tokens

PRIOR_PROBABILITY = 0.01
"""Initial score of every class."""

POSITION_LIMIT = 10.0


class Layers(NamedTuple):
    """Results of the decoder's layers, denoising queries first along L; lists hold one entry a layer."""

    boxes: list[Tensor]
    """`[B, L, 4]` cxcywh."""
    logits: list[Tensor]
    """`[B, L, C]`."""
    corners: list[Tensor]
    """`[B, L, 4 * K]`."""
    reference: Tensor
    """The initial boxes that distances refer to, `[B, L, 4]`, detached."""
    pre_boxes: Tensor
    """The same boxes with their graph."""
    pre_logits: Tensor
    """`[B, L, C]`, the first layer's class logits without quality offset."""


class TransformerDecoder(nn.Module):
    """The stack of layers. It holds the layers and quality heads; box and class heads belong to
    `DFINETransformer`."""

    def __init__(
        self,
        layers: list[DecoderLayer],
        widths: list[int],
        num_heads: int,
        reg_max: int,
        up: nn.Parameter,
        reg_scale: nn.Parameter,
        eval_idx: int,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.lqe_layers = nn.ModuleList(LQE() for _ in layers)
        self.widths, self.num_heads, self.reg_max, self.eval_idx = (
            widths,
            num_heads,
            reg_max,
            eval_idx,
        )
        self.up = up
        self.reg_scale = reg_scale
        self.project: Tensor | None = None

    def forward(
        self,
        content: Tensor,
        reference_unact: Tensor,
        memory: Tensor,
        shapes: list[tuple[int, int]],
        heads: _Heads,
        mask: Tensor | None,
    ) -> Layers:
        """Run the layers; in eval mode only up to the one that is scored.

        Args:
            content: `[B, L, D]`.
            reference_unact: initial boxes before the sigmoid, `[B, L, 4]`.
            memory: `[B, S, D]`.
            shapes: (height, width) of each level.
            heads: the box, class and position heads.
            mask: `[L, L]`, True where a query must not see another; or None.
        """
        weights = self._weights().to(memory.device)
        memory = (
            memory.float()
        )  # points would be rounded to the map's type: 1/256 of the image in bfloat16
        values = split_heads(memory, self.num_heads, shapes)
        x = content
        reference = reference_unact.sigmoid()
        initial = pre_boxes = pre_logits = reference.new_empty(0)
        previous: Tensor | float = 0.0
        distances: Tensor | float = 0.0
        all_boxes, all_logits, all_corners = [], [], []
        for index, layer in enumerate(self.layers):
            position = heads.position(reference).clamp(-POSITION_LIMIT, POSITION_LIMIT)
            if self.widths[index] != x.shape[-1]:  # layers after eval_idx may be wider
                x, position, memory = (
                    _stretch(t, self.widths[index]) for t in (x, position, memory)
                )
                values = split_heads(memory, self.num_heads, shapes)
                previous = x.detach()
            elif self.widths[index] != position.shape[-1]:
                position = _stretch(position, self.widths[index])
            x = layer(x, reference, values, position, mask)
            if index == 0:
                pre_boxes = (
                    heads.pre_box(x).float() + inverse_sigmoid(reference)
                ).sigmoid()
                initial = pre_boxes.detach()
                if self.training:
                    pre_logits = heads.score[0](x)
            corners: Tensor = heads.box[index](x + previous).float() + distances
            boxes = distance_to_box(
                initial, expected_distances(corners, weights), self.reg_scale
            )
            if self.training or index == self.eval_idx:
                all_boxes.append(boxes)
                all_corners.append(corners)
                all_logits.append(
                    heads.score[index](x) + self.lqe_layers[index](corners)
                )
                if not self.training:
                    break
            distances = corners
            reference = boxes.detach()
            previous = x.detach()
        return Layers(
            all_boxes, all_logits, all_corners, initial, pre_boxes, pre_logits
        )

    def _weights(self) -> Tensor:
        """Return the weighting sequence W, which a deployed decoder has computed already."""
        if self.project is not None:
            return self.project
        return weighting_sequence(self.reg_max, self.up, self.reg_scale)

    def convert_to_deploy(self) -> None:
        """Drop layers that only training needs, and compute the weighting sequence once."""
        self.project = weighting_sequence(
            self.reg_max, self.up.double(), self.reg_scale.double()
        ).float()
        self.layers = self.layers[: self.eval_idx + 1]
        self.lqe_layers = nn.ModuleList(
            layer if i == self.eval_idx else nn.Identity()
            for i, layer in enumerate(self.lqe_layers)
        )


class _Heads(NamedTuple):
    """Heads that `DFINETransformer` passes to its decoder."""

    box: nn.ModuleList
    score: nn.ModuleList
    position: nn.Module
    pre_box: nn.Module


@register()
class DFINETransformer(nn.Module):
    """D-FINE's decoder with query selection, denoising and all heads."""

    __role__ = "decoder"
    __share__ = ["num_classes", "eval_spatial_size"]

    anchors: Tensor
    valid_mask: Tensor

    def __init__(
        self,
        num_classes: int = 80,
        hidden_dim: int = 256,
        num_queries: int = 300,
        feat_channels: Sequence[int] = (512, 1024, 2048),
        feat_strides: Sequence[int] = (8, 16, 32),
        num_levels: int = 3,
        num_points: int | Sequence[int] = 4,
        nhead: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        activation: str = "relu",
        num_denoising: int = 100,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 1.0,
        learn_query_content: bool = False,
        eval_spatial_size: Sequence[int] | None = None,
        eval_idx: int = -1,
        eps: float = 1e-2,
        aux_loss: bool = True,
        cross_attn_method: Literal["default", "discrete"] = "default",
        query_select_method: SelectMethod = "default",
        reg_max: int = 32,
        reg_scale: int | float = 4.0,
        layer_scale: int | float = 1,
    ) -> None:
        """Build the layers.

        Args:
            num_classes: C.
            hidden_dim: D.
            num_queries: objects that can be found in an image.
            feat_channels: channels of the encoder's maps, fine to coarse.
            feat_strides: their strides.
            num_levels: levels that the decoder reads; more than there are maps adds coarser ones.
            num_points: sampling points of each level; one number stands for all.
            nhead: attention heads.
            num_layers: N.
            dim_feedforward: hidden width of the feed-forward parts.
            dropout: dropout in the layers.
            activation: activation of the feed-forward parts.
            num_denoising: positive denoising queries an image; 0 switches denoising off.
            label_noise_ratio: see `make_denoising_queries`.
            box_noise_scale: see `make_denoising_queries`.
            learn_query_content: queries start from learned vectors in place of their tokens.
            eval_spatial_size: (height, width) whose anchors are kept in the checkpoint.
            eval_idx: the layer whose output is used; negative numbers count from the last.
            eps: anchors closer than this to the border are not used.
            aux_loss: return what the auxiliary losses need.
            cross_attn_method: "default" interpolates; "discrete" reads the nearest pixel.
            query_select_method: see `select_tokens`.
            reg_max: K - 1.
            reg_scale: R; written as a whole number in the official files, and kept as one in the checkpoint.
            layer_scale: relative width of the layers after `eval_idx`, at least 1.
        """
        super().__init__()
        points = (
            [num_points] * num_levels
            if isinstance(num_points, int)
            else list(num_points)
        )
        eval_idx = eval_idx if eval_idx >= 0 else num_layers + eval_idx
        _check_levels(feat_channels, feat_strides, num_levels, points)
        for wrong, message in (
            (
                not 0 <= eval_idx < num_layers,
                f"eval_idx must point at one of {num_layers} layers",
            ),
            (layer_scale < 1, f"layer_scale is {layer_scale}, expected at least 1"),
            (
                reg_max < 4 or reg_max % 2,
                f"reg_max is {reg_max}, expected an even number from 4",
            ),
            (num_classes < 1, f"num_classes is {num_classes}, expected at least 1"),
            (num_queries < 1, f"num_queries is {num_queries}, expected at least 1"),
            (
                num_denoising < 0,
                f"num_denoising is {num_denoising}, expected at least 0",
            ),
        ):
            if wrong:
                raise ConfigError(f"DFINETransformer: {message}")
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        self.num_queries = num_queries
        self.num_layers = num_layers
        self.feat_channels = list(feat_channels)
        self.feat_strides = _extended_strides(feat_strides, num_levels)
        self.num_inputs = len(feat_channels)
        self.nhead = nhead
        self.reg_max = reg_max
        self.eval_idx = eval_idx
        self.eps = eps
        self.num_denoising = num_denoising
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        self.learn_query_content = learn_query_content
        self.aux_loss = aux_loss
        self.query_select_method = query_select_method
        self.eval_spatial_size = tuple(eval_spatial_size) if eval_spatial_size else None

        self.up = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.reg_scale = nn.Parameter(
            torch.tensor([reg_scale]),
            requires_grad=False,
        )  # int64 for a whole number
        if self.eval_spatial_size:
            anchors, valid = make_anchors(
                self._shapes_of(self.eval_spatial_size), eps, torch.get_default_device()
            )
            self.register_buffer("anchors", anchors.clone())
            self.register_buffer("valid_mask", valid.clone())
        self.input_proj = self._build_input_projections()
        self.decoder, widths = self._build_layers(
            points,
            dim_feedforward,
            dropout,
            activation,
            cross_attn_method == "discrete",
            layer_scale,
        )
        self._build_heads(widths)

    # ---- construction ----

    def _build_input_projections(self) -> nn.ModuleList:
        projections: list[nn.Module] = []
        for level in range(len(self.feat_strides)):
            extra = level >= self.num_inputs
            channels = (
                self.feat_channels[level]
                if not extra
                else self.feat_channels[-1]
                if level == self.num_inputs
                else self.hidden_dim
            )
            if channels == self.hidden_dim and not extra:
                projections.append(nn.Identity())
                continue
            conv = (
                nn.Conv2d(channels, self.hidden_dim, 3, 2, 1, bias=False)
                if extra
                else nn.Conv2d(channels, self.hidden_dim, 1, bias=False)
            )
            nn.init.xavier_uniform_(conv.weight)
            projections.append(
                nn.Sequential(
                    OrderedDict(conv=conv, norm=nn.BatchNorm2d(self.hidden_dim))
                )
            )
        return nn.ModuleList(projections)

    def _build_layers(
        self,
        points: list[int],
        dim_feedforward: int,
        dropout: float,
        activation: str,
        discrete: bool,
        layer_scale: float,
    ) -> tuple[TransformerDecoder, list[int]]:
        """Layers up to `eval_idx` share one initialisation, those after it another, as in the published
        recipe."""

        def layer(scale: float) -> DecoderLayer:
            return DecoderLayer(
                round(scale * self.hidden_dim),
                self.nhead,
                round(scale * dim_feedforward),
                dropout,
                activation,
                points,
                discrete=discrete,
            )

        regular = layer(1)
        wide = layer(layer_scale)
        layers = [
            copy.deepcopy(regular if i <= self.eval_idx else wide)
            for i in range(self.num_layers)
        ]
        widths = [
            self.hidden_dim
            if i <= self.eval_idx
            else round(layer_scale * self.hidden_dim)
            for i in range(self.num_layers)
        ]
        return TransformerDecoder(
            layers,
            widths,
            self.nhead,
            self.reg_max,
            self.up,
            self.reg_scale,
            self.eval_idx,
        ), widths

    def _build_heads(self, widths: list[int]) -> None:
        width, classes, bins = self.hidden_dim, self.num_classes, self.reg_max + 1
        if self.num_denoising:
            self.denoising_class_embed = nn.Embedding(
                classes + 1, width, padding_idx=classes
            )
        if self.learn_query_content:
            self.tgt_embed = nn.Embedding(self.num_queries, width)
            nn.init.xavier_uniform_(self.tgt_embed.weight)
        self.query_pos_head = MLP(4, 2 * width, width, 2)
        projection = nn.Linear(width, width)
        self.enc_output = nn.Sequential(
            OrderedDict(proj=projection, norm=nn.LayerNorm(width))
        )
        self.enc_score_head = nn.Linear(
            width, 1 if self.query_select_method == "agnostic" else classes
        )
        self.enc_bbox_head = MLP(width, width, 4, 3)
        self.dec_score_head = nn.ModuleList(nn.Linear(w, classes) for w in widths)
        self.pre_bbox_head = MLP(width, width, 4, 3)
        self.dec_bbox_head = nn.ModuleList(MLP(w, w, 4 * bins, 3) for w in widths)

        nn.init.xavier_uniform_(projection.weight)
        self._initialize_heads()

    def _initialize_heads(self) -> None:
        """Initialize all classes with the prior probability and all boxes with their references."""
        for linear in self.query_pos_head.linears:
            nn.init.xavier_uniform_(linear.weight)
        for score_head in (self.enc_score_head, *self.dec_score_head):
            bias = score_head.get_parameter("bias")
            nn.init.constant_(
                bias, math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
            )
        for box_head in (self.enc_bbox_head, self.pre_bbox_head, *self.dec_bbox_head):
            if isinstance(box_head, MLP):
                box_head.start_at_zero()

    # ---- forward ----

    def forward(
        self, maps: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Any]:
        """Detect objects.

        Args:
            maps: the encoder's maps, `[B, C_l, h, w]`, fine to coarse.
            targets: for training, for each image `labels [T]` and `boxes [T, 4]` (cxcywh, 0..1).

        Returns:
            `pred_logits [B, Q, C]` and `pred_boxes [B, Q, 4]`; in training also what `DFINECriterion` needs.
        """
        memory, shapes = self._flatten(maps)
        denoising = None
        if (
            self.training
            and self.aux_loss
            and self.num_denoising
            and targets is not None
        ):
            queries = min(self.num_queries, memory.shape[1])
            denoising = make_denoising_queries(
                targets,
                self.denoising_class_embed,
                num_classes=self.num_classes,
                num_queries=queries,
                num_denoising=self.num_denoising,
                label_noise_ratio=self.label_noise_ratio,
                box_noise_scale=self.box_noise_scale,
            )
        content, reference_unact, first = self._select_queries(memory, shapes)
        mask = None
        if denoising is not None:
            content = torch.cat([denoising.content, content], 1)
            reference_unact = torch.cat([denoising.reference_unact, reference_unact], 1)
            mask = denoising.mask
        heads = _Heads(
            self.dec_bbox_head,
            self.dec_score_head,
            self.query_pos_head,
            self.pre_bbox_head,
        )
        layers = self.decoder(content, reference_unact, memory, shapes, heads, mask)
        if not self.training:
            return {"pred_logits": layers.logits[-1], "pred_boxes": layers.boxes[-1]}
        return self._training_outputs(layers, first, denoising)

    def convert_to_deploy(self) -> None:
        """Drop the heads that only training needs."""
        self.dec_score_head = nn.ModuleList(
            head if i == self.eval_idx else nn.Identity()
            for i, head in enumerate(self.dec_score_head)
        )
        self.dec_bbox_head = nn.ModuleList(
            head if i <= self.eval_idx else nn.Identity()
            for i, head in enumerate(self.dec_bbox_head)
        )

    def _flatten(self, maps: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Project the maps to width D, add coarser ones if asked, and lay all tokens in one row:
        `[B, S, D]`."""
        levels = [project(x) for project, x in zip(self.input_proj, maps)]
        for level in range(len(maps), len(self.input_proj)):
            levels.append(
                self.input_proj[level](maps[-1] if level == len(maps) else levels[-1])
            )
        shapes = [(int(x.shape[2]), int(x.shape[3])) for x in levels]
        return torch.cat([flatten_map(x) for x in levels], 2).transpose(1, 2), shapes

    def _select_queries(
        self,
        memory: Tensor,
        shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return content `[B, Q, D]` and boxes before the sigmoid `[B, Q, 4]`, both detached, and the
        encoder's own predictions for these tokens."""
        anchors, valid = self._anchors(tuple(shapes), memory.device)
        tokens = self.enc_output(torch.where(valid, memory, 0.0))
        logits = self.enc_score_head(tokens)
        chosen = select_tokens(
            logits.detach(), self.num_queries, self.query_select_method
        )
        tokens = gather_tokens(tokens, chosen)
        logits = gather_tokens(logits, chosen)
        boxes_unact = self.enc_bbox_head(tokens).float() + gather_tokens(
            anchors.expand(memory.shape[0], -1, -1),
            chosen,
        )
        content = tokens.detach()
        if self.learn_query_content:
            content = self.tgt_embed.weight[: chosen.shape[1]].expand(
                memory.shape[0], -1, -1
            )
        first = (
            {"pred_logits": logits, "pred_boxes": boxes_unact.sigmoid()}
            if self.training
            else {}
        )
        return content, boxes_unact.detach(), first

    def _anchors(
        self, shapes: tuple[tuple[int, int], ...], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Evaluation at the size of the checkpoint uses the anchors stored there; any other size makes its
        own."""
        if (
            not self.training
            and self.eval_spatial_size
            and shapes == self._shapes_of(self.eval_spatial_size)
        ):
            return self.anchors, self.valid_mask
        return make_anchors(shapes, self.eps, device)

    def _shapes_of(self, image_hw: Sequence[int]) -> tuple[tuple[int, int], ...]:
        return tuple(
            (math.ceil(image_hw[0] / s), math.ceil(image_hw[1] / s))
            for s in self.feat_strides
        )

    def _training_outputs(
        self,
        layers: Layers,
        first: dict[str, Tensor],
        denoising: DenoisingQueries | None,
    ) -> dict[str, Any]:
        split = [
            denoising.reference_unact.shape[1] if denoising else 0,
            first["pred_logits"].shape[1],
        ]
        rows, pre = _outputs_of_part(layers, split, 1)
        last = {
            key: value
            for key, value in rows[-1].items()
            if not key.startswith("teacher")
        }
        out: dict[str, Any] = last | {"up": self.up, "reg_scale": self.reg_scale}
        if not self.aux_loss:
            return out
        out |= {
            "aux_outputs": rows[:-1],
            "enc_aux_outputs": [first],
            "pre_outputs": pre,
            "enc_meta": {"class_agnostic": self.query_select_method == "agnostic"},
        }
        if denoising is not None:
            out["dn_outputs"], out["dn_pre_outputs"] = _outputs_of_part(
                layers, split, 0
            )
            out["dn_meta"] = {
                "dn_positive_idx": denoising.positive_idx,
                "dn_num_group": denoising.num_groups,
                "dn_num_split": split,
                "dn_chosen": denoising.chosen,
            }
        return out


def _outputs_of_part(
    layers: Layers,
    split: list[int],
    which: int,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Return the predictions of each layer and those of the pre head, for a part of the queries.

    Args:
        layers: what the layers computed for all queries.
        split: number of denoising and of matching queries.
        which: 0 for denoising queries, 1 for matching queries.

    Returns:
        One dict for each layer, with the last layer as the teacher of all; and one for the pre head.
    """

    def part(tensor: Tensor) -> Tensor:
        return tensor.split(split, dim=1)[which]

    rows = [
        {
            "pred_logits": part(logits),
            "pred_boxes": part(boxes),
            "pred_corners": part(corners),
            "ref_points": part(layers.reference),
        }
        for logits, boxes, corners in zip(layers.logits, layers.boxes, layers.corners)
    ]
    teacher = {
        "teacher_corners": rows[-1]["pred_corners"],
        "teacher_logits": rows[-1]["pred_logits"],
    }
    pre = {"pred_logits": part(layers.pre_logits), "pred_boxes": part(layers.pre_boxes)}
    return [row | teacher for row in rows], pre


def _check_levels(
    feat_channels: Sequence[int],
    feat_strides: Sequence[int],
    num_levels: int,
    points: list[int],
) -> None:
    message = None
    if len(feat_channels) != len(feat_strides):
        message = f"feat_channels {list(feat_channels)} and feat_strides {list(feat_strides)} differ in length"
    elif len(feat_channels) > num_levels:
        message = f"num_levels is {num_levels}, but there are {len(feat_channels)} feat_channels"
    elif len(points) != num_levels:
        message = (
            f"num_points {points} needs one number for each of {num_levels} levels"
        )
    if message:
        raise ConfigError(f"DFINETransformer: {message}")


def _extended_strides(strides: Sequence[int], num_levels: int) -> list[int]:
    extended = list(strides)
    while len(extended) < num_levels:
        extended.append(extended[-1] * 2)
    return extended


def _stretch(x: Tensor, width: int) -> Tensor:
    return F.interpolate(x, size=width, mode="nearest")
