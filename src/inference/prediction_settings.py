"""Settings of a prediction as one value, for code that passes them on."""

from __future__ import annotations

from dataclasses import dataclass

from .tiling import Tiling


@dataclass(frozen=True)
class PredictionSettings:
    """Settings of a prediction; `Detector.stream` checks the values."""

    threshold: float | None = None
    """Minimum score, 0..1; None for the checkpoint's own, at which F1 was best on the validation data."""
    batch_size: int = 8
    """Images that are computed at once; an engine with a fixed batch takes its own."""
    nms: float | None = None
    """Drop boxes that overlap a better one of the same class by more than this IoU, 0..1; None keeps all,
    since the model has learned to find each object once."""
    tiling: Tiling | None = None
    """Look at large images in tiles, too; None looks at each image as a whole."""


DEFAULT_SETTINGS = PredictionSettings()
