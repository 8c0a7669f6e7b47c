"""Images are read ahead in order, within a limit on the pixels in memory."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from src.core import ConfigError
from src.data.dataset import decoding
from src.data.dataset.decoding import ImageError
from src.inference import reading
from src.inference.reading import (
    PixelBudget,
    ReadImage,
    batches,
    read_ahead,
    read_image,
)
from tests.fixtures.progress import wait_until
from tests.fixtures.tiny import ROOT


@pytest.fixture
def files(tmp_path):
    """Twelve images of 100 x 100 pixels."""
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("RGB", (100, 100), (number, 0, 0)).save(path)
    return paths


@pytest.mark.parametrize("limit", [1, 10_000, 25_000, 10**9])
def test_images_come_in_order_whatever_the_limit(files, limit):
    budget = PixelBudget(limit)
    found = list(read_ahead(files, ahead=6, budget=budget))
    assert [image.source for image in found] == [str(path) for path in files]
    assert [int(image.image[0, 0, 0]) for image in found] == list(range(12))
    assert budget.take(limit)  # all room is free again


def test_no_more_pixels_than_the_limit_are_decoded_at_once(files, monkeypatch):
    lock = threading.Lock()
    now = []
    most = []
    original = decoding.picture_of

    def convert(image, **settings):
        with lock:
            now.append(1)
            most.append(len(now))
        time.sleep(0.02)
        with lock:
            now.pop()
        return original(image, **settings)

    monkeypatch.setattr(decoding, "picture_of", convert)
    list(read_ahead(files, ahead=8, budget=PixelBudget(10_000)))
    # one in a thread, and one in the caller
    assert max(most) <= 2
    most.clear()
    list(read_ahead(files, ahead=8, budget=PixelBudget(10**9)))
    assert max(most) > 2


def test_room_is_freed_when_a_stream_is_left_early(files):
    budget = PixelBudget(40_000)
    stream = read_ahead([*files, None], ahead=6, budget=budget)
    next(stream)
    stream.close()
    wait_until(
        lambda: budget.take(40_000), os.getpid(), lambda: "room is not freed"
    )


def test_leaving_a_stream_does_not_wait_for_its_threads(files, monkeypatch):
    """The garbage collector may leave it inside the start of a thread, where joining a thread never ends."""
    goes_on = threading.Event()
    original = reading.read_image

    def read_image(image, *arguments, **settings):
        if image == files[1]:
            goes_on.wait()
        return original(image, *arguments, **settings)

    monkeypatch.setattr(reading, "read_image", read_image)
    stream = read_ahead(files, ahead=6)
    next(stream)
    closing = threading.Thread(target=stream.close, daemon=True)
    closing.start()
    closing.join(60)
    has_ended = not closing.is_alive()
    goes_on.set()
    assert has_ended


def test_a_suspended_stream_does_not_hold_up_another(files):
    budget = PixelBudget(20_000)
    suspended = read_ahead(files, ahead=6, budget=budget)
    next(suspended)
    assert len(list(read_ahead(files, ahead=6, budget=budget))) == 12


def test_arrays_need_no_room():
    array = np.zeros((100, 100, 3), np.uint8)
    found = list(read_ahead([array] * 5, ahead=4, budget=PixelBudget(0)))
    assert [image.pixels for image in found] == [0] * 5


def test_large_images_are_computed_in_smaller_batches(monkeypatch):
    monkeypatch.setattr(reading, "MAX_PIXELS_AT_ONCE", 100)
    pixels = [40, 40, 40, 200, 10, 90, 0, 0, 0, 0]
    images = [ReadImage(np.zeros(0), None, count) for count in pixels]
    found = [
        [image.pixels for image in batch] for batch in batches(iter(images), 3)
    ]
    assert found == [[40, 40], [40], [200], [10, 90], [0, 0, 0], [0]]


MEASURE = """
import json, resource, sys
import torch
from src.inference import Detector

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
detector = Detector.from_checkpoint("tests/fixtures/trained_tiny.pth", device="cpu")
detector.predict("docs/images/report.png")
before = peak()
found = detector.predict([sys.argv[1]] * 4)
print(json.dumps([peak() - before, [one.size for one in found]]))
"""


@pytest.mark.slow
def test_memory_for_several_huge_images_is_bounded(tmp_path):
    """36 million pixels: 144 MB in Pillow, 108 MB as a tensor. At most one is read in a thread, one by the
    caller and one computed, which is 612 MB; without limits and strips, four took 2 GB.
    """
    path = tmp_path / "huge.png"
    Image.new("RGB", (6000, 6000)).save(path)
    assert path.stat().st_size < 500_000
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, path],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    megabytes, sizes = json.loads(result.stdout)
    assert sizes == [[6000, 6000]] * 4
    assert megabytes < 800


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((70_000, 1, 3), np.uint8),
        np.zeros((1, 70_000), np.uint8),
        torch.zeros(3, 70_000, 1, dtype=torch.uint8),
        Image.new("RGB", (1, 70_000)),
    ],
    ids=["column", "row", "tensor", "PIL"],
)
def test_an_image_with_a_long_side_is_refused_because_of_the_memory_to_resize_it(
    image,
):
    with pytest.raises((ConfigError, ImageError), match="at most 65535"):
        read_image(image)
