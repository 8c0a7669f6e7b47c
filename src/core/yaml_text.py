"""Parse and write YAML within limits, because a small text can stand for a huge configuration."""

from __future__ import annotations

import copy
import re
from typing import Any

import yaml

from .errors import ConfigError, first_line
from .origins import KeyPath, Origins

MAX_BYTES = 1 << 19
"""Maximum size of a configuration file or text."""

MAX_VALUES = 20_000
"""Maximum number of values of a configuration, with aliases, references and includes expanded."""

MAX_NUMBER_LENGTH = 400
"""Maximum length of the text of a number or date."""


class ValueBudget:
    """Count the values of a configuration, and stop when there are too many."""

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self.what = what
        """How values are counted, for messages: "once its aliases are expanded"; empty: as written."""
        self.left = MAX_VALUES

    def spend(self, count: int = 1) -> None:
        """Count some values.

        Raises:
            ConfigError: if there are more than `MAX_VALUES` in all.
        """
        self.left -= count
        if self.left < 0:
            counted = f" {self.what}" if self.what else ""
            raise ConfigError(
                f"{self.name} has more than {MAX_VALUES} values{counted}"
            )


def parse_yaml(text: str, name: str) -> tuple[Any, Origins]:
    """Parse YAML with the safe loader.

    Args:
        text: YAML text.
        name: file of the text, for messages and places.

    Returns:
        The value, and "name:line" for every key and list item.

    Raises:
        ConfigError: for bad syntax, tags that would build objects, duplicate keys, keys that are not strings
            or too many values.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(
            f"{name} has {len(text)} characters; a configuration may have at most {MAX_BYTES}"
        )
    origins = Origins()
    loader = _Loader(text)
    loader.budget = ValueBudget(name, "")
    try:
        node = loader.get_single_node()
        if node is None:
            return None, origins
        budget = ValueBudget(name, "once its aliases are expanded")
        _inspect(node, (), name, origins, budget)
        return loader.construct_document(node), origins
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(
            error, "context_mark", None
        )
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
    finally:
        loader.dispose()


def dump_yaml(values: dict[str, Any]) -> str:
    """Write settings as YAML text that `parse_yaml` reads back to the same values."""
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True
    )


def dotted(path: KeyPath) -> str:
    """Return a key path as text.

    Example:
        >>> dotted(("a", "ops", 0, "p"))
        'a.ops[0].p'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def copied(value: Any, budget: ValueBudget) -> Any:
    """Return a deep copy of YAML values, after counting them.

    Raises:
        ConfigError: if the budget is exhausted.
    """
    budget.spend(count_values(value))
    return copy.deepcopy(value)


def count_values(value: Any) -> int:
    """Return the number of values in nested mappings and lists, including these.

    Example:
        >>> count_values({"a": [1, 2]})
        4
    """
    count = 1
    if isinstance(value, dict):
        for item in value.values():
            count += count_values(item)
    elif isinstance(value, list):
        for item in value:
            count += count_values(item)
    return count


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads `1e-4` as a number, as YAML 1.2 does."""

    budget: ValueBudget

    def compose_node(
        self, parent: yaml.Node | None, index: Any
    ) -> yaml.Node | None:
        """Count each node while the text is parsed, so that a long text ends early."""
        self.budget.spend()
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes strings that `_Loader` would read as numbers."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


_STRING = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"


def _inspect(
    node: yaml.Node,
    path: KeyPath,
    name: str,
    origins: Origins,
    budget: ValueBudget,
) -> None:
    """Record the line of every key and list item below a node, with aliases expanded.

    Raises:
        ConfigError: for duplicate keys, keys that are not strings, excessively long numbers and too many
            values.
    """
    budget.spend()
    if isinstance(node, yaml.MappingNode):
        _inspect_mapping(node, path, name, origins, budget)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            below = origins.child(index)
            below.place = f"{name}:{item.start_mark.line + 1}"
            _inspect(item, (*path, index), name, below, budget)
    elif node.tag != _STRING and len(node.value) > MAX_NUMBER_LENGTH:
        raise ConfigError(
            f"{name}:{node.start_mark.line + 1} has a number of {len(node.value)} characters"
        )


def _inspect_mapping(
    node: yaml.MappingNode,
    path: KeyPath,
    name: str,
    origins: Origins,
    budget: ValueBudget,
) -> None:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        line = key_node.start_mark.line + 1
        if key_node.tag not in (_STRING, _MERGE):
            shown = f": {key}" if isinstance(key, str) else ""
            raise ConfigError(
                f"{name}:{line} has a key that is not a string{shown}"
            )
        if key in seen:
            raise ConfigError(
                f"{name}:{line} sets {dotted((*path, key))} again; line {seen[key]} sets it already"
            )
        seen[key] = line
        below = origins.child(key)
        below.place = f"{name}:{line}"
        _inspect(value_node, (*path, key), name, below, budget)
