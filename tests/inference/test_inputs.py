"""Inputs of `Detector.predict`: folders, videos, generators and what is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import GeneratorType

import pytest

from src.core import ConfigError, DataError
from tests.fixtures.videos import write_avi


@pytest.fixture
def video(tmp_path) -> Path:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    return write_avi(tmp_path / "clip.avi", frames=5)


@pytest.fixture
def cut_video(video) -> Path:
    """A video that ends before its last frames."""
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    return video


def test_a_folder_gives_the_predictions_of_its_images_by_name(
    detector, val_images, tmp_path
):
    (tmp_path / "inner").mkdir()
    shutil.copy(val_images[1], tmp_path / "inner" / "b.jpg")
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    found = detector.predict(str(tmp_path))
    names = [Path(prediction.source).name for prediction in found]
    assert names == ["a.jpg", "b.jpg"]


def test_a_folder_without_images_is_refused(detector, tmp_path):
    with pytest.raises(DataError, match="has no image files"):
        detector.predict(tmp_path)


def test_a_video_gives_a_prediction_for_each_frame(detector, video):
    found = detector.predict(video, batch_size=2)
    assert [prediction.size for prediction in found] == [(64, 48)] * 5


def test_a_streamed_video_gives_the_same_one_by_one(detector, video):
    found = detector.predict(video, threshold=0.01)
    stream = detector.predict(str(video), threshold=0.01, stream=True)
    assert isinstance(stream, Iterator)
    assert [one.scores.tolist() for one in stream] == [
        one.scores.tolist() for one in found
    ]


def test_the_frames_of_a_streamed_video_come_with_their_predictions(
    detector, video
):
    shapes = [list(seen.image.shape) for seen in detector.stream(video)]
    assert shapes == [[3, 48, 64]] * 5


def test_a_truncated_video_is_an_error_after_the_frames_before_it(
    detector, cut_video
):
    seen = []
    with pytest.raises(DataError, match="truncated or damaged"):
        seen.extend(detector.predict(cut_video, stream=True))
    assert 0 < len(seen) < 5


def test_a_truncated_video_gives_a_list_and_a_warning_if_errors_are_skipped(
    detector, cut_video, caplog
):
    assert 0 < len(detector.predict(cut_video, errors="skip")) < 5
    assert "truncated or damaged" in caplog.text


def test_a_streamed_generator_is_read_only_as_far_as_needed(
    detector, val_images
):
    taken = []

    def files() -> Iterator[Path]:
        for number in range(100):
            taken.append(number)
            yield val_images[0]

    stream = detector.predict(files(), batch_size=1, stream=True)
    assert len(next(stream)) == len(detector.predict(val_images[0]))
    assert len(taken) < 10


def test_a_generator_gives_a_list(detector, val_images):
    generator = (path for path in val_images[:2])
    assert isinstance(generator, GeneratorType)
    assert len(detector.predict(generator)) == 2


def test_a_streamed_image_gives_one_prediction(detector, val_images):
    (found,) = detector.predict(val_images[0], stream=True)
    assert found.source == str(val_images[0])


@pytest.mark.parametrize(
    "address",
    ["https://example.org/a.jpg", "rtsp://camera/1", "HTTP://x.org/clip.mp4"],
)
def test_addresses_are_refused_with_advice(detector, address):
    with pytest.raises(ConfigError, match="is a URL; download the file first"):
        detector.predict(address)
    (failed,) = detector.predict([address], errors="skip")
    assert failed.error.startswith(address)
