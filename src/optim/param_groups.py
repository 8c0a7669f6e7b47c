"""Which parameters learn at which rate and with which decay; and torch's optimizers over these groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..core.errors import ConfigError
from ..core.registry import Argument, arguments_of, register
from ..core.validate import did_you_mean, matches, require, type_name

_MATRIX_OWNERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.MultiheadAttention)
"""Modules whose weights are decayed with `decay_matrices_only`."""


def build_param_groups(model: nn.Module, groups: Sequence[dict[str, Any]] | None, *, decay_matrices_only: bool = False) -> list[dict[str, Any]]:
    """Sort the trainable parameters of a model into disjoint and complete groups.

    Args:
        model: the unwrapped model; names are those of its parameters.
        groups: each a mapping with `params`, a regular expression searched in the name, and settings such as `lr`.
            Parameters that no expression matches form a last group with the optimizer's own settings.
        decay_matrices_only: split each group: norms, biases, layer scales and tokens get no weight decay. This goes by
            the type of the module that owns a parameter, not by its name.

    Returns:
        Groups for a torch optimizer, each with a `name`; empty ones are left out.

    Raises:
        ConfigError: if a parameter matches two expressions, or an expression is not valid.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    owner: dict[str, int] = {}
    patterns = [_compile(group) for group in groups or []]
    for name in named:
        matching = [index for index, pattern in enumerate(patterns) if pattern.search(name)]
        if len(matching) > 1:
            raise ConfigError(f"optimizer.params: {name} matches both '{patterns[matching[0]].pattern}' and '{patterns[matching[1]].pattern}'")
        owner[name] = matching[0] if matching else len(patterns)
    exempt = _not_decayed(model) if decay_matrices_only else set()
    result = []
    for index, group in enumerate([*(groups or []), {}]):
        settings = {key: value for key, value in group.items() if key != "params"}
        label = group.get("params", "the rest")
        members = [name for name in named if owner[name] == index]
        for part, extra, suffix in (([n for n in members if n not in exempt], {}, ""),
                                    ([n for n in members if n in exempt], {"weight_decay": 0.0}, ", not decayed")):
            if part:
                result.append({"params": [named[n] for n in part], **settings, **extra, "name": label + suffix})
    return result


def _compile(group: dict[str, Any]) -> re.Pattern:
    text = group.get("params")
    if not isinstance(text, str):
        raise ConfigError(f"optimizer.params: {group!r} needs 'params', a regular expression over parameter names")
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
            require(matches(value, accepted[key].annotation), f"{place} is {value!r}, expected {type_name(accepted[key].annotation)}")
            require(key not in ("lr", "weight_decay") or value >= 0, f"{place} is {value}, expected at least 0")


def _register_optimizer(optimizer: type[torch.optim.Optimizer]) -> None:
    """Register a torch optimizer so that YAML sets its arguments and the groups, and the program gives the model."""

    def build(model: nn.Module, params: list[dict[str, Any]] | None = None, decay_matrices_only: bool = False,
              **settings: Any) -> torch.optim.Optimizer:
        settings.setdefault("fused", not settings.get("foreach"))  # one kernel for all tensors; torch's own default is a loop on a CPU
        _check_settings(params or [], accepted)
        return optimizer(build_param_groups(model, params, decay_matrices_only=decay_matrices_only), **settings)

    accepted = arguments_of(optimizer, skip="params")
    build.__extra_arguments__ = lambda: accepted
    register(optimizer.__name__)(build)


for _optimizer in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
    _register_optimizer(_optimizer)
