"""D-FINE with HGNetv2 and DINOv3 backbones.

The package is called `src` in the source tree and `dfine_dinov3` when it is installed. Its parts are
imported when they are used, and the classes that a configuration can name are registered when the first one
is looked up (`core.registry`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import evaluate, export, train
    from .inference import Detector, Prediction

__version__ = "0.1.0"

_PLACES = {
    "Detector": "inference",
    "Prediction": "inference",
    "evaluate": "api",
    "export": "api",
    "train": "api",
}
"""Modules of the names that this package exports."""

_PACKAGES = ("core", "data", "inference", "nn", "optim", "solver", "zoo")
"""Packages that can be used as attributes without an import of their own."""

__all__ = [
    "Detector",
    "Prediction",
    "__version__",
    "evaluate",
    "export",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        from .runtime.quick_imports import collector_paused

        with collector_paused():
            place = importlib.import_module(f"{__name__}.{_PLACES[name]}")
        return getattr(place, name)
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES, *_PACKAGES])
