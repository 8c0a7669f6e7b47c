"""D-FINE's training loss: the heads, matched pairs, normalizers and weights (`_weighted_terms`) of each term."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, NumericsError
from ...core.registry import register
from ...ops.boxes import cxcywh_to_xyxy, iou_and_giou
from ...runtime.distributed import sum_over_ranks, world_size
from .assignment import Pairs, unite_heads
from .distribution import box_to_bins, weighting_sequence
from .losses import (
    Balance,
    Matched,
    box_losses,
    decoupled_distillation_loss,
    distillation_balance,
    fine_grained_localization_loss,
    focal_loss,
    matchability_aware_loss,
    varifocal_loss,
)
from .matcher import HungarianMatcher
from .prediction_heads import HeadStack, denoising_heads, matching_heads

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
"""Terms that each entry of `losses` computes."""


class Normalizers(NamedTuple):
    """Divisors of the sums: counts over all ranks, and over all micro-batches of an accumulation window,
    per rank."""

    targets: Tensor | float
    """Number of objects; divides class terms, and with the number of groups all denoising terms."""
    union: Tensor | float
    """Number of pairs in the union of all matchings; divides box and localization terms."""
    share: float = 1.0
    """Part of the window that this micro-batch is; multiplies the distillation terms, which are means."""


class _Batch(NamedTuple):
    """Targets of all images end to end."""

    labels: Tensor
    """`[T]`."""
    boxes: Tensor
    """`[T, 4]` cxcywh."""
    counts: list[int]


class _Supervision(NamedTuple):
    """A stack of heads, the pairs that supervise it, and what its sums are divided by."""

    stack: HeadStack
    class_pairs: Matched
    """For class terms: each head has its own."""
    box_pairs: Matched
    """For box and localization terms: the heads share them."""
    class_normalizer: Tensor | float
    box_normalizer: Tensor | float
    balance: Balance | None
    """Weights of the two parts of the distillation term; None for those of these pairs."""


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
    ) -> None:
        """Store the settings.

        Args:
            matcher: assigns queries to targets.
            weight_dict: weight of each term, `loss_vfl`, `loss_mal`, `loss_focal`, `loss_bbox`, `loss_giou`,
                `loss_fgl`, `loss_ddf`; a term without one, or with null, is left out.
            losses: "vfl", "mal" or "focal" for classes, "boxes", "local" (fine-grained localization and
                distillation).
            alpha: weight of negatives in the class loss.
            gamma: focal exponent.
            num_classes: C.
            reg_max: bins of an edge less one.
            boxes_weight_format: multiply the GIoU term by the pair's IoU or GIoU, and use that as class
                target.
            mal_alpha: weight of negatives in the matchability-aware loss; None for 1.
        """
        super().__init__()
        emitted = {name for loss in losses for name in TERMS[loss]}
        self.weights = {
            name: float(weight)
            for name, weight in weight_dict.items()
            if weight is not None
        }
        idle = set(self.weights) - emitted
        if idle:
            raise ConfigError(
                f"DFINECriterion.weight_dict weighs {', '.join(sorted(idle))}, which none of losses "
                f"{list(losses)} computes"
            )
        self.matcher = matcher
        self.losses = list(losses)
        self.gamma, self.num_classes, self.reg_max = gamma, num_classes, reg_max
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
            outputs: from `DFINETransformer` in training mode.
            targets: for each image `labels [T]` int64 and `boxes [T, 4]` (cxcywh, 0..1).
            normalizers: for gradient accumulation, those of the whole window; otherwise those of this batch
                over all ranks.

        Returns:
            Weighted scalars by name; their sum is the loss.

        Raises:
            NumericsError: if a matching cost is not finite.
        """
        batch = _join_targets(targets)
        terms: dict[str, Tensor] = {}
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            supervisions, share = self._match(outputs, batch, normalizers)
            for supervision in supervisions:
                terms.update(self._class_terms(supervision, batch))
                terms.update(self._box_terms(supervision, batch, outputs, share))
            terms.update(self._teacher_term(outputs, supervisions[-1].stack))
        return terms

    @torch.no_grad()
    def count(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]
    ) -> tuple[int, int]:
        """Return this batch's numbers of objects and of pairs in the union of matchings, for
        `window_normalizers`."""
        batch = _join_targets(targets)
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            pairs = self._pairs_of_heads(
                matching_heads(outputs, self.reg_max + 1), batch
            )
        return len(batch.labels), len(unite_heads(pairs).query)

    def window_normalizers(
        self,
        counts: Sequence[tuple[int, int]],
        images: Sequence[int],
        device: torch.device,
    ) -> list[Normalizers]:
        """Return what each batch of an accumulation window is normalised by, so that the losses of all add up
        to those of one batch.

        Args:
            counts: from `count`, for each batch.
            images: in each batch; the distillation terms, which are means, count by it.
            device: where the losses are.
        """
        num_targets = sum(targets for targets, _ in counts)
        num_union = sum(union for _, union in counts)
        whole = all_rank_normalizers(num_targets, num_union, device)
        return [whole._replace(share=number / sum(images)) for number in images]

    # ---- step 1: match ----

    def _match(
        self,
        outputs: dict[str, Any],
        batch: _Batch,
        normalizers: Normalizers | None,
    ) -> tuple[list[_Supervision], float]:
        """Assign objects to the queries of all heads, denoising heads last; return also the distillation's
        share."""
        stacks = matching_heads(outputs, self.reg_max + 1)
        try:
            pairs = self._pairs_of_heads(stacks, batch)
        except NumericsError:
            all_rank_normalizers(
                len(batch.labels), 0, batch.labels.device
            )  # the other ranks wait for this
            raise
        meta = outputs.get("dn_meta")
        on_host = [
            *_split_by_stack(pairs, stacks),
            unite_heads(pairs),
            _denoising_pairs(batch.counts, meta),
        ]
        *pairs_of_stacks, union, dn_pairs = _to_device(on_host, batch.labels.device)
        if normalizers is None:
            normalizers = all_rank_normalizers(
                len(batch.labels), len(union.query), batch.labels.device
            )

        supervisions = []
        balance = None
        for stack, own in zip(stacks, pairs_of_stacks):
            if stack.teacher_corners is not None:
                balance = distillation_balance(_matched_queries(stack, union))
            supervisions.append(
                _Supervision(
                    stack, own, union, normalizers.targets, normalizers.union, balance
                )
            )
        if meta:
            stack = denoising_heads(outputs, self.reg_max + 1)
            dn_pairs = dn_pairs._replace(query=torch.cat(meta["dn_positive_idx"]))
            own = _for_every_head(dn_pairs, len(stack.suffixes))
            normalizer = normalizers.targets * max(meta["dn_num_group"], 1)
            supervisions.append(
                _Supervision(stack, own, dn_pairs, normalizer, normalizer, balance)
            )
        return supervisions, normalizers.share

    def _pairs_of_heads(self, stacks: list[HeadStack], batch: _Batch) -> Pairs:
        return self.matcher.match(
            [(stack.logits.detach(), stack.boxes.detach()) for stack in stacks], *batch
        )

    # ---- step 2: class terms ----

    def _class_terms(
        self, supervision: _Supervision, batch: _Batch
    ) -> Iterator[tuple[str, Tensor]]:
        stack = supervision.stack
        pairs = supervision.class_pairs
        predicted = stack.boxes.detach()[pairs.head, pairs.image, pairs.query]
        iou, giou = iou_and_giou(
            cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(batch.boxes[pairs.target])
        )
        quality = giou if self.boxes_weight_format == "giou" else iou
        labels = (
            batch.labels[pairs.target]
            if stack.logits.shape[-1] > 1
            else torch.zeros_like(pairs.target)
        )
        for term, loss in CLASS_LOSSES.items():
            if term in self.weights:
                sums = loss(
                    stack.logits, pairs, labels, quality, self.alphas[term], self.gamma
                )
                yield from self._weighted_terms(
                    term, stack.suffixes, sums / supervision.class_normalizer
                )

    # ---- step 3: terms about where objects are ----

    def _box_terms(
        self,
        supervision: _Supervision,
        batch: _Batch,
        outputs: dict[str, Any],
        share: float,
    ) -> Iterator[tuple[str, Tensor]]:
        stack = supervision.stack
        pairs = supervision.box_pairs
        targets = batch.boxes[pairs.target]
        losses = box_losses(
            stack.boxes[:, pairs.image, pairs.query], targets, self.boxes_weight_format
        )
        for term, sums in (("loss_bbox", losses.l1), ("loss_giou", losses.giou)):
            if term in self.weights:
                yield from self._weighted_terms(
                    term, stack.suffixes, sums / supervision.box_normalizer
                )
        if stack.corners is None or stack.reference is None:
            return
        if "loss_fgl" in self.weights:
            sums = self._localization_sums(
                stack.corners,
                stack.reference,
                pairs,
                targets,
                losses.iou,
                outputs,
            )
            yield from self._weighted_terms(
                "loss_fgl", stack.suffixes, sums / supervision.box_normalizer
            )
        if "loss_ddf" in self.weights and stack.teacher_corners is not None:
            sums = _distillation_sums(
                supervision, stack.corners, stack.teacher_corners, losses.iou
            )
            yield from self._weighted_terms("loss_ddf", stack.suffixes, sums * share)

    def _localization_sums(
        self,
        corners: Tensor,
        reference: Tensor,
        pairs: Matched,
        targets: Tensor,
        iou: Tensor,
        outputs: dict[str, Any],
    ) -> Tensor:
        """Return the fine-grained localization loss of each head, summed over pairs."""
        reg_scale = outputs["reg_scale"].detach()
        bins = box_to_bins(
            reference[pairs.image, pairs.query],
            cxcywh_to_xyxy(targets),
            weighting_sequence(self.reg_max, outputs["up"].detach(), reg_scale),
            reg_scale,
        )
        return fine_grained_localization_loss(
            corners[:, pairs.image, pairs.query], bins, iou[: len(corners)]
        )

    def _teacher_term(
        self, outputs: dict[str, Any], stack: HeadStack
    ) -> Iterator[tuple[str, Tensor]]:
        """Report a distillation loss of zero for the last denoising layer, which is the teacher itself."""
        if (
            outputs.get("dn_meta")
            and "loss_ddf" in self.weights
            and stack.corners is not None
        ):
            yield f"loss_ddf_dn_{len(stack.corners) - 1}", stack.corners.new_zeros(())

    def _weighted_terms(
        self, term: str, suffixes: list[str], values: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        for suffix, value in zip(suffixes, (values * self.weights[term]).unbind()):
            yield term + suffix, value


def all_rank_normalizers(
    num_targets: int, num_union: int, device: torch.device
) -> Normalizers:
    """Return the mean counts over ranks, at least 1, without a transfer to the host."""
    if world_size() == 1:
        return Normalizers(max(float(num_targets), 1.0), max(float(num_union), 1.0))
    own = torch.tensor([num_targets, num_union], dtype=torch.float32).to(
        device, non_blocking=True
    )
    targets, union = (sum_over_ranks(own) / world_size()).clamp(min=1).unbind()
    return Normalizers(targets, union)


def _join_targets(targets: list[dict[str, Tensor]]) -> _Batch:
    return _Batch(
        torch.cat([t["labels"] for t in targets]),
        torch.cat([t["boxes"] for t in targets]).float(),
        [len(t["labels"]) for t in targets],
    )


def _distillation_sums(
    supervision: _Supervision,
    corners: Tensor,
    teacher_corners: Tensor,
    iou: Tensor,
) -> Tensor:
    """Return the distillation loss of each head but the last, which is the teacher."""
    stack = supervision.stack
    pairs = supervision.box_pairs
    students = len(corners) - 1
    assert stack.teacher_logits is not None  # a teacher has both
    trust = (
        stack.teacher_logits.sigmoid().amax(-1).repeat(students, 1, 1)
    )  # [L - 1, B, Q]
    trust[:, pairs.image, pairs.query] = iou[:students]
    positive = _matched_queries(stack, pairs)
    balance = supervision.balance or distillation_balance(positive)
    return decoupled_distillation_loss(
        corners[:students], teacher_corners, trust, positive, balance
    )


def _denoising_pairs(counts: list[int], meta: dict[str, Any] | None) -> Pairs:
    """Pair each positive denoising query with the object that it was made from.

    The queries are filled in on the device.

    Args:
        counts: number of objects of each image.
        meta: `dn_meta` of the outputs; None without denoising.
    """
    if not meta or not meta["dn_num_group"]:
        return Pairs(*[np.zeros(0, np.int64)] * 4)
    num_groups = meta["dn_num_group"]
    chosen = meta.get("dn_chosen")
    starts = np.cumsum(counts) - counts
    objects = [
        start + (np.arange(n) if few is None else few.numpy())
        for start, n, few in zip(starts, counts, chosen or [None] * len(counts))
    ]
    image = np.repeat(
        np.arange(len(counts)), [num_groups * len(own) for own in objects]
    )
    target = np.concatenate([np.tile(own, num_groups) for own in objects])
    return Pairs(np.zeros_like(image), image, np.zeros_like(image), target)


def _split_by_stack(pairs: Pairs, stacks: list[HeadStack]) -> list[Pairs]:
    """Return the pairs of each stack, with heads counted from its first."""
    parts = []
    start = 0
    for stack in stacks:
        end = start + len(stack.suffixes)
        inside = (pairs.head >= start) & (pairs.head < end)
        parts.append(
            Pairs(pairs.head[inside] - start, *(column[inside] for column in pairs[1:]))
        )
        start = end
    return parts


def _for_every_head(pairs: Matched, heads: int) -> Matched:
    head = torch.arange(heads, device=pairs.query.device).repeat_interleave(
        len(pairs.query)
    )
    return Matched(head, *(column.repeat(heads) for column in pairs[1:]))


def _to_device(all_pairs: list[Pairs], device: torch.device) -> list[Matched]:
    """Move all pairs in one copy."""
    joined = torch.from_numpy(
        np.concatenate([np.stack(pairs) for pairs in all_pairs], axis=1)
    )
    if device.type == "cuda":
        joined = joined.pin_memory()
    parts = joined.to(device, non_blocking=True).split(
        [len(pairs.query) for pairs in all_pairs], dim=1
    )
    return [Matched(*part) for part in parts]


def _matched_queries(stack: HeadStack, pairs: Matched) -> Tensor:
    """Return which queries have a pair, `[B, Q]` bool."""
    matched = torch.zeros(
        stack.boxes.shape[1:3], dtype=torch.bool, device=stack.boxes.device
    )
    matched[pairs.image, pairs.query] = True
    return matched
