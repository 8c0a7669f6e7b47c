"""D-FINE's training loss: the settings, and the terms of all heads with their names and weights.

The pairs that supervise a head come from `supervision.py`, and the divisors of the terms from
`normalizers.py`. The loss functions are in `losses.py`; `edge_terms.py` applies them to edge distributions,
and `soft_terms.py` to the detections of a teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.contracts import TaughtDetections
from ...core.errors import ConfigError, NumericsError
from ...core.registry import register
from ...ops.boxes import cxcywh_to_xyxy, iou_and_giou
from .assignment import unite_heads
from .edge_terms import distillation_sums, localization_sums
from .losses import (
    box_losses,
    box_losses_by_head,
    focal_loss,
    matchability_aware_loss,
    varifocal_loss,
)
from .matcher import HungarianMatcher
from .normalizers import Normalizers, all_rank_normalizers, window_normalizers
from .prediction_heads import HeadStack, denoising_heads, matching_heads
from .soft_terms import soft_terms
from .supervision import (
    JoinedTargets,
    Supervision,
    join_targets,
    match_heads,
    move_pairs,
    supervise_denoising,
    supervise_matching,
)

CLASS_LOSSES = {
    "loss_vfl": varifocal_loss,
    "loss_mal": matchability_aware_loss,
    "loss_focal": focal_loss,
}

TERMS = {
    "vfl": ("loss_vfl",),
    "mal": ("loss_mal",),
    "focal": ("loss_focal",),
    "boxes": ("loss_bbox", "loss_giou"),
    "local": ("loss_fgl", "loss_ddf"),
}
"""Terms that each entry of the setting `losses` computes."""


@register()
class DFINECriterion(nn.Module):
    """Class, box, fine-grained localization and self-distillation losses over all heads of the decoder."""

    __role__ = "criterion"
    __share__ = ["num_classes"]
    __inject__ = ["matcher"]

    def __init__(
        self,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float | None],
        losses: Sequence[Literal["vfl", "mal", "focal", "boxes", "local"]],
        alpha: float = 0.2,
        gamma: float = 2.0,
        num_classes: int = 80,
        reg_max: int = 32,
        boxes_weight_format: Literal["iou", "giou"] | None = None,
        mal_alpha: float | None = None,
        use_uni_set: bool = True,
    ) -> None:
        """Store the settings.

        Args:
            matcher: matcher that assigns queries to targets.
            weight_dict: weight of each term: `loss_vfl`, `loss_mal`, `loss_focal`, `loss_bbox`, `loss_giou`,
                `loss_fgl`, `loss_ddf`. Terms that are missing or None are not computed.
            losses: "vfl", "mal" or "focal" for classes, "boxes", and "local" for fine-grained localization
                and distillation.
            alpha: weight of negatives in the varifocal loss, and of positives in the focal loss, 0..1.
            gamma: focal exponent.
            num_classes: number of classes, C.
            reg_max: number of bins of an edge less one.
            boxes_weight_format: "iou" or "giou" multiplies the GIoU term of a pair by that value; "giou" also
                makes it the class target instead of the IoU.
            mal_alpha: weight of negatives in the matchability-aware loss; None uses 1.
            use_uni_set: supervise the boxes of all heads with the union of their matchings; False uses the
                matching of each head, as DEIMv2's smallest models do.

        Raises:
            ConfigError: if `weight_dict` has a term that `losses` does not compute, or `losses` has "local"
                without the union.
        """
        super().__init__()
        emitted: set[str] = set()
        for loss in losses:
            emitted.update(TERMS[loss])
        self.weights: dict[str, float] = {}
        for name, weight in weight_dict.items():
            if weight is not None:
                self.weights[name] = float(weight)
        idle = set(self.weights) - emitted
        if idle:
            raise ConfigError(
                f"DFINECriterion.weight_dict weighs {', '.join(sorted(idle))}, which none of losses "
                f"{list(losses)} computes"
            )
        if not use_uni_set and "local" in losses:
            raise ConfigError(
                "DFINECriterion.use_uni_set is False, but losses has 'local', which needs the union of all "
                "matchings; remove 'local', loss_fgl and loss_ddf, or set use_uni_set to True"
            )
        self.matcher = matcher
        self.use_uni_set = use_uni_set
        self.losses = list(losses)
        self.gamma = gamma
        self.num_classes = num_classes
        self.reg_max = reg_max
        self.alphas = {
            "loss_vfl": alpha,
            "loss_focal": alpha,
            "loss_mal": 1.0 if mal_alpha is None else mal_alpha,
        }
        self.boxes_weight_format = boxes_weight_format

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the matcher, 0-based; its cost may change."""
        self.matcher.set_epoch(epoch)

    def forward(
        self,
        outputs: dict[str, Any],
        targets: list[dict[str, Tensor]],
        normalizers: Normalizers | None = None,
    ) -> dict[str, Tensor]:
        """Compute all terms in float32.

        Args:
            outputs: outputs of `DFINETransformer` in training mode.
            targets: `labels [T]` int64 and `boxes [T, 4]` (cxcywh, 0..1) of each image.
            normalizers: normalizers of the whole accumulation window; None uses those of this batch over all
                ranks.

        Returns:
            Weighted scalars by name. Their sum is the loss.

        Raises:
            NumericsError: if a matching cost is not finite.
        """
        batch = join_targets(targets)
        terms: dict[str, Tensor] = {}
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            supervisions, share = self._match(outputs, batch, normalizers)
            for supervision in supervisions:
                terms.update(self._class_terms(supervision, batch))
                terms.update(
                    self._box_terms(supervision, batch, outputs, share)
                )
            terms.update(self._teacher_term(outputs, supervisions[-1].stack))
        return terms

    @torch.no_grad()
    def count(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]
    ) -> tuple[int, int]:
        """Return the number of objects and the number of pairs in the union of all matchings.

        Pass them to `window_normalizers`; arguments as in `forward`.
        """
        batch = join_targets(targets)
        stacks = matching_heads(outputs, self.reg_max + 1)
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            pairs = match_heads(self.matcher, stacks, batch)
        return len(batch.labels), len(unite_heads(pairs).query)

    def window_normalizers(
        self,
        counts: Sequence[tuple[int, int]],
        images: Sequence[int],
        device: torch.device,
    ) -> list[Normalizers]:
        """Return the normalizers of each batch in an accumulation window (`normalizers.window_normalizers`).

        Args:
            counts: result of `count` for each batch.
            images: number of images in each batch.
            device: device of the losses.
        """
        return window_normalizers(counts, images, device)

    # ---- detections of a teacher ----

    def taught_terms(
        self, outputs: dict[str, Any], taught: TaughtDetections
    ) -> dict[str, Tensor]:
        """Compare the last decoder layer with a teacher's detections, in float32.

        Detections are matched like objects, by their most probable class. Each term is a sum over pairs,
        weighted by the teacher's score and divided by the sum of all scores. Queries without a pair have no
        term. The other layers learn from the last one by `loss_ddf`.

        Args:
            outputs: outputs of `DFINETransformer` in training mode.
            taught: detections of the same images.

        Returns:
            `loss_soft_cls`, the cross-entropy with the teacher's probabilities of all classes; and
            `loss_soft_bbox`, `loss_soft_giou` and `loss_soft_fgl` with the weights of these terms in
            `weight_dict`, if they have one. The score takes the place of the IoU in the last one.

        Raises:
            NumericsError: if a matching cost is not finite.
        """
        return soft_terms(
            outputs, taught, self.matcher, self.weights, self.reg_max + 1
        )

    # ---- step 1: match ----

    def _match(
        self,
        outputs: dict[str, Any],
        batch: JoinedTargets,
        normalizers: Normalizers | None,
    ) -> tuple[list[Supervision], float]:
        """Assign objects to the queries of all heads.

        Returns:
            The supervision of each stack, that of the denoising heads last, and the factor of the
            distillation terms (`Normalizers.share`).
        """
        num_targets = len(batch.labels)
        device = batch.labels.device
        stacks = matching_heads(outputs, self.reg_max + 1)
        try:
            pairs = match_heads(self.matcher, stacks, batch)
        except NumericsError:
            # The other ranks wait for this sum over ranks.
            all_rank_normalizers(num_targets, 0, device)
            raise
        meta = outputs.get("dn_meta")
        matched = move_pairs(pairs, stacks, batch, meta)
        if normalizers is None:
            num_union = len(matched.union.query)
            normalizers = all_rank_normalizers(num_targets, num_union, device)
        supervisions = supervise_matching(
            stacks, matched, normalizers, self.use_uni_set
        )
        if meta:
            supervision = supervise_denoising(
                denoising_heads(outputs, self.reg_max + 1),
                matched.denoising,
                normalizers,
                meta["dn_num_group"],
                supervisions[-1].balance,
            )
            supervisions.append(supervision)
        return supervisions, normalizers.share

    # ---- step 2: class terms ----

    def _class_terms(
        self, supervision: Supervision, batch: JoinedTargets
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the weighted value of each class term of each head."""
        stack = supervision.stack
        logits = stack.logits
        pairs = supervision.class_pairs
        predicted = stack.boxes.detach()[pairs.head, pairs.image, pairs.query]
        predicted_xyxy = cxcywh_to_xyxy(predicted)
        target_xyxy = cxcywh_to_xyxy(batch.boxes[pairs.target])
        iou, giou = iou_and_giou(predicted_xyxy, target_xyxy)
        quality = giou if self.boxes_weight_format == "giou" else iou
        if logits.shape[-1] > 1:
            labels = batch.labels[pairs.target]
        else:  # a single foreground score
            labels = torch.zeros_like(pairs.target)
        for term, loss in CLASS_LOSSES.items():
            if term in self.weights:
                alpha = self.alphas[term]
                sums = loss(logits, pairs, labels, quality, alpha, self.gamma)
                values = sums / supervision.class_normalizer
                yield from self._weighted_terms(term, stack.suffixes, values)

    # ---- step 3: terms about where objects are ----

    def _box_terms(
        self,
        supervision: Supervision,
        batch: JoinedTargets,
        outputs: dict[str, Any],
        share: float,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the weighted value of each term about boxes and their edges, for each head."""
        stack = supervision.stack
        pairs = supervision.box_pairs
        normalizer = supervision.box_normalizer
        targets = batch.boxes[pairs.target]
        if supervision.by_head:
            predicted = stack.boxes[pairs.head, pairs.image, pairs.query]
            losses = box_losses_by_head(
                predicted,
                targets,
                pairs.head,
                len(stack.boxes),
                self.boxes_weight_format,
            )
        else:
            predicted = stack.boxes[:, pairs.image, pairs.query]  # [K, M, 4]
            losses = box_losses(predicted, targets, self.boxes_weight_format)
        for term, sums in (
            ("loss_bbox", losses.l1),
            ("loss_giou", losses.giou),
        ):
            if term in self.weights:
                values = sums / normalizer
                yield from self._weighted_terms(term, stack.suffixes, values)
        if stack.corners is None or stack.reference is None:
            return
        if "loss_fgl" in self.weights:
            sums = localization_sums(
                stack.corners,
                stack.reference,
                pairs,
                targets,
                losses.iou,
                outputs,
            )
            values = sums / normalizer
            yield from self._weighted_terms("loss_fgl", stack.suffixes, values)
        if "loss_ddf" in self.weights and stack.teacher_corners is not None:
            sums = distillation_sums(
                supervision, stack.corners, stack.teacher_corners, losses.iou
            )
            yield from self._weighted_terms(
                "loss_ddf", stack.suffixes, sums * share
            )

    def _teacher_term(
        self, outputs: dict[str, Any], stack: HeadStack
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield a distillation loss of zero for the last denoising layer, which is the teacher itself."""
        if not outputs.get("dn_meta"):
            return
        if "loss_ddf" in self.weights and stack.corners is not None:
            yield (
                f"loss_ddf_dn_{len(stack.corners) - 1}",
                stack.corners.new_zeros(()),
            )

    def _weighted_terms(
        self, term: str, suffixes: list[str], values: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of a term in each head, and its value `[K]` times the weight of the term."""
        weighted = values * self.weights[term]
        for suffix, value in zip(suffixes, weighted.unbind()):
            yield term + suffix, value
