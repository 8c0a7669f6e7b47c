"""The examples in docstrings run and give the output that they show.

`pytest --doctest-modules src/ops` does the same for a package; here they are a part of `make test`.
"""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PACKAGES = (
    "src/ops",
    "src/nn",
    "src/zoo",
    "src/core",
    "src/inference",
    "src/data/transforms",
)


def modules_with_examples() -> list[str]:
    """Return the names of modules that contain `>>>`; the others need not be imported."""
    names = []
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if ">>> " in file.read_text(encoding="utf-8"):
                names.append(".".join(file.relative_to(ROOT).with_suffix("").parts))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_give_the_output_that_they_show(name, capsys):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, capsys.readouterr().out
    assert result.attempted > 0


def test_packages_with_examples_are_found():
    known = {
        "src.ops.boxes",
        "src.nn.lora",
        "src.zoo.dfine.hybrid_encoder",
        "src.core.registry",
        "src.inference.tiling",
    }
    assert known <= set(modules_with_examples())


def test_every_public_function_of_ops_has_an_example():
    for file in sorted((ROOT / "src/ops").glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert ">>> " in (ast.get_docstring(node) or ""), node.name
