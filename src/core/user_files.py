"""Import the users' Python files that a configuration names, so that these can register classes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..two_names import import_under_both_names
from .errors import ConfigError, RunError
from .paths import did_you_mean_file

_imported: dict[str, Path] = {}
"""Imported files by module name."""


def import_file(path: Path, origin: str) -> None:
    """Import a Python file once, as a module of the same name, and add its folder to `sys.path`.

    Args:
        path: path of the file, `name.py`.
        origin: place of the setting that names the file, for messages.

    Raises:
        ConfigError: if the file does not exist, another module has this name, or the import fails.
    """
    path = path.resolve()
    name = path.stem
    if path.suffix != ".py" or not name.isidentifier():
        raise ConfigError(
            f"{origin}: __import__ names {path.name}, expected a Python file such as my_data.py"
        )
    if not path.is_file():
        raise ConfigError(
            f"{origin}: __import__ names {path}, which does not exist{did_you_mean_file(path)}"
        )
    loaded_from = getattr(sys.modules.get(name), "__file__", None)
    if _imported.get(name) == path or loaded_from == str(path):
        return
    is_taken = name in sys.modules or _is_elsewhere(name, path)
    if is_taken and name not in _imported:
        raise ConfigError(
            f"{origin}: __import__ names {path}, but another module is called {name}; rename the file"
        )
    if str(path.parent) not in sys.path:
        sys.path.append(
            str(path.parent)
        )  # spawned worker processes need it too
    import_under_both_names()
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{origin}: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, RunError):
            raise
        raise ConfigError(
            f"{origin}: {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    _imported[name] = path


def _is_elsewhere(name: str, path: Path) -> bool:
    """Return whether `import name` would import another file; the folder of the file may be in `sys.path`."""
    found = importlib.util.find_spec(name)
    if found is None:
        return False
    return found.origin is None or Path(found.origin).resolve() != path
