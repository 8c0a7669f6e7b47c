"""Build parameter groups with their own learning rate and weight decay, and torch optimizers over them."""

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

_MATRIX_OWNERS = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.MultiheadAttention,
)
"""Modules whose weights get weight decay with `decay_matrices_only`."""


def build_param_groups(
    model: nn.Module,
    groups: Sequence[dict[str, Any]] | None,
    *,
    lr: float = 1e-3,
    decay_matrices_only: bool = False,
) -> list[dict[str, Any]]:
    """Sort all parameters that are trained at any time into disjoint and complete groups.

    Parameters that are unfrozen later are included from the start, so that a new phase loses no optimizer
    state; the optimizer skips them while they have no gradient. Parameters with another start epoch or rate
    factor form groups of their own, whose `thaw_epoch` is their first epoch (from 0).

    Args:
        model: unwrapped model.
        groups: mappings with `params`, a regular expression searched in parameter names, and settings such as
            `lr`. Parameters that match no expression form a last group with the optimizer's own settings.
        lr: learning rate of groups without `lr`.
        decay_matrices_only: disable weight decay for norms, biases, layer scales and tokens. This depends on
            the type of the module that owns a parameter, not on its name.

    Returns:
        Non-empty groups for a torch optimizer, each with a `name`.

    Raises:
        ConfigError: if a parameter matches two expressions, or an expression is invalid.
    """
    plan = learning_plan(model)
    named: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if name in plan:
            named[name] = parameter
    patterns = [_compile_pattern(group) for group in groups or []]
    owner = {name: _matching_group(name, patterns) for name in named}
    exempt = _not_decayed(model) if decay_matrices_only else set()
    result = []
    for index, group in enumerate([*(groups or []), {}]):
        settings = dict(group)
        label = settings.pop("params", "the rest")
        decayed: list[str] = []
        not_decayed: list[str] = []
        for name in named:
            if owner[name] == index:
                members = not_decayed if name in exempt else decayed
                members.append(name)
        result += _split_by_learning(decayed, plan, named, settings, label, lr)
        settings["weight_decay"] = 0.0
        label += ", not decayed"
        result += _split_by_learning(
            not_decayed, plan, named, settings, label, lr
        )
    return result


def _matching_group(name: str, patterns: Sequence[re.Pattern[str]]) -> int:
    """Return the index of the pattern that matches a name, or the number of patterns if none does."""
    matching = []
    for index, pattern in enumerate(patterns):
        if pattern.search(name):
            matching.append(index)
    if len(matching) > 1:
        first = patterns[matching[0]].pattern
        second = patterns[matching[1]].pattern
        raise ConfigError(
            f"optimizer.params: {name} matches both '{first}' and '{second}'"
        )
    return matching[0] if matching else len(patterns)


def _split_by_learning(
    members: Sequence[str],
    plan: Mapping[str, Learning],
    named: Mapping[str, nn.Parameter],
    settings: dict[str, Any],
    label: str,
    lr: float,
) -> list[dict[str, Any]]:
    """Return one group for each start epoch and rate factor of the members, ordered by start epoch."""
    parameters: dict[Learning, list[nn.Parameter]] = {}
    for name in members:
        parameters.setdefault(plan[name], []).append(named[name])
    groups = []
    for learning in sorted(parameters, key=_order):
        own, remark = _learning_overrides(learning, settings.get("lr", lr))
        group = {"params": parameters[learning], **settings, **own}
        group["name"] = label + remark
        groups.append(group)
    return groups


def _order(learning: Learning) -> tuple[bool, int, float]:
    """Return a sort key: trained from the start first, then by start epoch, then from high to low rate."""
    return learning != FROM_THE_START, learning.thaw_epoch, -learning.factor


def _learning_overrides(
    learning: Learning, lr: float
) -> tuple[dict[str, Any], str]:
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
        raise ConfigError(
            f"optimizer.params: '{text}' is not a regular expression: {error}"
        ) from None


def _not_decayed(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay: all but the matrices of `_MATRIX_OWNERS`."""
    exempt = set()
    for prefix, module in model.named_modules():
        owns_matrices = isinstance(module, _MATRIX_OWNERS)
        for name, parameter in module.named_parameters(prefix, recurse=False):
            is_bias = parameter.ndim < 2 or name.endswith("bias")
            if is_bias or not owns_matrices:
                exempt.add(name)
    return exempt


def _check_settings(
    groups: Sequence[dict[str, Any]], accepted: dict[str, Argument]
) -> None:
    """Raise if a group has settings that the optimizer does not accept."""
    for index, group in enumerate(groups):
        for key, value in group.items():
            place = f"optimizer.params[{index}].{key}"
            if key == "params":
                continue
            if key not in accepted:
                raise ConfigError(
                    f"unknown key '{place}'{did_you_mean(key, list(accepted))}"
                )
            expected = accepted[key].annotation
            require(
                matches(value, expected),
                f"{place} is {value!r}, expected {type_name(expected)}",
            )
            if key in ("lr", "weight_decay"):
                require(value >= 0, f"{place} is {value}, expected at least 0")


def _register_optimizer(optimizer: type[torch.optim.Optimizer]) -> None:
    """Register a torch optimizer: YAML sets its arguments and groups, the program passes the model."""

    def build(
        model: nn.Module,
        params: list[dict[str, Any]] | None = None,
        decay_matrices_only: bool = False,
        **settings: Any,
    ) -> torch.optim.Optimizer:
        # One kernel for all tensors. On a CPU torch would otherwise loop over tensors.
        settings.setdefault("fused", not settings.get("foreach"))
        _check_settings(params or [], accepted)
        lr = settings.get("lr", accepted["lr"].default)
        groups = build_param_groups(
            model, params, lr=lr, decay_matrices_only=decay_matrices_only
        )
        return optimizer(groups, **settings)

    accepted = arguments_of(optimizer, skip="params")
    register(optimizer.__name__, extra_arguments=lambda: accepted)(build)


for _optimizer in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
    _register_optimizer(_optimizer)
