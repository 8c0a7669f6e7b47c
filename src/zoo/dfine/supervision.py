"""The supervision of all heads: pairs of queries and objects, with the divisors of their sums.

The pairs come from the matchings of single heads, their union, or denoising. `DFINECriterion` computes the
terms in the same way for all of them. Letters: K heads, B images, Q queries, T objects, M matched pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .assignment import Pairs, no_pairs, unite_heads
from .losses import Balance, Matched, distillation_balance
from .matcher import HungarianMatcher
from .normalizers import Normalizers
from .prediction_heads import HeadStack


class JoinedTargets(NamedTuple):
    """Targets of all images, concatenated."""

    labels: Tensor
    """`[T]` int64."""
    boxes: Tensor
    """`[T, 4]` float32, cxcywh in 0..1."""
    counts: list[int]
    """Number of targets of each image."""


class MatchedHeads(NamedTuple):
    """All pairs of a batch, on the device of the outputs."""

    by_stack: list[Matched]
    """Pairs of each stack; each of its heads has its own."""
    union: Matched
    """Union of the matchings of all heads."""
    denoising: Matched
    """Pairs of the positive denoising queries; they are the same in all heads."""


class Supervision(NamedTuple):
    """A stack of heads, the pairs that supervise it, and the divisors of its sums."""

    stack: HeadStack
    class_pairs: Matched
    """Pairs for class terms; each head has its own."""
    box_pairs: Matched
    """Pairs for box and localization terms; all heads share them, unless `by_head`."""
    class_normalizer: Tensor | float
    """Divisor of the class terms."""
    box_normalizer: Tensor | float
    """Divisor of the box and localization terms."""
    balance: Balance | None
    """Weights of matched and unmatched queries in the distillation term; None derives them from
    `box_pairs`."""
    by_head: bool = False
    """True if each head has its own `box_pairs`."""


def join_targets(targets: list[dict[str, Tensor]]) -> JoinedTargets:
    """Concatenate the targets of all images."""
    labels = torch.cat([target["labels"] for target in targets])
    boxes = torch.cat([target["boxes"] for target in targets]).float()
    counts = [len(target["labels"]) for target in targets]
    return JoinedTargets(labels, boxes, counts)


def match_heads(
    matcher: HungarianMatcher, stacks: list[HeadStack], targets: JoinedTargets
) -> Pairs:
    """Match the heads of all stacks; heads are numbered through all stacks.

    Raises:
        NumericsError: if a matching cost is not finite.
    """
    heads = [(stack.logits.detach(), stack.boxes.detach()) for stack in stacks]
    return matcher.match(heads, targets.labels, targets.boxes, targets.counts)


def move_pairs(
    pairs: Pairs,
    stacks: list[HeadStack],
    targets: JoinedTargets,
    meta: dict[str, Any] | None,
) -> MatchedHeads:
    """Move the pairs to the device of the targets, with their union and those of the denoising queries.

    Args:
        pairs: result of `match_heads`.
        stacks: the stacks that were matched.
        targets: objects of all images.
        meta: `dn_meta` of the outputs; None without denoising.
    """
    on_host = _split_by_stack(pairs, stacks)
    on_host.append(unite_heads(pairs))
    on_host.append(_denoising_pairs(targets.counts, meta))
    on_device = pairs_to_device(on_host, targets.labels.device)
    *by_stack, union, denoising = on_device
    if meta:
        query = torch.cat(meta["dn_positive_idx"])
        denoising = denoising._replace(query=query)
    return MatchedHeads(by_stack, union, denoising)


def supervise_matching(
    stacks: list[HeadStack],
    matched: MatchedHeads,
    normalizers: Normalizers,
    use_uni_set: bool,
) -> list[Supervision]:
    """Return the supervision of each stack of matching heads.

    Args:
        stacks: the stacks that were matched.
        matched: their pairs.
        normalizers: divisors of the sums.
        use_uni_set: whether the union of all matchings supervises the boxes; otherwise the pairs of each head
            do.
    """
    supervisions = []
    balance = None
    for stack, own in zip(stacks, matched.by_stack):
        if stack.teacher_corners is not None:
            positive = matched_queries(stack, matched.union)
            balance = distillation_balance(positive)
        if use_uni_set:
            box_pairs = matched.union
            box_normalizer = normalizers.union
        else:
            box_pairs = own
            box_normalizer = normalizers.targets
        supervision = Supervision(
            stack,
            own,
            box_pairs,
            normalizers.targets,
            box_normalizer,
            balance,
            by_head=not use_uni_set,
        )
        supervisions.append(supervision)
    return supervisions


def supervise_denoising(
    stack: HeadStack,
    pairs: Matched,
    normalizers: Normalizers,
    num_groups: int,
    balance: Balance | None,
) -> Supervision:
    """Return the supervision of the denoising heads.

    Args:
        stack: the denoising heads.
        pairs: pairs of the positive denoising queries.
        normalizers: divisors of the sums.
        num_groups: number of denoising groups, each of which has a query for every object.
        balance: weights of the distillation term, those of the matching queries.
    """
    own = _for_every_head(pairs, len(stack.suffixes))
    normalizer = normalizers.targets * max(num_groups, 1)
    return Supervision(stack, own, pairs, normalizer, normalizer, balance)


def matched_queries(stack: HeadStack, pairs: Matched) -> Tensor:
    """Return True for each query that has a pair, `[B, Q]` bool."""
    boxes = stack.boxes
    matched = torch.zeros(
        boxes.shape[1:3], dtype=torch.bool, device=boxes.device
    )
    # the number True would be copied from the host, which waits for the device
    matched[pairs.image, pairs.query] = matched.new_ones(len(pairs.query))
    return matched


def pairs_to_device(
    all_pairs: list[Pairs], device: torch.device
) -> list[Matched]:
    """Move all pairs to the device in one copy, without a host-device synchronization."""
    blocks = [np.stack(pairs) for pairs in all_pairs]  # each [4, M]
    lengths = [len(pairs.query) for pairs in all_pairs]
    joined = torch.from_numpy(np.concatenate(blocks, axis=1))
    if device.type == "cuda":
        joined = joined.pin_memory()
    on_device = joined.to(device, non_blocking=True)
    return [Matched(*part) for part in on_device.split(lengths, dim=1)]


def _split_by_stack(pairs: Pairs, stacks: list[HeadStack]) -> list[Pairs]:
    """Return the pairs of each stack, with heads numbered from the first head of the stack."""
    parts = []
    start = 0
    for stack in stacks:
        end = start + len(stack.suffixes)
        inside = (pairs.head >= start) & (pairs.head < end)
        head, image, query, target = (column[inside] for column in pairs)
        parts.append(Pairs(head - start, image, query, target))
        start = end
    return parts


def _denoising_pairs(counts: list[int], meta: dict[str, Any] | None) -> Pairs:
    """Pair each positive denoising query with the object that it was made from.

    The column of queries is zero here, because their positions are on the device already.

    Args:
        counts: number of objects of each image.
        meta: `dn_meta` of the outputs; None without denoising.
    """
    if not meta or not meta["dn_num_group"]:
        return no_pairs()
    num_groups = meta["dn_num_group"]
    chosen = meta.get("dn_chosen") or [None] * len(counts)
    images = []
    targets = []
    start = 0
    for index, (count, few) in enumerate(zip(counts, chosen)):
        objects = np.arange(count) if few is None else few.numpy()
        targets.append(np.tile(start + objects, num_groups))
        images.append(np.full(num_groups * len(objects), index))
        start += count
    image = np.concatenate(images)
    target = np.concatenate(targets)
    return Pairs(np.zeros_like(image), image, np.zeros_like(image), target)


def _for_every_head(pairs: Matched, heads: int) -> Matched:
    """Repeat the pairs for each of several heads."""
    head = torch.arange(heads, device=pairs.query.device)
    head = head.repeat_interleave(len(pairs.query))
    return Matched(
        head,
        pairs.image.repeat(heads),
        pairs.query.repeat(heads),
        pairs.target.repeat(heads),
    )
