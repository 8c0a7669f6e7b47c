"""Registry, configuration, construction of objects, and contracts. Every other package depends on these."""

from .build import create
from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    NumericsError,
    Preempted,
    RankError,
    ResourceError,
    RunError,
)
from .registry import register
from .yaml_config import YAMLConfig

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "NumericsError",
    "Preempted",
    "RankError",
    "ResourceError",
    "RunError",
    "YAMLConfig",
    "create",
    "register",
]
