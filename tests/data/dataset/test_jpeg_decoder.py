"""torchvision's JPEG decoder is loaded without torchvision."""

import importlib.util
import io

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.dataset import jpeg_decoder
from src.data.dataset.jpeg_decoder import find_jpeg_decoder


def jpeg_bytes() -> torch.Tensor:
    pixels = np.linspace(0, 255, 24 * 32 * 3).reshape(24, 32, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="JPEG")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pixels_are_those_of_torchvisions_function():
    from torchvision.io import ImageReadMode, decode_jpeg

    data = jpeg_bytes()
    decode = find_jpeg_decoder()
    assert torch.equal(decode(data), decode_jpeg(data, ImageReadMode.RGB))


def test_other_bytes_raise_a_runtime_error():
    with pytest.raises(RuntimeError):
        find_jpeg_decoder()(torch.zeros(100, dtype=torch.uint8))


def test_there_is_no_decoder_without_torchvision(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert find_jpeg_decoder() is None


def test_there_is_no_decoder_if_the_library_cannot_be_loaded(
    monkeypatch, tmp_path
):
    broken = tmp_path / "image.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(jpeg_decoder, "image_libraries", lambda: [broken])
    assert find_jpeg_decoder() is None
