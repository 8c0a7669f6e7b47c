"""Half-precision copies of the weights for a forward pass, cast together instead of one by one.

Autocast casts each weight of a matrix product or convolution with a kernel of its own, and its gradient back
with another. Here a few kernels cast them all. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

GROUP = 48
"""Weights cast together; about as many as one kernel takes. A group's gradients arrive together."""


class HalfWeights:
    """Run forward passes under autocast with weights that are cast in groups.

    The first forward pass runs with autocast's own casts, and finds the layers that are called under autocast
    with its type. Only these get cast weights afterwards. Layers of compiled modules never do.
    """

    def __init__(self, model: nn.Module) -> None:
        """Store the model, whose first forward pass selects the layers."""
        self.model = model
        self._layers: list[nn.Module] | None = None

    @contextmanager
    def cast(self, device_type: str, dtype: torch.dtype) -> Iterator[None]:
        """Use cast weights within the body, which runs one forward pass under autocast.

        The parameters receive the gradients as usual, in a backward pass that may follow the body.
        """
        if self._layers is None:
            found = _Calls(self.model, device_type, dtype)
            try:
                yield
            finally:
                found.stop()
            self._layers = found.layers()
            return
        owners = _owners(self._layers)
        weights = [where[0][0][where[0][1]] for where in owners]
        with _replaced(owners, weights, _cast_in_groups(weights, dtype)):
            yield


class _Calls:
    """Record which layers are called under autocast."""

    def __init__(
        self, model: nn.Module, device_type: str, dtype: torch.dtype
    ) -> None:
        self.device_type = device_type
        self.dtype = dtype
        self._under_autocast: dict[nn.Module, bool] = {}
        self._hooks = [
            layer.register_forward_pre_hook(self._record)
            for layer in _candidates(model)
        ]

    def _record(self, layer: nn.Module, inputs: Any) -> None:
        kind = self.device_type
        is_under = (
            torch.is_autocast_enabled(kind)
            and torch.get_autocast_dtype(kind) == self.dtype
        )
        before = self._under_autocast.get(layer, True)
        self._under_autocast[layer] = before and is_under

    def stop(self) -> None:
        """End the recording."""
        for hook in self._hooks:
            hook.remove()

    def layers(self) -> list[nn.Module]:
        """Return the layers that were called, always under autocast, in the order of the calls."""
        return [
            layer
            for layer, is_under in self._under_autocast.items()
            if is_under
        ]


def _candidates(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of known types; subclasses may use their weights in other ways."""
    if module._compiled_call_impl is not None:
        return
    if type(module) in (nn.Linear, nn.Conv2d, nn.MultiheadAttention):
        yield module
        return
    for child in module.children():
        yield from _candidates(child)


Place = tuple[dict[str, Any], str]
"""Dictionary of a module's parameters, and the name of one."""


def _owners(layers: Sequence[nn.Module]) -> list[list[Place]]:
    """Return the places of each float32 parameter; it has several if layers share it."""
    places: dict[int, list[Place]] = {}
    for layer in layers:
        for module in layer.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.dtype == torch.float32:
                    place = (module._parameters, name)
                    places.setdefault(id(parameter), []).append(place)
    return list(places.values())


def _cast_in_groups(
    weights: Sequence[Tensor], dtype: torch.dtype
) -> Iterator[Tensor]:
    """Yield the cast weights; frozen and trainable weights are in different groups."""
    cast: dict[int, Tensor] = {}
    for is_trained in (False, True):
        chosen = [
            index
            for index, weight in enumerate(weights)
            if weight.requires_grad == is_trained
        ]
        for start in range(0, len(chosen), GROUP):
            indices = chosen[start : start + GROUP]
            group = [weights[index] for index in indices]
            cast.update(zip(indices, _Cast.apply(dtype, *group)))
    for index in range(len(weights)):
        yield cast[index]


@contextmanager
def _replaced(
    owners: Sequence[Sequence[Place]],
    weights: Sequence[Tensor],
    replacements: Iterator[Tensor],
) -> Iterator[None]:
    """Put replacements in the places of weights within the body."""
    try:
        for places, replacement in zip(owners, replacements):
            for parameters, name in places:
                parameters[name] = replacement
        yield
    finally:
        for places, weight in zip(owners, weights):
            for parameters, name in places:
                parameters[name] = weight


class _Cast(torch.autograd.Function):
    """Cast tensors to another type, and their gradients back."""

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = weights[0].dtype
        return tuple(_to(dtype, weights))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [grad for grad in grads if grad is not None]
        found = iter(_to(ctx.dtype, present))
        return None, *(None if grad is None else next(found) for grad in grads)


def _to(dtype: torch.dtype, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in another type, in one kernel."""
    results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if results:
        torch._foreach_copy_(results, list(tensors))
    return results
