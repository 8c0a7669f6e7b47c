"""Half-precision copies of the weights for a forward pass, cast together instead of one by one.

Autocast casts each weight of a matrix product or convolution with a kernel of its own, and its gradient back
with another; DistributedDataParallel (DDP) then copies each gradient into a bucket. Here a few kernels do all
of it. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.onednn import Linear, PointwiseConv2d

GROUP = 48
"""Weights cast together; about as many as one kernel takes. A group's gradients arrive together."""

CAST = (
    nn.Linear,
    nn.Conv2d,
    nn.MultiheadAttention,
    Linear,
    PointwiseConv2d,
)
"""Layers whose weights autocast casts. Other subclasses may use them in other ways and are left alone."""

NAMES = {"weight", "bias", "in_proj_weight", "in_proj_bias"}
"""Parameters of these layers. Others, such as those of a reparametrization, are used in float32."""

NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


class HalfWeights:
    """Run forward passes under autocast with weights that are cast in groups.

    The first forward pass runs with autocast's own casts, and finds the layers that are called under autocast
    with its type. Only these get cast weights afterwards. Layers of compiled modules never do.
    """

    def __init__(self, model: nn.Module) -> None:
        """Store the model, whose first forward pass selects the layers."""
        self.model = model
        self._has_selected = False
        self._weights: dict[Tensor, list[Place]] = {}
        """Places of the weights that are cast."""
        self._norms: dict[Tensor, list[Place]] = {}
        """Places of the parameters of norms."""
        self._buckets: dict[Tensor, Tensor] = {}
        """Memory for the gradients of parameters."""

    @contextmanager
    def cast(
        self, device_type: str, dtype: torch.dtype, *, norms: bool = False
    ) -> Iterator[None]:
        """Use cast weights within the body, which runs one forward pass under autocast.

        The parameters receive the gradients as usual, in a backward pass that may follow the body.

        Args:
            device_type: type of the device, as for autocast.
            dtype: type that autocast uses.
            norms: also write the gradients of norms, which are not cast, in groups; this pays with buckets.
        """
        if not self._has_selected:
            calls = _Calls(self.model, device_type, dtype)
            try:
                yield
            finally:
                calls.stop()
            self._has_selected = True
            self._weights = _places(calls.cast_layers())
            self._norms = _places(calls.norms())
            return
        replaced = self._grouped(list(self._weights), dtype)
        if norms and torch.is_grad_enabled():
            trained = [norm for norm in self._norms if norm.requires_grad]
            replaced.update(self._grouped(trained, torch.float32))
        with _replaced({**self._weights, **self._norms}, replaced):
            yield

    def keep_buckets(self) -> None:
        """Write the next gradients into the memory of the present ones, which is in DDP's buckets.

        DDP then has nothing to copy. It copies as usual if it has changed its buckets.
        """
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                self._buckets[parameter] = parameter.grad

    def forget_buckets(self) -> None:
        """Release the memory that `keep_buckets` kept, because a new DDP wrapper has its own."""
        self._buckets.clear()

    def _grouped(
        self, weights: Sequence[Tensor], dtype: torch.dtype
    ) -> dict[Tensor, Tensor]:
        """Return cast weights by weight; frozen and trainable weights are in different groups."""
        result: dict[Tensor, Tensor] = {}
        for is_trained in (False, True):
            chosen = [w for w in weights if w.requires_grad == is_trained]
            for start in range(0, len(chosen), GROUP):
                group = chosen[start : start + GROUP]
                cast = _Cast.apply(dtype, self._buckets, *group)
                result.update(zip(group, cast))
        return result


class _Calls:
    """Record which layers are called, and whether under autocast."""

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

    def cast_layers(self) -> list[nn.Module]:
        """Return the layers whose weights autocast cast in each call, in the order of the calls."""
        return [
            layer
            for layer, is_under in self._under_autocast.items()
            if is_under and not isinstance(layer, NORMS)
        ]

    def norms(self) -> list[nn.Module]:
        """Return the norms in the order of the calls."""
        return [
            norm for norm in self._under_autocast if isinstance(norm, NORMS)
        ]


def _candidates(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of known types outside compiled modules."""
    if module._compiled_call_impl is not None:
        return
    if type(module) in CAST or isinstance(module, NORMS):
        yield module
        return
    for child in module.children():
        yield from _candidates(child)


Place = tuple[dict[str, Any], str]
"""Dictionary of a module's parameters, and the name of one."""


def _places(layers: Sequence[nn.Module]) -> dict[Tensor, list[Place]]:
    """Return the places of each float32 parameter; it has several if layers share it."""
    places: dict[Tensor, list[Place]] = {}
    for layer in layers:
        for module in layer.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or name not in NAMES:
                    continue
                if parameter.dtype == torch.float32:
                    place = (module._parameters, name)
                    places.setdefault(parameter, []).append(place)
    return places


@contextmanager
def _replaced(
    places: dict[Tensor, list[Place]], replacements: dict[Tensor, Tensor]
) -> Iterator[None]:
    """Put replacements in the places of weights within the body."""
    try:
        for weight, replacement in replacements.items():
            for parameters, name in places[weight]:
                parameters[name] = replacement
        yield
    finally:
        for weight in replacements:
            for parameters, name in places[weight]:
                parameters[name] = weight


class _Cast(torch.autograd.Function):
    """Cast float32 weights to another type, and their gradients back."""

    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        buckets: dict[Tensor, Tensor],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.buckets = buckets
        ctx.weights = weights
        if dtype == torch.float32:
            return tuple(weight.detach() for weight in weights)
        cast = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(cast, list(weights))
        return tuple(cast)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * len(grads)
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        for index, (weight, grad) in enumerate(zip(ctx.weights, grads)):
            if grad is None:
                continue
            bucket = ctx.buckets.get(weight)
            if bucket is not None and weight.grad is None:
                target = bucket.detach()
            elif grad.dtype == torch.float32:
                results[index] = grad
                continue
            else:
                target = torch.empty_like(grad, dtype=torch.float32)
            results[index] = target
            sources.append(grad)
            targets.append(target)
        if sources:
            torch._foreach_copy_(targets, sources)
        return None, None, *results
