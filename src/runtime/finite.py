"""Checks for NaN and infinity in saved or loaded states, and in the outputs of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import NumericsError

_USUAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Data types for which torch can compute norms."""

COMPUTED_KEYS = ("decoder.anchors", "decoder.valid_mask")
"""Tables that a model computes for its input size; anchors outside the valid range are infinite by design."""


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield tensors in nested mappings and lists with their paths, such as "optimizer.state.3.exp_avg"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors_in(
                item, f"{name}.{index}" if name else str(index)
            )


@torch.no_grad()
def first_non_finite(content: Any) -> str | None:
    """Return the path of the first tensor with NaN or infinity, or None; synchronizes once per device."""
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in tensors_in(content):
        has_floats = tensor.is_floating_point() and tensor.numel()
        if has_floats and not name.endswith(COMPUTED_KEYS):
            usual = tensor if tensor.dtype in _USUAL else tensor.float()
            by_device[tensor.device].append((name, usual))
    for device, found in by_device.items():
        tensors = [tensor for _, tensor in found]
        largest = _extremes(tensors, device)
        norms = torch.stack([value.double() for value in largest])
        finite = torch.isfinite(norms).tolist()
        if not all(finite):
            return found[finite.index(False)][0]
    return None


def _extremes(
    tensors: Sequence[Tensor], device: torch.device
) -> Sequence[Tensor]:
    """Return for each tensor a number that is finite exactly if all its values are."""
    if device.type != "cpu":  # few kernels
        return torch._foreach_norm(list(tensors), float("inf"))
    # on a CPU, minimum and maximum take a tenth of the time of a maximum norm
    extremes = []
    for tensor in tensors:
        low, high = torch.aminmax(tensor)
        extremes.append(torch.maximum(high.abs(), low.abs()))
    return extremes


def refuse_non_finite_outputs(
    found: Mapping[str, Any], images: Sequence[str]
) -> None:
    """Check that the outputs of a model for a batch of images are finite.

    Logits are checked besides scores, because the sigmoid of an infinite logit is finite. The check
    synchronizes with the device once.

    Args:
        found: outputs or detections of a batch: tensors or arrays `[B, ...]` under `pred_logits`,
            `pred_boxes`, `scores` or `boxes`.
        images: names of the B images.

    Raises:
        NumericsError: if a value is NaN or infinite, with the first image that has one.
    """
    values = {}
    for key in _OUTPUTS:
        if key in found:
            values[key] = torch.as_tensor(found[key])
    if not values:
        return
    finite = []
    for value in values.values():
        finite.append(torch.isfinite(value).flatten(1).all(1))
    for image, fine in zip(images, torch.stack(finite).T.tolist()):
        if not all(fine):
            key = list(values)[fine.index(False)]
            raise NumericsError(
                f"the model gives {_OUTPUTS[key]} that are not finite for {image}: its weights have "
                "diverged, or values overflow in this precision (float32 does not)"
            )


_OUTPUTS = {
    "pred_logits": "logits",
    "pred_boxes": "boxes",
    "scores": "scores",
    "boxes": "boxes",
}
"""Outputs and detections that must be finite, with their names in messages."""
