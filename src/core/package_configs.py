"""The configurations of this project: `configs/`, which is inside the package when it is installed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .errors import ConfigError
from .paths import close_names, user_path

FOLDER = "configs"
SUFFIXES = (".yml", ".yaml")

_PARTS = ("include", "dataset", "ablation")
"""Folders of files that are not configurations of a run: parts of configurations, and plans of studies."""


def configs_folder() -> Path:
    """Return the folder of the configurations of this project."""
    package = Path(__file__).resolve().parents[1]
    inside = package / FOLDER
    return inside if inside.is_dir() else package.parent / FOLDER


def package_config(path: str | Path) -> Path:
    """Return a file of this project by its path in the repository, such as "configs/runtime.yml"."""
    return configs_folder().parent / path


@cache
def configs_by_name() -> dict[str, Path]:
    """Return the configurations of this project by their file names without the suffix."""
    found = {}
    for path in sorted(configs_folder().rglob("*.yml")):
        folders = path.relative_to(configs_folder()).parts[:-1]
        if folders and not any(part in _PARTS for part in folders):
            found[path.stem] = path
    return found


def find_config(path: str | Path) -> Path:
    """Return the file that a user means by `-c`.

    A file that exists is used as it is. Otherwise the configurations of this project are looked up, by a path
    that begins with `configs/` or by a name such as "dfine_dinov3_s_coco": commands work in any folder.

    Args:
        path: path of a file, or name of a configuration of this project with or without its suffix.

    Returns:
        The file; the given path if nothing is found, so that whoever opens it reports the error.

    Raises:
        ConfigError: if a name without folder and suffix is not that of a configuration of this project.
    """
    given = user_path(path)
    if given.exists() or given.is_absolute():
        return given
    if given.parts[:1] == (FOLDER,) and package_config(given).is_file():
        return package_config(given)
    if len(given.parts) != 1 or given.suffix not in ("", *SUFFIXES):
        return given
    name = given.stem if given.suffix else given.name
    known = configs_by_name()
    if name in known:
        return known[name]
    if given.suffix:
        return given
    close = close_names(name, known)
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else "give the path of a .yml file or the name of a configuration, such as dfine_dinov3_s_coco"
    )
    raise ConfigError(
        f"{name} is neither a file nor a configuration of this project; {hint}"
    )
