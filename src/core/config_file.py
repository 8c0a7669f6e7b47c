"""Read YAML files and overrides into one dict, with the origin of every key.

Includes are read depth first and later files win. Mappings are merged; all other values are replaced.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, first_line
from .paths import did_you_mean_file, read_text, user_path
from .user_files import import_file

MAX_FILE_BYTES = 1 << 20
MAX_NODES = 50_000
"""Maximum number of values in a file with its aliases expanded: a small file must not exhaust memory."""

INCLUDE = "__include__"
IMPORT = "__import__"
"""Keys for configuration files to include, and for Python files whose classes the configuration uses."""

KeyPath = tuple[str | int, ...]


class ConfigTree:
    """A nested dict of settings that remembers where each key came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[KeyPath, str] = {}
        self.imported: dict[str, Path] = {}
        """Python files of users by the names of their modules."""

    def merge(
        self, values: dict[str, Any], origins: dict[KeyPath, str] | str
    ) -> None:
        """Merge `values` into the tree; `origins` has a place per key path, or is one place for all."""
        _merge(self.values, values, (), self.origins, origins)

    def origin(self, path: KeyPath) -> str:
        """Return "file:line" (or "-u", ...) of the nearest key at or above `path`."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return "the configuration"

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

        def lookup(match: re.Match, path: KeyPath) -> Any:
            value: Any = self.values
            for part in match[1].split("."):
                try:
                    value = (
                        value[int(part)]
                        if isinstance(value, list)
                        else value[part]
                    )
                except (KeyError, IndexError, ValueError, TypeError):
                    raise ConfigError(
                        f"{dotted(path)} refers to {match[0]}, which is not set ({self.origin(path)})"
                    ) from None
            for part, key, _ in _leaves([value], ()):
                if isinstance(part[key], str) and _REFERENCE.fullmatch(
                    part[key]
                ):
                    raise ConfigError(
                        f"{dotted(path)} refers to {match[0]}, which is or contains a reference itself "
                        f"({self.origin(path)})"
                    )
            return copy.deepcopy(value)

        for container, key, path in list(_leaves(self.values, ())):
            value = container[key]
            match = (
                _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            )
            if match:
                container[key] = lookup(match, path)
                parts = match[1].split(".")
                target = tuple(
                    int(part) if part.isdigit() else part for part in parts
                )
                self.origins[path] = (
                    f"{self.origin(path)}, which takes it from {dotted(target)} at {self.origin(target)}"
                )


_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def load_config_tree(path: str | Path) -> ConfigTree:
    """Read a YAML file and everything it includes.

    Python files listed under `__import__` are imported, so that their classes are registered.

    Raises:
        ConfigError: for a missing, oversized or malformed file, a duplicate key, circular includes, or a
            Python file that cannot be imported.
    """
    tree = ConfigTree()
    _load_into(tree, Path(path), ())
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
    tree = ConfigTree()
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
        _merge(merged, {parts[0]: value}, (), {}, {})
    return merged


def is_plain_path(text: str) -> bool:
    """Return whether a text is a path, which must not be parsed as YAML because of " #" and ": "."""
    return re.match(r"(/|\.{1,2}/|~/|[A-Za-z]:[\\/])", text) is not None


def parse_yaml(text: str, name: str) -> tuple[Any, dict[KeyPath, str]]:
    """Parse YAML with the safe loader; return the value and "name:line" for every key path.

    Raises:
        ConfigError: for bad syntax, tags that would build objects, duplicate keys or too many aliases.
    """
    try:
        node = yaml.compose(text, _Loader)
        if node is None:
            return None, {}
        places: dict[KeyPath, str] = {}
        budget = [MAX_NODES]
        _inspect(node, (), name, places, budget)
        loader = _Loader("")
        try:
            return loader.construct_document(node), places
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark is None:
            mark = getattr(error, "context_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(
            f"{place} cannot be read as YAML: {problem}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply") from None
    except (ValueError, TypeError) as error:
        # for example a date that does not exist, or a list as a key
        raise ConfigError(f"{name} cannot be read as YAML: {error}") from None


def dump_yaml(values: dict[str, Any]) -> str:
    """Write settings as YAML text that `parse_yaml` reads back to the same values."""
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True
    )


def dotted(path: KeyPath) -> str:
    """Return a key path as text: ("a", "ops", 0, "p") becomes "a.ops[0].p"."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif text:
            text += f".{part}"
        else:
            text = part
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads `1e-4` as a number, as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes strings that `_Loader` would read as numbers."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def _load_into(tree: ConfigTree, path: Path, chain: tuple[Path, ...]) -> None:
    path = path.expanduser()
    shown = " -> ".join(str(p) for p in (*chain, path))
    if path.suffix not in (".yml", ".yaml"):
        raise ConfigError(f"{shown} is not a .yml or .yaml file")
    if path.resolve() in [p.resolve() for p in chain]:
        raise ConfigError(
            f"configuration files include each other circularly: {shown}"
        )
    values, places = _read(path, shown)
    for item in _file_names(values, INCLUDE, path):
        _load_into(tree, path.parent / Path(item).expanduser(), (*chain, path))
    for item in _file_names(values, IMPORT, path):
        file = (path.parent / Path(item).expanduser()).resolve()
        origin = places.get((IMPORT,), str(path))
        first = tree.imported.setdefault(file.stem, file)
        if first != file:
            raise ConfigError(
                f"{origin}: __import__ names {file}, but {first} has the same name; rename one of them"
            )
        import_file(file, origin)
    values.pop(INCLUDE, None)
    values.pop(IMPORT, None)
    tree.merge(values, places)


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


