"""Optional packages: imported where they are used, and one sentence if they are not installed."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from ..core.errors import ConfigError

TOOLS = "pip install -r tools/requirements.txt"
"""Installs what single tools need beyond the project itself."""

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime 1.32 and later report how they are used to Microsoft, from a thread of their own, unless this is set before
the import. Nothing that a user does here is reported to anybody unless they ask for it."""


def import_optional(name: str, otherwise: str) -> ModuleType:
    """Import a package that only some commands need.

    Args:
        name: name of the module.
        otherwise: what to tell a user who has not installed it, with the command that does.

    Raises:
        ConfigError: if it is not installed, or needs a package that is not.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        needs = f" ({name} needs {error.name})" if error.name not in (None, name) else ""
        raise ConfigError(f"{otherwise}{needs}") from None
