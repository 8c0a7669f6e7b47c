"""The examples in docstrings run and give the output that they show.

Examples may use `np` and `torch` without an import. They run in a folder with `best.pth` (a small trained
checkpoint), `image.jpg`, `images/` and `annotations.json`, so they can open files as a user does.
"""

import ast
import doctest
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.slow import slow
from tests.fixtures.trained_tiny import TRAINED

ROOT = Path(__file__).parents[2]

PACKAGES = (
    "src/ops",
    "src/nn",
    "src/zoo",
    "src/core",
    "src/inference",
    "src/data/transforms",
    "src/api.py",
)

COMPLETE = (
    "src/ops",
    "src/core/registry.py",
    "src/inference",
    "src/data/transforms",
    "src/api.py",
)
"""Packages and modules in which every public function and every exported class has an example."""

WITHOUT_EXAMPLE = {
    "src.inference.export.export_onnx": "needs onnxscript, which is optional",
    "src.inference.checked_export.export_checked_onnx": "needs onnxscript, which is optional",
    "src.inference.openvino_core.openvino_core": "needs OpenVINO, which is optional",
    "src.inference.opening.exported_parts": "needs an exported file and its runtime, which are optional",
    "src.inference.hub.upload": "needs Hugging Face Hub",
    "src.inference.hub.download": "needs Hugging Face Hub",
    "src.inference.int8_export.export_int8": "needs onnx and a quantizer, which are optional",
    "src.inference.quantizers.parts_of": "needs onnx, which is optional",
    "src.inference.quantizers.quantizer_for": "needs a quantizer, which is optional",
    "src.inference.quantizers.quantize_for_onnx_runtime": "needs onnx and ONNX Runtime, which are optional",
    "src.inference.quantizers.quantize_for_openvino": "needs OpenVINO and NNCF, which are optional",
    "src.inference.fiftyone_export.fiftyone_samples": "needs FiftyOne, which is optional",
    "src.inference.fiftyone_export.to_fiftyone": "needs FiftyOne, which is optional",
}
"""Functions that have no example, and the reason."""

SLOW_EXAMPLES = ("src.inference.engine_choice",)
"""Modules whose examples take long: this one exports a detector for each engine."""


def files_of(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def modules_with_examples() -> list[str]:
    """Return the names of modules that contain `>>>`; the others need not be imported."""
    names = []
    for package in PACKAGES:
        for file in files_of(package):
            if ">>> " in file.read_text(encoding="utf-8"):
                names.append(module_name(file))
    return names


def parameters_of_examples() -> list:
    """Return the modules, of which some are left to `make test-slow`."""
    names = modules_with_examples()
    fast = [name for name in names if name not in SLOW_EXAMPLES]
    return [*fast, *slow(*SLOW_EXAMPLES)]


def exported_names(place: str) -> set[str]:
    """Return `__all__` of a package; an empty set for a module or a package without `__all__`."""
    package = importlib.import_module(module_name(ROOT / place))
    return set(getattr(package, "__all__", ()))


def docstrings(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the docstring of a function, or those of a class and its methods."""
    found = [ast.get_docstring(node)]
    for child in node.body:
        if isinstance(child, ast.FunctionDef):
            found.append(ast.get_docstring(child))
    return "\n".join(filter(None, found))


def public_without_example(place: str) -> Iterator[str]:
    """Yield the public functions and exported classes of a package whose docstrings have no example."""
    exported = exported_names(place)
    for file in files_of(place):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            is_public = (
                isinstance(node, ast.FunctionDef)
                and not node.name.startswith("_")
            ) or (isinstance(node, ast.ClassDef) and node.name in exported)
            if is_public and ">>> " not in docstrings(node):
                yield f"{module_name(file)}.{node.name}"


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory, tiny_data) -> Path:
    """A folder with the files that the examples open."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(TRAINED, folder / "best.pth")
    images = folder / "images"
    images.mkdir()
    for image in sorted((tiny_data.folder / "images").glob("val_*.jpg")):
        shutil.copy(image, images)
    shutil.copy(min(images.iterdir()), folder / "image.jpg")
    shutil.copy(tiny_data.folder / "val.json", folder / "annotations.json")
    return folder


@pytest.mark.parametrize("name", parameters_of_examples())
def test_examples_give_the_output_that_they_show(
    name, example_folder, monkeypatch, capsys
):
    monkeypatch.chdir(example_folder)
    given = {"np": np, "torch": torch}
    result = doctest.testmod(
        importlib.import_module(name),
        extraglobs=given,
        optionflags=doctest.ELLIPSIS,
    )
    assert result.failed == 0, capsys.readouterr().out
    assert result.attempted > 0


@pytest.mark.parametrize("place", COMPLETE)
def test_everything_public_has_an_example(place):
    missing = set(public_without_example(place)) - set(WITHOUT_EXAMPLE)
    assert not missing, "add an example to the docstring of: " + ", ".join(
        sorted(missing)
    )


def test_exceptions_are_still_needed():
    missing = {
        name for place in COMPLETE for name in public_without_example(place)
    }
    assert set(WITHOUT_EXAMPLE) <= missing


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
            if isinstance(node, ast.FunctionDef) and not node.name.startswith(
                "_"
            ):
                assert ">>> " in (ast.get_docstring(node) or ""), node.name
