"""An image with an error costs only its own prediction, and results before an error are kept."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.core import ConfigError, DataError
from src.core.errors import NumericsError
from src.data.dataset import decoding
from src.inference import Detector, Tiling, reading


@pytest.fixture
def bad_images(tmp_path, val_images):
    """Return values that are not images, by kind."""
    whole = val_images[0].read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    Image.new("L", (20_000, 20_000)).save(tmp_path / "huge.png")
    Image.new("F", (8, 8)).save(tmp_path / "float.tiff")
    closed = Image.open(val_images[0])
    closed.close()
    return {
        "truncated": tmp_path / "truncated.jpg",
        "empty": tmp_path / "empty.jpg",
        "text": tmp_path / "text.jpg",
        "folder": tmp_path / "folder.jpg",
        "missing": tmp_path / "missing.jpg",
        "null character": "a\0.jpg",
        "FIFO": tmp_path / "fifo.jpg",
        "device": "/dev/zero",
        "huge": tmp_path / "huge.png",
        "floating point": tmp_path / "float.tiff",
        "closed": closed,
        "None": None,
        "number": 7,
        "dict": {"image": val_images[0]},
        "bytes": whole,
        "list": [val_images[0]],
        "array of floats": np.zeros((8, 8, 3)),
        "array of objects": np.array([[None]]),
        "array of text": np.array(["a.jpg"]),
        "array of four channels": np.zeros((8, 8, 4), np.uint8),
        "array without pixels": np.zeros((0, 8, 3), np.uint8),
        "array of five dimensions": np.zeros((1, 2, 8, 8, 3), np.uint8),
        "number array": np.uint8(3) * np.ones((), np.uint8),
        "tensor of floats": torch.zeros(3, 8, 8),
        "tensor without data": torch.zeros(
            3, 8, 8, dtype=torch.uint8, device="meta"
        ),
        "sparse tensor": torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(),
    }


def test_bad_images_cost_only_their_own_predictions(
    detector, val_images, bad_images
):
    images = []
    for number, bad in enumerate(bad_images.values()):
        images += [val_images[number % 8], bad]
    found = detector.predict(images, errors="skip", batch_size=4)
    assert len(found) == len(images)
    good = detector.predict(val_images)
    for number, prediction in enumerate(found[::2]):
        assert prediction.error is None
        assert prediction.source == str(val_images[number % 8])
        np.testing.assert_allclose(
            prediction.boxes, good[number % 8].boxes, atol=1e-3
        )
    for (kind, bad), prediction in zip(bad_images.items(), found[1::2]):
        assert prediction.error and len(prediction) == 0, kind
        assert prediction.boxes.shape == (0, 4) and prediction.size == (0, 0)
        if isinstance(bad, str | Path):
            assert prediction.source == str(bad)
            assert str(bad) in prediction.error
    sizes = [
        list(seen.image.shape)
        for seen in detector.stream(images[:2], errors="skip")
    ]
    assert sizes == [[3, 64, 64], [3, 0, 0]]


def test_a_single_bad_image_gives_a_prediction_with_its_error(
    detector, bad_images
):
    del bad_images["list"], bad_images["folder"]  # several images
    del bad_images["array of five dimensions"]
    for kind, bad in bad_images.items():
        found = detector.predict(bad, errors="skip")
        assert found.error, kind
        with pytest.raises((ConfigError, DataError)) as caught:
            detector.predict(bad)
        assert str(caught.value) == found.error


def test_results_before_an_error_are_yielded(detector, val_images, tmp_path):
    images = [*val_images[:3], tmp_path / "none.jpg", val_images[3]]
    found = []
    with pytest.raises(DataError, match=r"none\.jpg"):
        found.extend(detector.stream(images))
    assert [seen.prediction.source for seen in found] == list(
        map(str, images[:3])
    )


@pytest.mark.parametrize("errors", ["raise", "skip"])
def test_results_before_an_error_of_the_iterable_are_yielded(
    detector, val_images, errors
):
    def images():
        yield from val_images[:3]
        raise KeyError("mine")

    found = []
    with pytest.raises(KeyError, match="mine"):
        found.extend(detector.stream(images(), errors=errors))
    assert [seen.prediction.source for seen in found] == list(
        map(str, val_images[:3])
    )


class Diverging:
    """An engine that gives NaN for dark images."""

    batch_size = None

    def __init__(self, engine):
        self.engine = engine

    def __call__(self, images, sizes):
        labels, boxes, scores = self.engine(images, sizes)
        scores = scores.clone()
        scores[images.flatten(1).mean(1) < 0.1] = torch.nan
        return labels, boxes, scores


@pytest.mark.parametrize("tiling", [None, Tiling(40)])
def test_nan_for_an_image_costs_only_its_own_prediction(
    detector, val_images, tiling
):
    diverging = Detector.from_parts(
        Diverging(detector.engine), detector.preprocessing, detector.classes
    )
    dark = np.zeros((50, 60, 3), np.uint8)
    images = [*val_images[:2], dark, *val_images[2:5]]
    found = diverging.predict(images, errors="skip", tiling=tiling)
    assert [one.error is None for one in found] == [
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    assert "scores that are not finite" in found[2].error
    assert found[2].size == (60, 50) and len(found[2]) == 0
    good = detector.predict(val_images[:5], tiling=tiling, threshold=0.4)
    for one, other in zip([*found[:2], *found[3:]], good):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    with pytest.raises(NumericsError, match="files of the batch"):
        diverging.predict([*val_images[:2], dark])


def test_image_without_memory_costs_only_its_own_prediction(
    detector, val_images, monkeypatch
):
    def no_memory(image, *arguments, **settings):
        if image == val_images[1]:
            raise MemoryError
        return original(image, *arguments, **settings)

    original = reading.read_image
    monkeypatch.setattr(reading, "read_image", no_memory)
    found = detector.predict(val_images[:3], errors="skip")
    assert [one.error for one in found] == [None, "MemoryError", None]
    with pytest.raises(MemoryError):
        detector.predict(val_images[:3])


def test_a_limit_of_the_process_is_not_an_error_of_an_image(
    detector, val_images, monkeypatch
):
    def too_many(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(decoding, "open_regular", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        detector.predict(val_images[:3], errors="skip")