def _read(path: Path, shown: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{path} has {size} bytes; a configuration may have at most {MAX_FILE_BYTES}"
            )
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(
            f"configuration file not found: {shown}{did_you_mean_file(path)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown} cannot be read: {error}") from None
    return _mapping_in(text, str(path))


def _mapping_in(
    text: str, name: str
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    values, places = parse_yaml(text, name)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name} holds a {type(values).__name__}, not a mapping of settings"
        )
    return values, places


def _inspect(
    node: yaml.Node,
    path: KeyPath,
    name: str,
    places: dict[KeyPath, str],
    budget: list[int],
) -> None:
    """Record the line of every key.

    Raises:
        ConfigError: for duplicate keys, keys that are not strings, and too many aliases.
    """
    budget[0] -= 1
    if budget[0] < 0:
        raise ConfigError(
            f"{name} has more than {MAX_NODES} values once its aliases are expanded"
        )
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            line = key_node.start_mark.line + 1
            if key_node.tag not in (
                "tag:yaml.org,2002:str",
                "tag:yaml.org,2002:merge",
            ):
                shown = f": {key}" if isinstance(key, str) else ""
                raise ConfigError(
                    f"{name}:{line} has a key that is not a string{shown}"
                )
            if key in seen:
                raise ConfigError(
                    f"{name}:{line} sets {dotted((*path, key))} again; line {seen[key]} sets it already"
                )
            seen[key] = line
            places[(*path, key)] = f"{name}:{line}"
            _inspect(value_node, (*path, key), name, places, budget)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places[(*path, index)] = f"{name}:{item.start_mark.line + 1}"
            _inspect(item, (*path, index), name, places, budget)


def _merge(
    base: dict,
    over: dict,
    path: KeyPath,
    origins: dict[KeyPath, str],
    places: dict[KeyPath, str] | str,
) -> None:
    for key, value in over.items():
        here = (*path, key)
        old = base.get(key)
        if (
            isinstance(value, dict)
            and isinstance(old, dict)
            and _same_type(old, value)
        ):
            _merge(old, value, here, origins, places)
            continue
        for stale in [p for p in origins if p[: len(here)] == here]:
            del origins[stale]
        base[key] = copy.deepcopy(value)
        if isinstance(places, str):
            origins[here] = places
            continue
        for place_path, place in places.items():
            if place_path[: len(here)] == here:
                origins[place_path] = place


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
