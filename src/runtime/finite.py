"""Looking for NaN and infinity: in states that are saved or read, and in what a model finds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import NumericsError

_USUAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that torch computes norms of."""

COMPUTED_KEYS = ("decoder.anchors", "decoder.valid_mask")
"""Tables that a model computes for its input size: anchors outside the valid range are infinite on purpose."""


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor in nested mappings and lists with its place, such as "optimizer.state.3.exp_avg"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{name}.{index}" if name else str(index))


@torch.no_grad()
def first_non_finite(content: Any) -> str | None:
    """Return the place of the first tensor with NaN or infinity, or None; each device is read once."""
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in tensors_in(content):
        if tensor.is_floating_point() and tensor.numel() and not name.endswith(COMPUTED_KEYS):
            usual = tensor if tensor.dtype in _USUAL else tensor.float()
            by_device[tensor.device].append((name, usual))
    for found in by_device.values():
        largest = torch._foreach_norm([tensor for _, tensor in found], float("inf"))
        finite = torch.isfinite(torch.stack([value.double() for value in largest])).tolist()
        if not all(finite):
            return found[finite.index(False)][0]
    return None


def refuse_non_finite_outputs(found: Mapping[str, Any], images: Sequence[str]) -> None:
    """Make sure that what a model finds in a batch of images are numbers.

    Logits are looked at besides scores, because the sigmoid of an infinite logit is a number. The device is read once.

    Args:
        found: outputs or detections of a batch: tensors or arrays `[B, ...]` under `pred_logits`, `pred_boxes`, `scores` or
            `boxes`.
        images: names of the B images.

    Raises:
        NumericsError: if a value is NaN or infinite, with the first image that has one.
    """
    values = {key: torch.as_tensor(found[key]) for key in _OUTPUTS if key in found}
    if not values:
        return
    finite = torch.stack([torch.isfinite(value).flatten(1).all(1) for value in values.values()])
    for image, fine in zip(images, finite.T.tolist()):
        if not all(fine):
            key = list(values)[fine.index(False)]
            raise NumericsError(
                f"the model gives {_OUTPUTS[key]} that are not finite for {image}: its weights have diverged, or they "
                "overflow in this precision (float32 does not)"
            )


_OUTPUTS = {"pred_logits": "logits", "pred_boxes": "boxes", "scores": "scores", "boxes": "boxes"}
"""Outputs and detections that must be finite, and what messages call them."""
