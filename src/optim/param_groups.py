"""Which parameters learn at which rate and with which decay; and torch's optimizers over these groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..core.contracts import Learning
from ..core.errors import ConfigError
from ..core.registry import Argument, arguments_of, register
from ..core.validate import did_you_mean, matches, require, type_name
from .freezing import ALWAYS, learning_plan

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

    Those that thaw during the run are there from the start, so that no optimizer state is lost at a phase; without a gradient
    they are left alone. What thaws at another time, or learns at another rate, forms a group of its own, whose `thaw_epoch` is
    the epoch (from 0) in which it begins.

    Args:
        model: the unwrapped model; names are those of its parameters.
        groups: each a mapping with `params`, a regular expression searched in the name, and settings such as `lr`.
            Parameters that no expression matches form a last group with the optimizer's own settings.
        lr: learning rate of groups that name none.
        decay_matrices_only: split each group: norms, biases, layer scales and tokens get no weight decay. This goes by
            the type of the module that owns a parameter, not by its name.

    Returns:
        Groups for a torch optimizer, each with a `name`; empty ones are left out.

    Raises:
        ConfigError: if a parameter matches two expressions, or an expression is not valid.
    """
    plan = learning_plan(model)
    named = {name: parameter for name, parameter in model.named_parameters() if name in plan}
    owner: dict[str, int] = {}
    patterns = [_compile(group) for group in groups or []]
    for name in named:
        matching = [index for index, pattern in enumerate(patterns) if pattern.search(name)]
        if len(matching) > 1:
            raise ConfigError(
                f"optimizer.params: {name} matches both '{patterns[matching[0]].pattern}' and '{patterns[matching[1]].pattern}'"
            )
        owner[name] = matching[0] if matching else len(patterns)
    exempt = _not_decayed(model) if decay_matrices_only else set()
    result = []
    for index, group in enumerate([*(groups or []), {}]):
        settings = {key: value for key, value in group.items() if key != "params"}
        label = group.get("params", "the rest")
        members = [name for name in named if owner[name] == index]
        for part, extra, suffix in (
            ([n for n in members if n not in exempt], {}, ""),
            ([n for n in members if n in exempt], {"weight_decay": 0.0}, ", not decayed"),
        ):
            for learning in sorted(
                {plan[n] for n in part},
                key=lambda learning: (learning != ALWAYS, learning.thaw_epoch, -learning.factor),
            ):
                own, remark = _own_settings(learning, settings.get("lr", lr))
                result.append(
                    {
                        "params": [named[n] for n in part if plan[n] == learning],
                        **settings,
                        **extra,
                        **own,
                        "name": label + suffix + remark,
                    }
                )
    return result


def _own_settings(learning: Learning, lr: float) -> tuple[dict[str, Any], str]:
    """Return what sets a group apart that thaws late or learns at a rate of its own, and that in words."""
    own, remark = {}, ""
    if learning.factor != 1:
        own["lr"], remark = lr * learning.factor, f", x {learning.factor:.3g}"
    if learning.thaw_epoch:
        own["thaw_epoch"], remark = learning.thaw_epoch, f"{remark}, from epoch {learning.thaw_epoch + 1}"
    return own, remark


def _compile(group: dict[str, Any]) -> re.Pattern:
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
    """Register a torch optimizer so that YAML sets its arguments and the groups, and the program gives the model."""

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
    build.__extra_arguments__ = lambda: accepted
    register(optimizer.__name__)(build)


for _optimizer in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
    _register_optimizer(_optimizer)
