"""A FIFO, a socket or a device in place of a file is reported and never waited for, whatever opens it."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from src.core.errors import CheckpointError, DataError
from src.core.paths import open_regular
from src.data.dataset.decoding import ImageError, image_size, inspect_image
from src.data.dataset.image_names import is_image_file
from src.data.preparation.voc_xml import parse_xml
from src.data.preparation.yolo import read_yolo
from src.inference.metadata import metadata_for
from src.inference.sources import Source, Video, open_source
from src.runtime.weight_files import file_sha256, read_tensor_file
from tests.fixtures.commands import write_tiny_config
from tests.fixtures.label_formats import write_yolo
from tests.fixtures.tools_here import tool_here
from tests.fixtures.train_here import image_path, private_copy, train_here

SECONDS = 60
"""After this time a reader that waits for the FIFO is released, so that a fault fails and does not hang."""


@pytest.fixture
def fifo():
    """Return a function that puts a FIFO in place of a file."""
    paths: list[Path] = []

    def make(path: Path) -> Path:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        paths.append(path)
        return path

    def release() -> None:
        for path in paths:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    timer = threading.Timer(SECONDS, release)
    timer.daemon = True
    timer.start()
    yield make
    assert timer.is_alive(), "the FIFO was waited for"
    timer.cancel()


def test_only_regular_files_are_opened(tmp_path, fifo):
    (tmp_path / "a").write_bytes(b"content")
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"content"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (
            fifo(tmp_path / "fifo"),
            tmp_path / "socket",
            Path("/dev/null"),
        ):
            with pytest.raises(OSError, match="it is not a regular file"):
                open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    with pytest.raises(OSError, match="not a valid path"):
        open_regular("a\0b")


def test_a_file_that_becomes_a_fifo_after_its_check_is_not_waited_for(
    tmp_path, fifo, monkeypatch
):
    path = fifo(tmp_path / "fifo")
    regular = os.stat(__file__)
    assert stat.S_ISREG(regular.st_mode)
    monkeypatch.setattr("src.core.paths.os.stat", lambda _: regular)
    with pytest.raises(OSError, match="it is not a regular file"):
        open_regular(path)


@pytest.mark.parametrize("read", [inspect_image, image_size])
def test_image(tmp_path, fifo, read):
    path = fifo(tmp_path / "a.jpg")
    with pytest.raises(
        ImageError, match=r"a\.jpg cannot be read: it is not a regular"
    ):
        read(path)


def test_file_without_a_suffix_of_images(tmp_path, fifo):
    assert not is_image_file(fifo(tmp_path / "a.data"))


def test_checkpoint(tmp_path, fifo):
    with pytest.raises(CheckpointError, match=r"a\.pth is not a regular file"):
        read_tensor_file(fifo(tmp_path / "a.pth"))
    with pytest.raises(OSError, match="not a regular file"):
        file_sha256(tmp_path / "a.pth")


def test_metadata_beside_an_exported_model(tmp_path, fifo):
    fifo(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        metadata_for(tmp_path / "a.onnx", None)


def test_annotation_file_of_voc(tmp_path, fifo):
    with pytest.raises(DataError, match="not a regular file"):
        parse_xml(fifo(tmp_path / "a.xml"))


@pytest.mark.parametrize(
    "name", ["data.yaml", "labels/train/a.txt", "train.txt"]
)
def test_text_files_of_yolo(tmp_path, fifo, name):
    yaml = write_yolo(tmp_path)
    if name == "train.txt":
        yaml.write_text(yaml.read_text().replace("images/train", "train.txt"))
    fifo(tmp_path / name)
    with pytest.raises(DataError, match="not a regular file"):
        read_yolo(yaml)


@pytest.mark.parametrize("name", ["a.mp4", "a.jpg"])
def test_input_of_inference(tmp_path, fifo, name):
    path = fifo(tmp_path / name)
    with pytest.raises(DataError, match="it is not a regular file"):
        open_source(str(path))


def test_video_that_was_replaced(tmp_path, fifo):
    pytest.importorskip("cv2")
    path = fifo(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="it is not a regular file"):
        Video(Source(path, is_video=True))


def test_image_of_a_data_set_in_check_and_training(tiny_data, tmp_path, fifo):
    data = private_copy(tiny_data, tmp_path / "data")
    path = fifo(image_path(data, 5))
    found = tool_here(
        "dataset.check", "--annotations", data.folder / "train.json", "--images",
        path.parent,
    )  # fmt: skip
    assert found.code == 3
    assert path.name in found.out + found.err
    config = write_tiny_config(tmp_path, data, epochs=1)
    ended = train_here("-c", config, "--seed=0")
    assert ended.code == 3
    assert f"{path.name}" in ended.err


def test_annotation_file_of_a_training(tiny_data, tmp_path, fifo):
    data = private_copy(tiny_data, tmp_path / "data")
    fifo(data.folder / "train.json")
    ended = train_here("-c", write_tiny_config(tmp_path, data))
    assert ended.code == 3
    assert "train.json cannot be read: it is not a regular file" in ended.err
