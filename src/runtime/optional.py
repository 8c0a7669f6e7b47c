"""Optional packages: imported where they are used, and one sentence if they are not installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..core.errors import ConfigError

TOOLS = "pip install -r tools/requirements.txt"
"""Installs what single tools need beyond the project itself."""


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
