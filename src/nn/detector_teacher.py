"""A trained detector as the frozen teacher of another one: opening its file, and its outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..detection.fitting import load_strictly
from ..detection.model_config import model_config, refuse_other_family
from ..detection.weight_file import WeightFile
from .distillation import student_of


def detector_of(file: WeightFile, config: str | None) -> nn.Module:
    """Build the detector of a file. The random state is the same afterwards."""
    cfg = model_config(file, config)
    refuse_other_family(file, cfg)
    with torch.random.fork_rng(devices=[]):
        model = cfg.model
    load_strictly(model, file)
    return model


class DetectorTeacher:
    """A frozen detector in its form for inference."""

    def __init__(self, model: Any) -> None:
        """Copy a detector and freeze the copy.

        Args:
            model: detector with `deploy`, `backbone` and `encoder`, such as DFINE.
        """
        self.model = model.deploy().requires_grad_(False)
        self.width: int | None = None
        """Channels of the map; None without attention on the coarsest level."""
        self._map: Tensor | None = None
        try:
            _, reader, self.width = student_of(self.model)
        except ConfigError:
            return
        reader.register_forward_pre_hook(self._keep)

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(value.numel() for value in self.model.parameters())

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return self.model.decoder.num_classes

    def to(self, device: torch.device) -> None:
        """Move the detector to a device."""
        self.model.to(device)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, *, detect: bool
    ) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Run the detector, or only its backbone and encoder.

        Args:
            images: `[B, 3, H, W]` in 0..1; H and W are multiples of 32.
            detect: whether to run the decoder.

        Returns:
            The coarsest map after its attention, `[B, D, H/32, W/32]` or None; and with `detect` the logits
            `[B, Q, C]` and boxes `[B, Q, 4]`, cxcywh in 0..1.
        """
        self._map = None
        predictions = None
        if detect:
            outputs = self.model(images)
            predictions = (outputs["pred_logits"], outputs["pred_boxes"])
        else:
            self.model.encoder(self.model.backbone(images))
        seen = self._map
        self._map = None
        return seen, predictions

    def _keep(self, layer: nn.Module, arguments: tuple[Tensor]) -> None:
        (self._map,) = arguments
