"""Images come from files, folders and videos."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.core import DataError
from src.inference.predict_videos import VideoWriter
from src.inference.sources import (
    Source,
    Video,
    image_files,
    open_source,
    spread,
)
from tests.fixtures.videos import write_avi

needs_opencv = pytest.mark.skipif(
    find_spec("cv2") is None,
    reason="OpenCV is not installed (tools/requirements.txt)",
)


def test_a_folder_gives_its_images_and_those_below_by_name(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "deep/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [
        str(path.relative_to(tmp_path)) for path in image_files(tmp_path)
    ] == [
        "a.png",
        "b.JPG",
        "deep/c.webp",
    ]


def test_a_file_is_taken_whatever_its_name(tmp_path):
    (tmp_path / "image.unknown").touch()
    assert image_files(tmp_path / "image.unknown") == [
        tmp_path / "image.unknown"
    ]


def test_missing_and_empty_sources_are_reported(tmp_path):
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
    assert (
        video.rate == 10 and video.count == 3 and frames[2].shape == (3, 64, 96)
    )
    assert [round(float(frame[0].float().mean()), -1) for frame in frames] == [
        0,
        120,
        240,
    ] and all(frame[2].max() < 30 for frame in frames)


@needs_opencv
def test_frames_of_another_size_are_fitted(tmp_path):
    writer = VideoWriter(tmp_path / "video.mp4", 10)
    writer.write(np.zeros((64, 96, 3), np.uint8))
    writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.close()
    assert [
        tuple(frame.shape)
        for frame in Video(open_source(str(tmp_path / "video.mp4")))
    ] == [(3, 64, 96)] * 2


@needs_opencv
def test_a_file_that_is_not_a_video_is_refused(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be opened as a video"):
        Video(open_source(str(tmp_path / "video.mp4")))
    with pytest.raises(DataError, match="does not exist"):
        open_source(str(tmp_path / "none.mp4"))


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a", "a.image"])
def test_images_with_other_suffixes_are_found_by_their_content(tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG")
    assert image_files(tmp_path) == [tmp_path / name]


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("a.txt", "b.txt", "c.json"):
        (tmp_path / name).write_text("not an image")
    with caplog.at_level(logging.INFO, "dfine"):
        image_files(tmp_path)
    assert "1 image file; not images: 2 .txt, 1 .json" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        DataError, match=r"has no image files; not images: 2 \.txt, 1 \.json"
    ):
        image_files(tmp_path)


@pytest.mark.parametrize(
    "text, place",
    [
        ("rtsp://camera.example/live", "rtsp://camera.example/live"),
        ("RTMP://host/app", "RTMP://host/app"),
        ("https://host/video.m3u8", "https://host/video.m3u8"),
        ("udp://@:5000", "udp://@:5000"),
        ("camera:2", 2),
        ("0", 0),
        ("/dev/video3", 3),
    ],
)
def test_addresses_of_streams_and_cameras_are_sources_without_an_end(
    text, place
):
    source = open_source(text)
    assert (source.place, source.is_video, source.is_live) == (
        place,
        True,
        True,
    )


def test_the_password_in_an_address_is_not_shown():
    assert (
        Source("rtsp://user:secret@host/live", is_video=True).name
        == "rtsp://host/live"
    )


def test_a_home_folder_is_found_and_a_similar_name_is_offered(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "Images").mkdir()
    assert open_source("~/Images") == Source(
        tmp_path / "Images", is_video=False
    )
    with pytest.raises(DataError, match="images does not exist.*Images"):
        open_source("~/images")


@needs_opencv
def test_a_video_that_is_cut_says_how_many_frames_are_missing(tmp_path):
    whole = write_avi(tmp_path / "whole.avi", frames=40)
    content = whole.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    faults = []
    for name in ("whole.avi", "cut.avi"):
        video = Video(open_source(str(tmp_path / name)))
        frames = sum(1 for _ in video)
        faults.append((frames, video.fault))
    assert faults[0] == (40, None)
    frames, fault = faults[1]
    assert 0 < frames < 30
    assert (
        fault
        == f"{tmp_path / 'cut.avi'} could be read up to frame {frames} of 40: "
        "the file is truncated or damaged"
    )


@needs_opencv
def test_a_video_that_is_not_read_to_its_end_on_purpose_has_no_fault(tmp_path):
    video = Video(
        Source(write_avi(tmp_path / "a.avi", frames=10), is_video=True)
    )
    next(iter(video))
    assert video.frames_read == 1 and video.fault is None


@needs_opencv
def test_the_end_of_a_stream_is_reported(tmp_path):
    video = Video(
        Source(Path(write_avi(tmp_path / "a.avi", frames=10)), is_video=True)
    )
    video.source = Source("rtsp://user:secret@host/live", is_video=True)
    assert len(list(video)) == 10
    assert video.fault == "rtsp://host/live gave no more frames after 10"


@needs_opencv
def test_a_stream_that_does_not_answer_is_refused_without_its_password():
    with pytest.raises(
        DataError,
        match="^tcp://127.0.0.1:9/live cannot be opened as a video; check that the URL",
    ):
        Video(open_source("tcp://user:secret@127.0.0.1:9/live"))


def test_links_to_folders_and_special_files_are_counted(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "linked").symlink_to("/tmp")
    os.mkfifo(tmp_path / "b.png")
    with caplog.at_level(logging.INFO, "dfine"):
        assert image_files(tmp_path) == [tmp_path / "a.png"]
    assert (
        "1 links to folders" in caplog.text
        and "1 links to nothing or special files" in caplog.text
    )


@needs_opencv
def test_one_missing_frame_of_a_format_that_counts_them_is_a_fault(tmp_path):
    video = Video(
        Source(write_avi(tmp_path / "a.avi", frames=10), is_video=True)
    )
    video.count = 11
    assert len(list(video)) == 10 and "frame 10 of 11" in video.fault


@needs_opencv
def test_a_format_without_a_number_of_frames_is_logged(tmp_path, caplog):
    write_avi(tmp_path / "a.avi", frames=10).rename(tmp_path / "a.ts")
    Video(open_source(str(tmp_path / "a.ts")))
    assert (
        "has a format without a number of frames: a truncated file cannot be detected"
        in caplog.text
    )


def test_items_are_spread_evenly_and_not_repeated():
    assert spread(range(100), 3) == [0, 50, 99]
    assert spread([1, 2], 5) == [1, 2]
    assert spread([], 5) == []
