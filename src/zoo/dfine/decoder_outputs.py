"""The predictions that the decoder returns in training, as the dict that `DFINECriterion` reads.

It is separate because it is the contract between decoder and loss, which `prediction_heads.py` reads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .decoder_stack import Layers
from .denoising import DenoisingQueries


def training_outputs(
    layers: Layers,
    first: dict[str, Tensor],
    denoising: DenoisingQueries | None,
    *,
    up: Tensor,
    reg_scale: Tensor,
    aux_loss: bool,
    class_agnostic: bool,
) -> dict[str, Any]:
    """Return the dict that `DFINECriterion` reads.

    Args:
        layers: predictions of all layers, denoising queries first.
        first: the encoder's own predictions for the matching queries.
        denoising: the denoising queries, or None if there are none.
        up: parameter of the weighting sequence, `[1]`.
        reg_scale: scale of distances, `[1]`.
        aux_loss: whether to return what the auxiliary losses need.
        class_agnostic: whether the encoder predicts a single foreground score instead of classes.

    Returns:
        `pred_logits [B, Q, C]`, `pred_boxes [B, Q, 4]` (cxcywh, 0..1), `pred_corners [B, Q, 4 * K]` and
        `ref_points [B, Q, 4]` of the last layer, `up` and `reg_scale`. With `aux_loss` also the predictions
        of the other heads, and those for the denoising queries under names that begin with `dn_`.
    """
    num_denoising = denoising.reference_unact.shape[1] if denoising else 0
    split = [num_denoising, first["pred_logits"].shape[1]]
    rows, teacher, pre = _outputs_of_part(layers, split, 1)
    out: dict[str, Any] = {
        **rows[-1],
        "up": up,
        "reg_scale": reg_scale,
    }
    if not aux_loss:
        return out
    out["aux_outputs"] = [row | teacher for row in rows[:-1]]
    out["enc_aux_outputs"] = [first]
    out["pre_outputs"] = pre
    out["enc_meta"] = {"class_agnostic": class_agnostic}
    if denoising is not None:
        rows, teacher, pre = _outputs_of_part(layers, split, 0)
        out["dn_outputs"] = [row | teacher for row in rows]
        out["dn_pre_outputs"] = pre
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
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """Return the predictions for the denoising queries or for the matching queries.

    Args:
        layers: predictions of all layers for all queries.
        split: number of denoising queries, and of matching queries.
        which: 0 for denoising queries, 1 for matching queries.

    Returns:
        The predictions of each layer; those of the last layer as the teacher of all; those of the pre head.
    """

    def part(tensor: Tensor) -> Tensor:
        return tensor.split(split, dim=1)[which]

    rows = []
    for logits, boxes, corners in zip(
        layers.logits, layers.boxes, layers.corners
    ):
        row = {
            "pred_logits": part(logits),
            "pred_boxes": part(boxes),
            "pred_corners": part(corners),
            "ref_points": part(layers.reference),
        }
        rows.append(row)
    teacher = {
        "teacher_corners": rows[-1]["pred_corners"],
        "teacher_logits": rows[-1]["pred_logits"],
    }
    pre = {
        "pred_logits": part(layers.pre_logits),
        "pred_boxes": part(layers.pre_boxes),
    }
    return rows, teacher, pre
