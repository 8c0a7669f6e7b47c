"""`dfine benchmark --files` measures exported models beside those that it exports."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from src.cli import benchmark
from src.core import ConfigError
from src.inference import exported_engines

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def engines_without_files(monkeypatch):
    """Engines that only have a batch size: 4 if that is in the name of the file."""

    def opened(path, *_, **__):
        batch_size = 4 if "four" in path.name else None
        return SimpleNamespace(
            path=path, input_size=SIZE, batch_size=batch_size
        )

    monkeypatch.setattr(exported_engines, "OnnxEngine", opened)
    monkeypatch.setattr(exported_engines, "OpenVinoEngine", opened)


def opened(*files: str, batch: int = 1, size: tuple[int, int] = SIZE) -> dict:
    arguments = SimpleNamespace(
        files=[Path(file) for file in files],
        batch=batch,
        threads=1,
        device="cpu",
    )
    return benchmark.open_files(size, arguments)


def test_files_have_their_names_in_the_table():
    assert list(opened("a/best.onnx", "a/best.int8.xml", "B.ONNX")) == [
        "best.onnx",
        "best.int8.xml",
        "B.ONNX",
    ]


def test_files_of_the_same_name_are_all_measured():
    engines = opened("a/best.onnx", "b/best.onnx")
    assert list(engines) == ["a/best.onnx", "b/best.onnx"]
    assert engines["b/best.onnx"].path == Path("b/best.onnx")


@pytest.mark.parametrize("batch", [1, 6])
def test_a_fixed_batch_size_that_would_be_filled_up_is_refused(batch):
    with pytest.raises(
        ConfigError, match=f"fixed batch size 4, but --batch is {batch}; give"
    ):
        opened("four.onnx", batch=batch)


def test_a_fixed_batch_size_that_fits_is_measured():
    assert list(opened("four.onnx", batch=8)) == ["four.onnx"]


def test_another_input_size_is_refused():
    with pytest.raises(ConfigError, match=r"input size \[64, 64\], expected"):
        opened("best.onnx", size=(96, 64))


def test_another_kind_of_file_is_refused():
    with pytest.raises(ConfigError, match=r"expected exported models that end"):
        opened("best.engine")
