"""Read YAML files and overrides into one dict, with the origin of every key.

Includes are read depth first and later files win. Mappings are merged; all other values are replaced.
"""

from __future__ import annotations

import copy
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .origins import KeyPath, Origins
from .package_configs import find_config
from .paths import did_you_mean_file, read_text, user_path
from .user_files import import_file
from .yaml_text import MAX_BYTES, ValueBudget, count_values, dotted, parse_yaml

MAX_FILES = 200
"""Maximum number of files that a configuration includes, counting repetitions."""

INCLUDE = "__include__"
IMPORT = "__import__"
"""Keys for configuration files to include, and for Python files whose classes the configuration uses."""


class ConfigTree:
    """A nested dict of settings that remembers where each key came from."""

    def __init__(self, name: str | Path = "the configuration") -> None:
        self.values: dict[str, Any] = {}
        self.origins = Origins()
        self.imported: dict[str, Path] = {}
        """Python files of users by the names of their modules."""
        self.replaced: dict[KeyPath, Any] = {}
        """Numbers and texts that later values have replaced, by their path; the last one of each path."""
        self.files = 0
        """Number of files that were read."""
        self.budget = ValueBudget(str(name), "with its includes and references")

    def merge(self, values: dict[str, Any], origins: Origins | str) -> None:
        """Merge `values` into the tree; `origins` are their places, or one place for all.

        Raises:
            ConfigError: if the tree has received too many values.
        """
        self.budget.spend(count_values(values))
        for path, old in _replaced(self.values, values, ()):
            self.replaced[path] = old
        _merge(self.values, values, self.origins, origins)

    def origin(self, path: KeyPath) -> str:
        """Return "file:line" (or "-u", ...) of the nearest key at or above `path`."""
        return self.origins.nearest(path) or "the configuration"

    def remove(self, key: str) -> None:
        """Remove a top-level key."""
        del self.values[key]

    def drop_unset(self, keys: set[str]) -> None:
        """Remove those of the top-level `keys` that are null: a shared value of null counts as not set."""
        for key in keys & set(self.values):
            if self.values[key] is None:
                del self.values[key]

    def expand_home(self) -> None:
        """Replace `~/` at the start of every string by the home folder, as a shell does."""
        for container, key, _ in list(_leaves(self.values, ())):
            value = container[key]
            if isinstance(value, str) and value.startswith("~/"):
                container[key] = str(user_path(value))

    def resolve_references(self) -> None:
        """Replace each string `${a.b}` by the value of the setting a.b.

        Numbers are positions in lists (`${size.0}`).

        Raises:
            ConfigError: if the setting does not exist, or contains a reference itself.
        """

        for container, key, path in list(_leaves(self.values, ())):
            value = container[key]
            match = (
                _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            )
            if match is None:
                continue
            container[key] = self._referenced(match[1], path)
            parts = match[1].split(".")
            target = tuple(
                int(part) if part.isdigit() else part for part in parts
            )
            self.origins.set_place(
                path,
                f"{self.origin(path)}, which takes it from {dotted(target)} at {self.origin(target)}",
            )

    def _referenced(self, name: str, path: KeyPath) -> Any:
        """Return a copy of the value to which the setting at `path` refers by name."""
        value: Any = self.values
        refers = f"{dotted(path)} refers to ${{{name}}}"
        for part in name.split("."):
            try:
                value = (
                    value[int(part)] if isinstance(value, list) else value[part]
                )
            except (KeyError, IndexError, ValueError, TypeError):
                raise ConfigError(
                    f"{refers}, which is not set ({self.origin(path)})"
                ) from None
        self.budget.spend(count_values(value))
        for part, key, _ in _leaves([value], ()):
            if isinstance(part[key], str) and _REFERENCE.fullmatch(part[key]):
                raise ConfigError(
                    f"{refers}, which is or contains a reference itself ({self.origin(path)})"
                )
        return copy.deepcopy(value)


_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def load_config_tree(path: str | Path) -> ConfigTree:
    """Read a YAML file and everything it includes.

    The file, and those that it includes, are found as `find_config` describes.

    Python files listed under `__import__` are imported, so that their classes are registered.

    Raises:
        ConfigError: for a missing, oversized or malformed file, a duplicate key, circular includes, or a
            Python file that cannot be imported.
    """
    tree = ConfigTree(path)
    _load_into(tree, find_config(path), ())
    return tree


def parse_config_tree(text: str, name: str) -> ConfigTree:
    """Read YAML text without includes and imports, such as the configuration in a checkpoint.

    Args:
        text: the YAML text.
        name: name of the source, used in messages in place of a file name.

    Raises:
        ConfigError: for malformed text, a duplicate key, or `__import__`, because opening a checkpoint must
            not run code.
    """
    tree = ConfigTree(name)
    values, places = _mapping_in(text, name)
    if IMPORT in values:
        raise ConfigError(
            f"{name} contains {IMPORT}, which is allowed only in configuration files, because it runs "
            "Python files"
        )
    tree.merge(values, places)
    return tree


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """Convert `["a.b=1", "c=[2, 3]"]` to `{"a": {"b": 1}, "c": [2, 3]}`.

    The right sides are parsed as YAML, except for paths, which are kept as written.

    Raises:
        ConfigError: for an item without "=", an empty key or a value that is not YAML.
    """
    merged: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(
                f"-u {item!r} is not of the form section.key=value"
            )
        value: Any = (
            text if is_plain_path(text) else parse_yaml(text, f"-u {key}")[0]
        )
        for part in reversed(parts[1:]):
            value = {part: value}
        _merge(merged, {parts[0]: value}, Origins(), "-u")
    return merged


