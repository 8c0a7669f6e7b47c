"""Training and evaluation: the package that combines model, data and optimizer through their contracts.

`DetSolver` is imported when it is used: the process that sends values to a logging service (`loggers/`) needs
no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .det_solver import DetSolver

__all__ = ["DetSolver"]


def __getattr__(name: str) -> Any:
    if name != "DetSolver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .det_solver import DetSolver

    return DetSolver
