"""Groups of parameters with their own learning rate and decay, and torch's optimizers over them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core.contracts import Learning
from ..core.errors import ConfigError
from ..core.registry import Argument, arguments_of, register
from ..core.validate import did_you_mean, matches, require, type_name
from .freezing import FROM_THE_START, learning_plan

_MATRIX_OWNERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.MultiheadAttention)
"""Modules whose weights are decayed with `decay_matrices_only`."""


def build_param_groups(
    model: nn.Module,
    groups: Sequence[dict[str, Any]] | None,
    *,
    lr: float = 1e-3,
    decay_matrices_only: bool = False,
) -> list[dict[str, Any]]:
    """Sort the parameters of a model that are ever trained into disjoint and complete groups.

    Those that thaw during the run are there from the start, so that no optimizer state is lost at a phase;
    without a gradient they are left alone. What thaws at another time, or learns at another rate, forms a
    group of its own, whose `thaw_epoch` is the epoch (from 0) in which it begins.

    Args:
        model: the unwrapped model; names are those of its parameters.
        groups: each a mapping with `params`, a regular expression searched in the name, and settings such as
            `lr`. Parameters that no expression matches form a last group with the optimizer's own settings.
        lr: learning rate of groups that name none.
        decay_matrices_only: split each group: norms, biases, layer scales and tokens get no weight decay.
            This goes by the type of the module that owns a parameter, not by its name.

    Returns:
        Groups for a torch optimizer, each with a `name`; empty ones are left out.

    Raises:
        ConfigError: if a parameter matches two expressions, or an expression is not valid.
    """
    plan = learning_plan(model)
    named = {name: parameter for name, parameter in model.named_parameters() if name in plan}
    patterns = [_compile_pattern(group) for group in groups or []]
    owner = {name: _matching_group(name, patterns) for name in named}
    exempt = _not_decayed(model) if decay_matrices_only else set()
    result = []
    for index, group in enumerate([*(groups or []), {}]):
        settings = {key: value for key, value in group.items() if key != "params"}
        label = group.get("params", "the rest")
        members = [name for name in named if owner[name] == index]
        decayed = [name for name in members if name not in exempt]
        not_decayed = [name for name in members if name in exempt]
        result += _split_by_learning(decayed, plan, named, settings, label, lr)
        result += _split_by_learning(
            not_decayed, plan, named, settings | {"weight_decay": 0.0}, label + ", not decayed", lr
        )
    return result


def _matching_group(name: str, patterns: Sequence[re.Pattern[str]]) -> int:
    """Return the index of the pattern that a parameter's name matches; the number of patterns if none
    does."""
    matching = [index for index, pattern in enumerate(patterns) if pattern.search(name)]
    if len(matching) > 1:
        first, second = (patterns[index].pattern for index in matching[:2])
        raise ConfigError(f"optimizer.params: {name} matches both '{first}' and '{second}'")
    return matching[0] if matching else len(patterns)


def _split_by_learning(
    members: Sequence[str],
    plan: Mapping[str, Learning],
    named: Mapping[str, nn.Parameter],
    settings: dict[str, Any],
    label: str,
    lr: float,
) -> list[dict[str, Any]]:
    """Return one group for each way in which members learn: from the start, then by the epoch in which they
    thaw."""
    ways = sorted(
        {plan[name] for name in members},
        key=lambda learning: (learning != FROM_THE_START, learning.thaw_epoch, -learning.factor),
    )
    groups = []
    for learning in ways:
        own, remark = _learning_overrides(learning, settings.get("lr", lr))
        parameters = [named[name] for name in members if plan[name] == learning]
        groups.append({"params": parameters, **settings, **own, "name": label + remark})
    return groups


def _learning_overrides(learning: Learning, lr: float) -> tuple[dict[str, Any], str]:
    """Return the overrides of a late or differently scaled parameter group, and a label for it."""
    own: dict[str, Any] = {}
    remark = ""
    if learning.factor != 1:
        own["lr"] = lr * learning.factor
        remark = f", x {learning.factor:.3g}"
    if learning.thaw_epoch:
        own["thaw_epoch"] = learning.thaw_epoch
        remark = f"{remark}, from epoch {learning.thaw_epoch + 1}"
    return own, remark


def _compile_pattern(group: dict[str, Any]) -> re.Pattern:
    text = group.get("params")
    if not isinstance(text, str):
        raise ConfigError(
            f"optimizer.params: {group!r} needs 'params', a regular expression over parameter names"
        )
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"optimizer.params: '{text}' is not a regular expression: {error}") from None


def _not_decayed(model: nn.Module) -> set[str]:
    exempt = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if not isinstance(module, _MATRIX_OWNERS) or parameter.ndim < 2 or name.endswith("bias"):
                exempt.add(name)
    return exempt


def _check_settings(groups: Sequence[dict[str, Any]], accepted: dict[str, Argument]) -> None:
    """Refuse settings of a group that the optimizer would not use, or not survive."""
    for index, group in enumerate(groups):
        for key, value in group.items():
            place = f"optimizer.params[{index}].{key}"
            if key == "params":
                continue
            if key not in accepted:
                raise ConfigError(f"unknown key '{place}'{did_you_mean(key, list(accepted))}")
            require(
                matches(value, accepted[key].annotation),
                f"{place} is {value!r}, expected {type_name(accepted[key].annotation)}",
            )
            require(
                key not in ("lr", "weight_decay") or value >= 0, f"{place} is {value}, expected at least 0"
            )


def _register_optimizer(optimizer: type[torch.optim.Optimizer]) -> None:
    """Register a torch optimizer so that YAML sets its arguments and the groups, and the program gives the
    model."""

    def build(
        model: nn.Module,
        params: list[dict[str, Any]] | None = None,
        decay_matrices_only: bool = False,
        **settings: Any,
    ) -> torch.optim.Optimizer:
        settings.setdefault(
            "fused", not settings.get("foreach")
        )  # one kernel for all tensors; torch's own default is a loop on a CPU
        _check_settings(params or [], accepted)
        lr = settings.get("lr", accepted["lr"].default)
        return optimizer(
            build_param_groups(model, params, lr=lr, decay_matrices_only=decay_matrices_only), **settings
        )

    accepted = arguments_of(optimizer, skip="params")
    register(optimizer.__name__, extra_arguments=lambda: accepted)(build)


for _optimizer in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
    _register_optimizer(_optimizer)
