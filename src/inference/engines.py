"""The interface of engines, which compute detections from preprocessed images, and the PyTorch engine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..runtime.finite import refuse_non_finite_outputs
from ..runtime.precision import autocast_dtype, full_float32

EngineOutput = tuple[Tensor, Tensor, Tensor]
"""Labels `[B, R]` int64, boxes `[B, R, 4]` xyxy in pixels of the original images, scores `[B, R]`; best
first, on the CPU."""


class Engine(Protocol):
    """Interface of engines that compute detections."""

    batch_size: int | None
    """Fixed batch size; None accepts any size."""

    def __call__(self, images: Tensor, sizes: Tensor) -> EngineOutput:
        """Detect objects.

        Args:
            images: `[B, 3, H, W]` float32, from `Preprocessing`.
            sizes: `[B, 2]` int64, (width, height) of the original images in pixels.
        """


class TorchEngine:
    """A deployed PyTorch detector and post-processor on a device."""

    batch_size: int | None = None

    def __init__(
        self,
        model: nn.Module,
        postprocessor: nn.Module,
        device: torch.device,
        *,
        use_amp: bool = False,
    ) -> None:
        """Move both to the device; on CUDA, `use_amp` runs the model in bf16, or fp16 without bf16."""
        self.model = model.to(device).eval()
        self.postprocessor = postprocessor.to(device).eval()
        self.device = device
        uses_amp = use_amp and device.type == "cuda"
        self.amp_dtype = autocast_dtype(device) if uses_amp else None

    @torch.inference_mode()
    def __call__(self, images: Tensor, sizes: Tensor) -> EngineOutput:
        """Detect objects (`Engine`).

        Raises:
            NumericsError: if an output of the model is not finite.
        """
        images = images.to(self.device, non_blocking=True)
        sizes = sizes.to(self.device, non_blocking=True)
        with self._precision():
            outputs = self.model(images)
        refuse_non_finite_outputs(outputs, batch_image_names(len(images)))
        labels, boxes, scores = self.postprocessor(outputs, sizes)
        return labels.cpu(), boxes.cpu(), scores.cpu()

    def _precision(self) -> AbstractContextManager[object]:
        """Return the context in which the model runs."""
        if self.amp_dtype is None:
            return full_float32()
        return torch.autocast(self.device.type, self.amp_dtype)


def batch_image_names(count: int) -> list[str]:
    """Return names for the images of a batch.

    Example:
        >>> batch_image_names(2)
        ['image 1 of a batch of 2', 'image 2 of a batch of 2']
    """
    return [
        f"image {number} of a batch of {count}"
        for number in range(1, count + 1)
    ]
