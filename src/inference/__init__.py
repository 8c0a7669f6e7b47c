"""Inference with trained checkpoints and exported models."""

from .detector import Detector
from .prediction import Prediction
from .prediction_settings import PredictionSettings
from .preprocessing import Preprocessing
from .tiling import Tiling

__all__ = [
    "Detector",
    "Prediction",
    "PredictionSettings",
    "Preprocessing",
    "Tiling",
]
