"""Predictions of videos are written as videos and COCO results by frame."""

import numpy as np
import pytest
from PIL import Image

from src.core import ConfigError, DataError, ResourceError
from src.inference import PredictionSettings
from src.inference.predict_source import predict_source
from src.inference.predict_videos import VideoWriter
from src.inference.sources import Video, open_source
from tests.fixtures.videos import write_avi
from tests.inference.test_predict_images import entries
from tests.inference.test_sources import needs_opencv


@needs_opencv
def test_a_video_becomes_a_video_and_entries_by_frame(
    detector, val_images, tmp_path
):
    writer = VideoWriter(tmp_path / "clip.mp4", 5)
    for image in val_images[:4]:
        writer.write(np.asarray(Image.open(image)))
    writer.close()
    predict_source(
        detector,
        str(tmp_path / "clip.mp4"),
        tmp_path / "found",
        settings=PredictionSettings(threshold=0.0),
        frames=3,
    )
    assert {
        (e["image_id"], e["file_name"]) for e in entries(tmp_path / "found")
    } == {(n, f"frame {n}") for n in (1, 2, 3)}
    drawn = Video(open_source(str(tmp_path / "found/clip.mp4")))
    assert drawn.rate == 5 and drawn.count == 3


@needs_opencv
def test_a_drawn_video_never_replaces_its_source(
    detector, val_images, tmp_path
):
    writer = VideoWriter(tmp_path / "clip.mp4", 5)
    writer.write(np.asarray(Image.open(val_images[0])))
    writer.close()
    before = (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(ConfigError, match="would replace"):
        predict_source(detector, str(tmp_path / "clip.mp4"), tmp_path)
    assert (tmp_path / "clip.mp4").read_bytes() == before


@needs_opencv
def test_a_video_that_is_cut_is_a_fault_after_its_frames_were_written(
    detector, tmp_path
):
    content = write_avi(tmp_path / "clip.avi", frames=40).read_bytes()
    (tmp_path / "clip.avi").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        DataError,
        match="of 40: the file is truncated or damaged; the results of .* frames are in",
    ) as error:
        predict_source(
            detector,
            str(tmp_path / "clip.avi"),
            tmp_path / "found",
            settings=PredictionSettings(threshold=0.0),
        )
    frames = {entry["image_id"] for entry in entries(tmp_path / "found")}
    assert frames == set(
        range(1, len(frames) + 1)
    ) and f"the results of {len(frames)} frames" in str(error.value)
    assert Video(open_source(str(tmp_path / "found/clip.mp4"))).count == len(
        frames
    )


@needs_opencv
def test_a_video_that_does_not_reach_the_disk_whole_is_an_error(
    tmp_path, monkeypatch
):
    writer = VideoWriter(tmp_path / "a.mp4", 10)
    for _ in range(5):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer._frames += 2  # as if OpenCV had lost two
    with pytest.raises(ResourceError, match="5 of 7 frames reached the disk"):
        writer.close()
    assert not list(tmp_path.iterdir())
