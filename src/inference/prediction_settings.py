"""Settings of a prediction as one object."""

from __future__ import annotations

from dataclasses import dataclass

from .tiling import Tiling


@dataclass(frozen=True)
class PredictionSettings:
    """Settings of a prediction; `Detector.stream` checks the values.

    Example:
        >>> PredictionSettings(threshold=0.5)
        PredictionSettings(threshold=0.5, batch_size=8, nms=None, tiling=None)
    """

    threshold: float | None = None
    """Minimum score, 0..1; None uses the checkpoint's, which had the best F1 on the validation data."""
    batch_size: int = 8
    """Images per batch; an engine with a fixed batch size uses that instead."""
    nms: float | None = None
    """IoU threshold, 0..1, of non-maximum suppression per class; None disables it, because the model is
    trained to detect each object once."""
    tiling: Tiling | None = None
    """Detect objects in tiles of large images, too; None uses only the whole image."""


DEFAULT_SETTINGS = PredictionSettings()
