"""Imports, lazy ones included, follow the layers of docs/architecture.md; `ast` finds them in the source.

`src/__init__.py` is exempt: it imports what it exports when that is used.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.fixtures.golden import ROOT

ALLOWED = {
    "core": (),
    "ops": (),
    "runtime": ("core",),
    "detection": ("core", "runtime"),
    "nn": ("core", "ops", "runtime", "detection"),
    "zoo": ("core", "ops", "runtime", "detection", "nn"),
    "data": ("core", "ops", "runtime", "detection"),
    "optim": ("core", "runtime"),
    "solver": ("core", "ops", "runtime", "detection"),
    "inference": ("core", "ops", "runtime", "detection", "nn", "zoo", "data"),
    "serving": ("core", "runtime", "detection", "data", "inference"),
    "cli": (
        "core",
        "ops",
        "runtime",
        "detection",
        "nn",
        "zoo",
        "data",
        "optim",
        "solver",
        "inference",
        "serving",
        "api",
    ),
    "api": (
        "core",
        "ops",
        "runtime",
        "detection",
        "nn",
        "zoo",
        "data",
        "optim",
        "solver",
        "inference",
    ),
    "two_names": (),
    "__main__": ("cli",),
}
"""For each package and module of `src`, the packages it may import besides itself."""

EVERYWHERE = {"", "__version__", "two_names"}
"""What all packages may import from the root: the package itself, its version and its names."""

OUTSIDE = {"core": {"yaml", "torch", "msgspec"}, "ops": {"torch"}}
"""For the two lowest floors, what they may import besides the standard library."""

LAZY = {
    "timm",
    "huggingface_hub",
    "safetensors",
    "tensorboard",
    "wandb",
    "mlflow",
    "clearml",
    "pycocotools",
    "faster_coco_eval",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "openvino",
    "cv2",
    "fiftyone",
    "jinja2",
}
"""Heavy or optional packages: imported inside the functions that use them."""

COMMANDS = [
    ROOT / "train.py",
    *sorted((ROOT / "src/cli").glob("*.py")),
    # not those of tools/benchmark/peers, which run in the environments of other libraries
    *sorted((ROOT / "tools").glob("*.py")),
    *sorted((ROOT / "tools").glob("*/*.py")),
    *sorted((ROOT / "reference").glob("*.py")),
    *sorted((ROOT / "tests/harness").glob("*.py")),
]
LIGHT = ("src.cli", "src.two_names", "src.__version__")
"""Modules of `src` that import only the standard library."""

SOURCES = [
    path
    for path in sorted((ROOT / "src").rglob("*.py"))
    if path != ROOT / "src/__init__.py"
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(
    tree: ast.AST, package: list[str]
) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module) for every import in `tree`; `package` is the path of its package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                package[: len(package) - node.level + 1] if node.level else []
            )
            base = base + (node.module.split(".") if node.module else [])
            if node.module is None or base == ["src"]:  # from . import a, b
                yield from (
                    (node.lineno, ".".join([*base, alias.name]))
                    for alias in node.names
                )
            else:
                yield node.lineno, ".".join(base)


def layer_faults(file: str, text: str) -> list[str]:
    """Return "file:line imports ..., allowed are ..." for each import in `src` that violates the layers."""
    *package, _ = file.split("/")
    own = package[1] if len(package) > 1 else Path(file).stem
    faults = []
    for line, module in imported_modules(ast.parse(text), package):
        top, _, rest = module.partition(".")
        if top == "src":
            allowed = [own, *ALLOWED[own]]
            fits = rest.split(".")[0] in {*allowed, *EVERYWHERE}
        elif own in OUTSIDE:
            allowed = ["the standard library", *sorted(OUTSIDE[own])]
            fits = top in OUTSIDE[own] | sys.stdlib_module_names
        else:
            fits = top not in ("tools", "tests", "train")
            allowed = ["installed packages"]
        if not fits:
            faults.append(
                f"{file}:{line} imports {module}; src/{own} may import {', '.join(allowed)}"
            )
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_stay_in_their_layer_or_go_down(path):
    assert layer_faults(name_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "from ...solver import stages",
        "from ... import solver",
        "import src.solver.stages",
        "from src.solver import stages",
    ],
)
def test_an_upward_import_is_reported_with_file_line_and_allowed_imports(text):
    (fault,) = layer_faults(
        "src/nn/backbone/other.py", f"def later():\n    {text}\n"
    )
    assert fault.startswith("src/nn/backbone/other.py:2 imports src.solver")
    assert fault.endswith(
        "; src/nn may import nn, core, ops, runtime, detection"
    )


def test_an_external_package_in_the_lowest_layers_is_reported():
    assert layer_faults(
        "src/ops/boxes.py", "import math\nimport numpy as np"
    ) == [
        "src/ops/boxes.py:2 imports numpy; src/ops may import the standard library, torch"
    ]


def test_every_package_of_src_has_a_layer():
    tops = {path.relative_to(ROOT / "src").parts[0] for path in SOURCES}
    assert {top.removesuffix(".py") for top in tops} == set(ALLOWED)


@pytest.mark.parametrize(
    "path", [*SOURCES, *COMMANDS, ROOT / "src/__init__.py"], ids=name_of
)
def test_no_star_imports(path):
    stars = [
        f"{name_of(path)}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and any(alias.name == "*" for alias in node.names)
    ]
    assert stars == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src").glob("*/**/__init__.py")), ids=name_of
)
def test_package_init_lists_names_and_holds_no_logic(path):
    def is_plain(node: ast.stmt) -> bool:
        is_docstring = isinstance(node, ast.Expr) and isinstance(
            node.value, ast.Constant
        )
        is_all = isinstance(node, ast.Assign) and [
            target.id for target in node.targets
        ] == ["__all__"]
        return (
            is_docstring
            or is_all
            or isinstance(node, (ast.Import, ast.ImportFrom))
        )

    assert [
        f"{name_of(path)}:{node.lineno}"
        for node in ast.parse(path.read_text()).body
        if not is_plain(node)
    ] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_packages_are_imported_where_they_are_used(path):
    tree = ast.parse(path.read_text())
    at_import = ast.Module(
        [
            node
            for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ],
        [],
    )
    package = name_of(path).split("/")[:-1]
    assert [
        f"{name_of(path)}:{line} imports {module}"
        for line, module in imported_modules(at_import, package)
        if module.split(".")[0] in LAZY
    ] == []


@pytest.mark.parametrize("path", COMMANDS, ids=name_of)
def test_commands_parse_their_arguments_before_they_import_src_or_torch(path):
    at_import = ast.Module(
        [
            node
            for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ],
        [],
    )
    early = [
        f"{name_of(path)}:{line} imports {module}"
        for line, module in imported_modules(
            at_import, list(path.relative_to(ROOT).parts[:-1])
        )
        if module.split(".")[0]
        not in sys.stdlib_module_names | {"tools", "tests"}
        and not module.startswith(LIGHT)
    ]  # src.cli and tests.harness are held to the same
    assert early == []


def test_modules_do_not_import_each_other_in_a_circle():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in SOURCES
    }
    needs = {}
    for name, path in modules.items():
        at_import = ast.Module(
            [
                node
                for node in ast.parse(path.read_text()).body
                if isinstance(node, (ast.Import, ast.ImportFrom))
            ],
            [],
        )
        needs[name] = {
            module
            for _, module in imported_modules(
                at_import, name_of(path).split("/")[:-1]
            )
            if module in modules
        }

    def circle(name: str, chain: tuple[str, ...]) -> tuple[str, ...]:
        if name in chain:
            return (*chain[chain.index(name) :], name)
        if name in done:
            return ()
        found = next(
            (
                c
                for module in sorted(needs[name])
                if (c := circle(module, (*chain, name)))
            ),
            (),
        )
        done.add(name)
        return found

    done: set[str] = set()
    assert [c for name in sorted(needs) if (c := circle(name, ()))] == []


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(
    sources: dict[str, tuple[list[str], str]],
) -> dict[str, set[str]]:
    """Return which modules each module imports, within functions and for types alone included.

    Args:
        sources: for each module the names that lead to its folder, and its text.
    """
    graph = {}
    for module, (package, text) in sources.items():
        imported = {
            name for _, name in imported_modules(ast.parse(text), package)
        }
        graph[module] = {
            name for name in imported if name in sources and name != module
        }
    return graph


def test_no_module_imports_itself_in_a_circle_not_even_for_types():
    sources = {
        module_of(path): (
            list(path.relative_to(ROOT).parts[:-1]),
            path.read_text(),
        )
        for path in SOURCES
    }
    list(
        TopologicalSorter(import_graph(sources)).static_order()
    )  # CycleError names the modules of a circle


def test_a_circle_for_types_alone_is_found():
    sources = {
        "src.a": (["src"], "from .b import B"),
        "src.b": (["src"], "if TYPE_CHECKING:\n    from .a import A"),
    }
    with pytest.raises(CycleError, match="src.a.*src.b"):
        list(TopologicalSorter(import_graph(sources)).static_order())
