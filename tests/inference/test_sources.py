"""Images come from files, folders and videos."""

from importlib.util import find_spec

import numpy as np
import pytest

from src.core import DataError
from src.inference.sources import Video, VideoWriter, image_files, open_source

needs_opencv = pytest.mark.skipif(
    find_spec("cv2") is None, reason="OpenCV is not installed (tools/requirements.txt)"
)


def test_a_folder_gives_its_images_and_those_below_by_name(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "deep/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in image_files(tmp_path)] == [
        "a.png",
        "b.JPG",
        "deep/c.webp",
    ]


def test_a_file_is_taken_whatever_its_name(tmp_path):
    (tmp_path / "image.unknown").touch()
    assert image_files(tmp_path / "image.unknown") == [tmp_path / "image.unknown"]


def test_what_is_not_there_and_what_is_empty_is_told(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        image_files(tmp_path / "none")
    with pytest.raises(DataError, match="has no image files"):
        image_files(tmp_path)


@needs_opencv
def test_a_video_keeps_its_frames_rate_and_colours(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4", 10)
    for red in (0, 120, 240):
        frame = np.zeros((64, 96, 3), np.uint8)
        frame[..., 0] = red
        writer.write(frame)
    assert not (tmp_path / "video.mp4").exists()
    writer.close()
    video = Video(open_source(str(tmp_path / "video.mp4")))
    frames = list(video)
    assert video.rate == 10 and video.count == 3 and frames[2].shape == (3, 64, 96)
    assert [round(float(frame[0].float().mean()), -1) for frame in frames] == [0, 120, 240] and all(
        frame[2].max() < 30 for frame in frames
    )


@needs_opencv
def test_frames_of_another_size_are_fitted(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4", 10)
    writer.write(np.zeros((64, 96, 3), np.uint8))
    writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.close()
    assert [tuple(frame.shape) for frame in Video(open_source(str(tmp_path / "video.mp4")))] == [
        (3, 64, 96)
    ] * 2


@needs_opencv
def test_a_file_that_is_no_video_is_refused(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be opened as a video"):
        Video(open_source(str(tmp_path / "video.mp4")))
    with pytest.raises(DataError, match="does not exist"):
        open_source(str(tmp_path / "none.mp4"))
