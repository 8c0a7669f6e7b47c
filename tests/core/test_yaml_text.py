"""A small text cannot stand for a huge configuration: each bomb is refused within seconds."""

import os
import time

import pytest

from src.core.errors import ConfigError
from src.core.yaml_config import YAMLConfig
from src.core.yaml_text import MAX_BYTES, count_values, parse_yaml

LIMIT_SECONDS = 5
"""Maximum CPU time until a bomb is refused."""

LEVELS = list(zip("bcdefgh", "abcdefg"))
"""Names of settings, each of which refers to the one before it."""


def reference(name: str) -> str:
    return '"${' + name + '}"'


def nested_lists(item) -> str:
    """Return lists of ten items, each the whole list before."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for name, before in LEVELS:
        lines.append(f"{name}: &{name} [{', '.join([item(before)] * 10)}]")
    return "\n".join(lines)


def nested_maps(item) -> str:
    lines = ["a: &a {x: 1, y: 2}"]
    for name, before in LEVELS:
        pairs = ", ".join(f"k{number}: {item(before)}" for number in range(20))
        lines.append(f"{name}: &{name} {{{pairs}}}")
    return "\n".join(lines)


def nested_merges() -> str:
    lines = ["a: &a {x: 1}"]
    for name, before in LEVELS:
        lines.append(
            f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}"
        )
    return "\n".join(lines)


BOMBS = {
    "references in lists": nested_lists(reference),
    "references in mappings": nested_maps(reference),
    "aliases in lists": nested_lists(lambda name: f"*{name}"),
    "aliases in mappings": nested_maps(lambda name: f"*{name}"),
    "merge keys": nested_merges(),
    "a deep list": "a: " + "[" * 100_000,
    "deep mappings": "a: " + "{b: " * 5_000,
    "many items": "a: [" + "x," * 240_000 + "]",
    "many keys": "\n".join(f"k{number}: 1" for number in range(30_000)),
    "many unknown settings": "DFINE: {"
    + ", ".join(f"k{number}: 1" for number in range(4_000))
    + "}",
    "many references": "a: 1\n"
    + "\n".join(f"k{number}: {reference('a')}" for number in range(12_000)),
    "many anchors": "\n".join(
        f"k{number}: &a{number} x" for number in range(15_000)
    ),
    "a number in base sixty": "a: " + ":".join(["59"] * 150_000),
    "a number of many digits": "a: " + "9" * 400_000,
    "a date of many digits": "a: 2026-01-01 10:00:00." + "1" * 400_000,
    "many escapes": 'a: "' + "\\x41" * 120_000 + '"',
    "more than the limit": "#" * (MAX_BYTES + 1),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_seconds(name, tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(BOMBS[name])
    began = time.process_time()
    with pytest.raises(ConfigError):
        YAMLConfig(path)
    assert time.process_time() - began < LIMIT_SECONDS


@pytest.mark.parametrize(
    "name", ["references in lists", "merge keys", "more than the limit"]
)
def test_text_in_a_checkpoint_has_the_same_limits(name):
    with pytest.raises(ConfigError, match=r"^best\.pth has"):
        YAMLConfig.from_text(BOMBS[name], "best.pth")


def test_includes_that_multiply_are_refused(tmp_path):
    for level in range(12):
        below = ", ".join([f"i{level + 1}.yml"] * 10)
        (tmp_path / f"i{level}.yml").write_text(f"__include__: [{below}]\n")
    (tmp_path / "i12.yml").write_text("epochs: 3\n")
    with pytest.raises(ConfigError, match="more than 200 files are included"):
        YAMLConfig(tmp_path / "i0.yml")


def test_includes_share_one_budget(tmp_path):
    for number in range(10):
        items = ", ".join(["1"] * 3_000)
        (tmp_path / f"i{number}.yml").write_text(f"a{number}: [{items}]\n")
    included = ", ".join(f"i{number}.yml" for number in range(10))
    (tmp_path / "all.yml").write_text(f"__include__: [{included}]\n")
    with pytest.raises(
        ConfigError, match="more than 20000 values with its includes"
    ):
        YAMLConfig(tmp_path / "all.yml")


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yml")
    with pytest.raises(ConfigError, match=r"pipe\.yml is not a regular file"):
        YAMLConfig(tmp_path / "pipe.yml")
    (tmp_path / "main.yml").write_text("__include__: [pipe.yml]\n")
    with pytest.raises(ConfigError, match=r"pipe\.yml is not a regular file"):
        YAMLConfig(tmp_path / "main.yml")


def test_every_key_and_item_has_a_place():
    value, origins = parse_yaml("a:\n  - {b: 1}\n  - 2\n", "x.yml")
    assert value == {"a": [{"b": 1}, 2]} and count_values(value) == 5
    assert dict(origins.paths()) == {
        ("a",): "x.yml:1",
        ("a", 0): "x.yml:2",
        ("a", 0, "b"): "x.yml:2",
        ("a", 1): "x.yml:3",
    }
