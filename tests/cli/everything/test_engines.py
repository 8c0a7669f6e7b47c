"""The measurement of the engines gives a figure for each of them."""

import pytest

from src.cli.everything.engines import FLOAT_TARGET, INT8_TARGET, measure
from src.cli.everything.figures import Settings


@pytest.mark.slow
def test_each_engine_has_a_figure_in_float_and_in_int8(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(
            package,
            reason=f"{package} is not installed (tools/requirements.txt)",
        )
    monkeypatch.setattr(
        "src.cli.everything.engines.is_installed",
        lambda name: name == "onnxruntime",
    )
    figures = list(
        measure(
            Settings(tmp_path, repeats=1),
            "configs/dfine/demo/dfine_dinov3_demo.yml",
            (64, 64),
        )
    )
    engines = [figure.work.rpartition("64, ")[2] for figure in figures]
    assert engines == ["torch", "ONNX Runtime", "ONNX Runtime, int8"]
    assert [figure.target for figure in figures] == [
        None,
        FLOAT_TARGET,
        INT8_TARGET,
    ]
    assert all(figure.row == 1 and figure.value > 0 for figure in figures)
