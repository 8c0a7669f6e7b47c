"""Check values that were read from files against typed schemas; the first violation is one clear error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from torch import Tensor

from .errors import CheckpointError

Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A non-negative integer that JSON and int64 can represent exactly."""

Positive = Annotated[int, Meta(ge=1, le=2**53)]
"""A positive integer, with the same limit."""

Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""A number that is neither NaN nor infinite."""

Fraction = Annotated[float, Meta(ge=0, le=1)]
"""A number from 0 to 1."""

Side = Annotated[int, Meta(ge=1, le=16384)]
"""Width or height of a model's input in pixels."""

Text = Annotated[str, Meta(max_length=100_000)]
"""A note for people."""

MAX_SHOWN = 80
"""Maximum number of characters of a wrong value in a message."""

T = TypeVar("T")


def checked(
    value: Any, schema: type[T], *, file: str | Path, part: str, advice: str
) -> T:
    """Return a value from a file, converted to the type of a schema.

    Args:
        value: mappings, lists, numbers, texts and tensors.
        schema: a `msgspec.Struct` class, or another type that msgspec supports. Unknown keys are ignored.
        file: the file, for messages.
        part: key of the value in the file, for messages; empty for the whole content.
        advice: what the user can do, for messages.

    Raises:
        CheckpointError: for the first key that is missing, has the wrong type or is out of range.

    Example:
        >>> progress = {"epoch": 3, "step": -1}
        >>> file = {"file": "last.pth", "part": "progress"}
        >>> checked(progress, dict[str, Count], **file, advice="use a copy")
        Traceback (most recent call last):
        src.core.errors.CheckpointError: last.pth: progress.step is -1, expected an integer >= 0; use a copy
    """
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        of_key = path.startswith("`key`")
    except RecursionError:
        raise CheckpointError(
            f"{file} is nested too deeply; {advice}"
        ) from None
    keys, wrong = _locate(value, schema, _steps(path))
    name = _name(part, keys) or "the content"
    if of_key:
        raise CheckpointError(
            f"{file}: {_wrong_key(name, wrong, text)}; {advice}"
        )
    raise CheckpointError(f"{file}: {name}{_fault(text, wrong)}; {advice}")


def shown(value: Any) -> str:
    """Return a short text for a value of any type, for messages.

    Example:
        >>> shown([1, 2, 3]), shown("a" * 100)[-8:]
        ('a list of 3', 'aaaa ...')
    """
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    if isinstance(value, list | tuple | set):
        return f"a list of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
    "Tensor": "a tensor",
}
"""Names of types in msgspec's messages, and the words for them in ours."""

_TYPE = re.compile(r"Expected `([^`]+)`([^,]*)")
"""The expected type in a message of msgspec, and the range after it."""

_ANY_VALUE = "..."
"""In a path of msgspec: a value of a mapping whose key is not known."""


def _steps(path: str) -> list[str | int]:
    """Convert "`$.classes[1].id`" to ["classes", 1, "id"]; a key that is not a string ends the path."""
    path = path.rpartition("`$")[2].rstrip("`")
    steps: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        steps.append(int(index) if index.isdigit() else index or name)
    return steps


def _locate(
    value: Any, schema: type, steps: list[str | int]
) -> tuple[list[str | int], Any]:
    """Follow a path of msgspec into a value; find the keys of mappings that the path leaves open."""
    keys: list[str | int] = []
    part = value
    for step in steps:
        if step == _ANY_VALUE:
            step = _first_wrong_key(value, schema, keys, part)
        keys.append(step)
        part = part[step]
    return keys, part


def _first_wrong_key(
    value: Any, schema: type, keys: list[str | int], mapping: Mapping[Any, Any]
) -> Any:
    """Return the key of a mapping, found at `keys`, whose value alone makes the conversion fail."""
    for key, item in mapping.items():
        try:
            msgspec.convert(_replaced(value, keys, {key: item}), schema)
        except msgspec.ValidationError:
            return key
    return next(iter(mapping))


def _replaced(value: Any, keys: list[str | int], new: Any) -> Any:
    """Return a copy of nested containers in which the part at `keys` is `new`."""
    if not keys:
        return new
    copied: Any = dict(value) if isinstance(value, Mapping) else list(value)
    copied[keys[0]] = _replaced(value[keys[0]], keys[1:], new)
    return copied


def _name(part: str, keys: list[Any]) -> str:
    text = part
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.removeprefix(".")


def _wrong_key(name: str, mapping: Mapping[Any, Any], text: str) -> str:
    """Return the message about a key of the wrong type in a mapping."""
    expected = _TYPE.search(text)
    words = _WORDS.get(expected[1], expected[1]) if expected else "another key"
    kind = {"a text": str, "an integer": int}.get(words, object)
    wrong = next((key for key in mapping if not isinstance(key, kind)), None)
    return f"{name} has the key {shown(wrong)}, expected {words}"


def _fault(text: str, wrong: Any) -> str:
    """Return the end of a message: the value that was found, and the expected one."""
    missing = re.search(r"missing required field `(.*)`", text)
    if missing:
        return f" has no {missing[1]}"
    expected = _TYPE.match(text)
    if expected is None:
        return f" is {shown(wrong)}: {text}"
    if isinstance(wrong, float) and not math.isfinite(wrong):
        return f" is {wrong}, expected a finite number"
    types = expected[1].split(" | ")
    words = " or ".join(_WORDS.get(name, name) for name in types)
    return f" is {shown(wrong)}, expected {words}{expected[2]}"