def is_plain_path(text: str) -> bool:
    """Return whether a text is a path, which must not be parsed as YAML because of " #" and ": "."""
    return re.match(r"(/|\.{1,2}/|~/|[A-Za-z]:[\\/])", text) is not None


def _load_into(tree: ConfigTree, path: Path, chain: tuple[Path, ...]) -> None:
    path = path.expanduser()
    shown = " -> ".join(str(p) for p in (*chain, path))
    if path.suffix not in (".yml", ".yaml"):
        raise ConfigError(f"{shown} is not a .yml or .yaml file")
    if path.resolve() in [p.resolve() for p in chain]:
        raise ConfigError(
            f"configuration files include each other circularly: {shown}"
        )
    tree.files += 1
    if tree.files > MAX_FILES:
        raise ConfigError(f"{shown}: more than {MAX_FILES} files are included")
    values, places = _read(path, shown)
    for item in _file_names(values, INCLUDE, path):
        _load_into(tree, _included(path, item), (*chain, path))
    for item in _file_names(values, IMPORT, path):
        file = (path.parent / Path(item).expanduser()).resolve()
        origin = places.nearest((IMPORT,)) or str(path)
        first = tree.imported.setdefault(file.stem, file)
        if first != file:
            raise ConfigError(
                f"{origin}: __import__ names {file}, but {first} has the same name; rename one of them"
            )
        import_file(file, origin)
    values.pop(INCLUDE, None)
    values.pop(IMPORT, None)
    tree.merge(values, places)


def _included(path: Path, item: str) -> Path:
    """Return the file that a configuration includes: a path from its own folder, or one of this project."""
    beside = path.parent / Path(item).expanduser()
    return beside if beside.exists() else _own_or(beside, item)


def _own_or(beside: Path, item: str) -> Path:
    """Return the configuration of this project of that name, or else the path, whose absence is reported."""
    try:
        found = find_config(item)
    except ConfigError:
        return beside
    return found if found.is_file() else beside


def _file_names(values: dict[str, Any], key: str, path: Path) -> list[str]:
    """Return the file names listed under a key of a configuration file."""
    names = values.get(key) or []
    if not isinstance(names, list) or not all(
        isinstance(name, str) for name in names
    ):
        raise ConfigError(
            f"{path}: {key} must be a list of file names, not {names!r}"
        )
    return names


def _read(path: Path, shown: str) -> tuple[dict[str, Any], Origins]:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) and not path.is_dir():
            raise ConfigError(f"{shown} is not a regular file")
        if facts.st_size > MAX_BYTES:
            raise ConfigError(
                f"{path} has {facts.st_size} bytes; a configuration may have at most {MAX_BYTES}"
            )
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(
            f"configuration file not found: {shown}{did_you_mean_file(path)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown} cannot be read: {error}") from None
    return _mapping_in(text, str(path))


def _mapping_in(text: str, name: str) -> tuple[dict[str, Any], Origins]:
    values, places = parse_yaml(text, name)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name} holds a {type(values).__name__}, not a mapping of settings"
        )
    return values, places


def _merge(
    base: dict, over: dict, origins: Origins, places: Origins | str
) -> None:
    """Merge `over` into `base`; the origins of replaced values are replaced too.

    Args:
        base: mapping that is changed.
        over: values that override it.
        origins: origins of `base`, which are changed.
        places: origins of `over`, or one place for all of it.
    """
    for key, value in over.items():
        old = base.get(key)
        places_below = places if isinstance(places, str) else places.child(key)
        if (
            isinstance(value, dict)
            and isinstance(old, dict)
            and _same_type(old, value)
        ):
            _merge(old, value, origins.child(key), places_below)
            continue
        base[key] = copy.deepcopy(value)
        if isinstance(places_below, str):
            origins.below[key] = Origins(places_below)
        else:
            origins.below[key] = places_below


def _replaced(
    base: dict, over: dict, path: KeyPath
) -> Iterator[tuple[KeyPath, Any]]:
    """Yield path and value of each number and text of `base` that another value in `over` replaces."""
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            yield from _replaced(old, value, (*path, key))
        elif isinstance(old, (int, float, str)) and old != value:
            yield (*path, key), old


def _same_type(old: dict, new: dict) -> bool:
    """Return whether two blocks have the same `type`.

    A block with another `type` replaces the whole old block, whose settings belong to another class.
    """
    return "type" not in new or "type" not in old or new["type"] == old["type"]


def _leaves(
    container: Any, path: KeyPath
) -> Iterator[tuple[Any, str | int, KeyPath]]:
    """Yield (container, key, path) of everything in a mapping or a list of YAML values, recursively."""
    is_mapping = isinstance(container, dict)
    entries = container.items() if is_mapping else enumerate(container)
    for key, value in entries:
        yield container, key, (*path, key)
        if isinstance(value, (dict, list)):
            yield from _leaves(value, (*path, key))


def first_non_finite(values: dict[str, Any]) -> KeyPath | None:
    """Return the path of the first NaN or infinity in `values`, which no setting may be, or None."""
    for container, key, path in _leaves(values, ()):
        if isinstance(container[key], float) and not math.isfinite(
            container[key]
        ):
            return path
    return None
