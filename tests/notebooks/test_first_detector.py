"""The notebook runs from top to bottom, and is stored without outputs.

Without its packages (notebooks/requirements.txt) it is not run, unless REQUIRE_NOTEBOOK is set.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fixtures.tiny import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks/first_detector.ipynb"

BEGINNING = f"""\
import sys

sys.path.insert(0, {str(ROOT)!r})
from src.two_names import import_under_both_names

import_under_both_names()
"""
"""Makes `dfine_dinov3` the package of this tree, where it is not installed."""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def cells(notebook: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def stored_results(notebook: dict[str, Any]) -> list[str]:
    """Return what a notebook contains that depends on its last run."""
    found = []
    for cell in cells(notebook, "code"):
        if cell["outputs"]:
            found.append(f"{cell['id']}: outputs")
        if cell["execution_count"] is not None:
            found.append(f"{cell['id']}: execution_count")
    for cell in notebook["cells"]:
        if cell["metadata"]:
            found.append(f"{cell['id']}: metadata")
    for name in set(notebook["metadata"]) - {"kernelspec", "language_info"}:
        found.append(name)
    if set(notebook["metadata"]["language_info"]) != {"name"}:
        found.append("language_info")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(path):
    assert not stored_results(read(path))


def test_stored_outputs_are_noticed():
    notebook = read(FIRST)
    cell = cells(notebook, "code")[1]
    cell["outputs"] = [{"output_type": "stream", "text": ["a"]}]
    cell["execution_count"] = 3
    notebook["metadata"]["language_info"]["version"] = "3.11"
    name = cell["id"]
    assert stored_results(notebook) == [
        f"{name}: outputs",
        f"{name}: execution_count",
        "language_info",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_explanation_has_a_chinese_line(path):
    for cell in cells(read(path), "markdown"):
        if source(cell).strip() != "## Next":
            assert re.search(r"[\u4e00-\u9fff]", source(cell)), cell["id"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_links_of_a_notebook_lead_to_files(path):
    for cell in cells(read(path), "markdown"):
        for link in re.findall(r"\]\(([^)#]+)", source(cell)):
            assert (path.parent / link).is_file(), link


def texts(outputs: list[dict[str, Any]]) -> str:
    """Return what a cell has printed."""
    printed = [item for item in outputs if item.get("name") == "stdout"]
    return "".join(item["text"] for item in printed)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    for name in ("ipykernel", "nbclient", "onnxscript", "onnxruntime"):
        if not os.environ.get("REQUIRE_NOTEBOOK"):
            pytest.importorskip(name)
    import nbclient
    import nbformat

    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("docs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    notebook = nbformat.read(FIRST, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(BEGINNING))
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = 0
    for cell in code:
        for output in cell.outputs:
            pictures += "image/png" in output.get("data", {})
    assert pictures == 3
    printed = "".join(texts(cell.outputs) for cell in code)
    score = re.search(r"AP50 +(\d\.\d+)", printed)
    assert score and float(score[1]) > 0.3, printed
    assert "best.onnx" in printed
    run = folder / "runs/notebook/run"
    assert (run / "best.pth").is_file() and (run / "best.onnx").is_file()


def test_the_lines_left_out_for_own_data_are_the_only_ones_that_need_the_synthetic_images(
    tmp_path,
):
    code = [source(cell) for cell in cells(read(FIRST), "code")]
    written = next(text for text in code if "write_synthetic_coco(" in text)
    shown = code[code.index(written) + 1]
    assert shown.splitlines()[-1].startswith("side_by_side([labelled(")
    others = "\n".join(shown.splitlines()[:-1])
    names: dict[str, Any] = {"data": tmp_path}
    exec(others, names)  # opens no file of the folder
    small, large = (Image.new("RGB", (5, side)) for side in (4, 9))
    assert names["side_by_side"]([small, large], gap=1).size == (12, 9)
    for text in [*code[: code.index(written)], *code[code.index(shown) + 1 :]]:
        assert "labelled" not in text and "write_synthetic_coco" not in text
