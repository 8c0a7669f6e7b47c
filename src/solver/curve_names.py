"""Readable names of the values of a run, for TensorBoard, `results.csv` and `curves.png`.

D-FINE's losses have a term for each decoder layer and kind of query, and an optimizer numbers its parameter
groups. Readers look for "the box loss" and "the learning rate of the backbone".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

_OF_A_HEAD = re.compile(r"_(aux|dn|enc|pre)(_.*)?$")
"""End of the name of a term that belongs to one decoder layer, to denoising or to the encoder."""

AP_TAGS = {
    "AP": "AP/50-95",
    "AP50": "AP/50",
    "AP75": "AP/75",
    "AP_small": "AP/small",
    "AP_medium": "AP/medium",
    "AP_large": "AP/large",
    "AR1": "AR/1",
    "AR10": "AR/10",
    "AR100": "AR/100",
    "AR_small": "AR/small",
    "AR_medium": "AR/medium",
    "AR_large": "AR/large",
    "F1": "F1/best",
    "F1_threshold": "F1/threshold",
    "F1_precision": "F1/precision",
    "F1_recall": "F1/recall",
}
"""TensorBoard tag of each metric."""

EPOCH_TAGS = {
    "train_loss": "epoch/loss",
    "images_per_second": "epoch/images_per_second",
    "data_wait": "epoch/data_wait",
    "seconds": "epoch/seconds",
}
"""TensorBoard tags of other values of an epoch."""


def term_name(name: str) -> str:
    """Return the name of a loss term without its prefix.

    Example:
        >>> term_name("loss_vfl_aux_0")
        'vfl_aux_0'
    """
    return name.removeprefix("loss_") or name


def kind_of(name: str) -> str:
    """Return the kind of a loss term, the same for all layers and kinds of queries.

    Example:
        >>> kind_of("loss_vfl_aux_0"), kind_of("loss_bbox_dn_pre"), kind_of("loss_gram")
        ('vfl', 'bbox', 'gram')
    """
    return _OF_A_HEAD.sub("", term_name(name))


def sums_by_kind(losses: Mapping[str, float]) -> dict[str, float]:
    """Return the sum of the terms of each kind; all sums together are the loss.

    Example:
        >>> sums_by_kind({"loss_vfl": 1.0, "loss_vfl_aux_0": 2.0, "loss_bbox": 0.5})
        {'vfl': 3.0, 'bbox': 0.5}
    """
    sums: dict[str, float] = {}
    for name, value in losses.items():
        kind = kind_of(name)
        sums[kind] = sums.get(kind, 0.0) + value
    return sums


def step_scalars(
    losses: Mapping[str, float],
    rates: Mapping[str, float],
    weights: Mapping[str, float],
) -> dict[str, float]:
    """Return the values of a step by tag.

    Example:
        >>> step_scalars({"loss_vfl": 1.0, "loss_vfl_aux_0": 2.0}, {"backbone": 1e-5}, {})["loss/vfl"]
        3.0

    Args:
        losses: loss terms by name.
        rates: learning rate of each parameter group, by `group_names`.
        weights: factors of loss terms that change during the run, by name of the term.
    """
    values = {"loss/total": sum(losses.values())}
    for kind, value in sums_by_kind(losses).items():
        values[f"loss/{kind}"] = value
    for name, value in losses.items():
        values[f"loss_terms/{term_name(name)}"] = value
    for name, rate in rates.items():
        values[f"lr/{name}"] = rate
    for name, weight in weights.items():
        values[f"loss_weight/{term_name(name)}"] = weight
    return values


def epoch_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of an epoch by tag, without undefined ones.

    Example:
        >>> epoch_scalars({"AP50": 0.5, "AP_small": None, "train_loss": 2.0})
        {'AP/50': 0.5, 'epoch/loss': 2.0}
    """
    values = {}
    for name, tag in (AP_TAGS | EPOCH_TAGS).items():
        if record.get(name) is not None:
            values[tag] = record[name]
    return values


def group_names(
    model: nn.Module, groups: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return a short unique name for each parameter group, from the modules that own its parameters.

    The group of parameters that match no expression of `optimizer.params` is called "default". Groups that
    would have the same name get a remark: `no_decay`, the epoch in which they are unfrozen, or a number.

    Args:
        model: unwrapped model.
        groups: groups of its optimizer.
    """
    name_of = {id(p): name for name, p in model.named_parameters()}
    names = []
    for group in groups:
        members = []
        for parameter in group["params"]:
            if id(parameter) in name_of:
                members.append(name_of[id(parameter)])
        label = str(group.get("name", ""))
        is_rest = label.partition(",")[0] == "the rest"
        names.append("default" if is_rest else _owner(members) or "other")
    remarks = [_remarks(group) for group in groups]
    return _made_unique(names, remarks)


def _owner(members: Sequence[str]) -> str:
    """Return the module that owns all these parameters, or the top-level modules that own some of them."""
    if not members:
        return ""
    paths = [name.split(".")[:-1] for name in members]
    common = []
    for parts in zip(*paths):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    if common:
        return ".".join(common)
    tops = dict.fromkeys(name.split(".")[0] for name in members)
    return "_".join(tops)


def _remarks(group: Mapping[str, Any]) -> str:
    remark = ""
    if group.get("weight_decay") == 0:
        remark += "_no_decay"
    if group.get("thaw_epoch"):
        remark += f"_from_epoch_{group['thaw_epoch'] + 1}"
    return remark


def _made_unique(names: Sequence[str], remarks: Sequence[str]) -> list[str]:
    """Add remarks, then numbers, to names that occur more than once."""
    count = Counter(names)
    remarked = []
    for name, remark in zip(names, remarks):
        remarked.append(name + remark if count[name] > 1 else name)
    return list(_numbered(remarked))


def _numbered(names: Iterable[str]) -> Iterable[str]:
    seen: set[str] = set()
    for name in names:
        unique = name
        number = 2
        while unique in seen:
            unique = f"{name}_{number}"
            number += 1
        seen.add(unique)
        yield unique
