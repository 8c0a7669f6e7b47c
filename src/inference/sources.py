"""Sources of images: a file, a folder, a video, a camera or a network stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.counts import counted
from ..core.errors import DataError
from ..core.paths import did_you_mean_file, refuse_special_file, user_path
from ..data.dataset.image_names import find_image_files
from ..runtime.log import logger
from ..runtime.optional import import_optional

VIDEO_SUFFIXES = (
    ".mp4",
    ".avi",
    ".mov",
    ".mkv",
    ".webm",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".mts",
    ".m2ts",
    ".ts",
    ".3gp",
    ".wmv",
    ".flv",
)

FORMATS_WITHOUT_COUNT = (".ts", ".mts", ".m2ts", ".mpg", ".mpeg")
"""Formats that do not store the number of frames; OpenCV estimates it from the size of the file."""

DEFAULT_FRAME_RATE = 25.0
"""Frames per second if a video or camera does not report them."""

TOLERATED_MISSING_FRACTION = 0.02
"""Fraction of the frames in the header, which may be an estimate, that may be missing in a video. It does not
apply to `FORMATS_WITH_EXACT_COUNT`."""

FORMATS_WITH_EXACT_COUNT = (".avi",)
"""Formats whose header has the exact number of frames."""

Item = TypeVar("Item")

_STREAM = re.compile(
    r"(rtsps?|rtmps?|rtp|udp|srt|tcp|https?)://", re.IGNORECASE
)


class Source(NamedTuple):
    """A source of images."""

    place: Path | str | int
    """Path of a file or folder, URL of a stream, or number of a camera."""
    is_video: bool

    @property
    def name(self) -> str:
        """Name in messages, without passwords in URLs."""
        if isinstance(self.place, int):
            return f"camera {self.place}"
        return re.sub(r"//[^/@]*@", "//", str(self.place))

    @property
    def is_live(self) -> bool:
        """True for a camera or a stream, which does not end by itself."""
        return not isinstance(self.place, Path)


def open_source(text: str) -> Source:
    """Parse the input that a user has given, without opening it.

    Args:
        text: a path, the URL of a video stream, `camera:N`, N or `/dev/videoN`.

    Raises:
        DataError: if the file or folder does not exist, or is a FIFO, a socket or a device.

    Example:
        >>> open_source("camera:0")
        Source(place=0, is_video=True)
    """
    kind, _, number = text.rpartition(":")
    if number.isdecimal() and kind in ("camera", ""):
        return Source(int(number), is_video=True)
    if _STREAM.match(text):
        return Source(text, is_video=True)
    device = re.fullmatch(r"/dev/video(\d+)", text)
    if device:
        return Source(int(device[1]), is_video=True)
    path = user_path(text)
    if not path.exists():
        raise DataError(
            f"{text} does not exist (looked from {Path.cwd()}){did_you_mean_file(path)}"
        )
    _refuse_special(path)
    is_video = path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES
    return Source(path, is_video)


def _refuse_special(path: Path) -> None:
    """Refuse a FIFO, a socket or a device, for which OpenCV could wait forever.

    Raises:
        DataError: if the path is not a file or a folder.
    """
    try:
        refuse_special_file(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from None


def image_files(path: Path) -> list[Path]:
    """Return a file, or all image files in and below a folder, by name; links to folders are not followed.

    Image files are recognized by their content, whatever their suffix. Files left out are logged.

    Example:
        >>> files = image_files(Path("images"))
        >>> len(files), files[0].name
        (8, 'val_00000.jpg')

    Raises:
        DataError: if there are no image files.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(
            f"{path} does not exist (looked from {Path.cwd()}){did_you_mean_file(path)}"
        )
    found = find_image_files(path)
    if not found.images:
        raise DataError(f"{path} has no image files{found.describe_others()}")
    if found.others:
        logger.info(
            "%s: %s%s",
            path,
            counted(len(found.images), "image file"),
            found.describe_others(),
        )
    return [path / name for name in found.images]


def spread(items: Iterable[Item], count: int) -> list[Item]:
    """Return at most `count` items, spread evenly.

    Example:
        >>> spread([10, 11, 12, 13, 14], 3)
        [10, 12, 14]
    """
    given = list(items)
    if not given:
        return []
    places = np.linspace(0, len(given) - 1, count).round().astype(int)
    return [given[place] for place in np.unique(places)]


class Video:
    """A video file, a camera or a stream, which can be read once."""

    def __init__(self, source: Source) -> None:
        """Open the video.

        Raises:
            DataError: if it cannot be opened.
            ConfigError: if OpenCV is not installed.
        """
        cv2 = import_optional("cv2")
        self.source = source
        self.frames_read = 0
        self.was_stopped = False
        place = source.place
        is_file = isinstance(place, Path)
        if isinstance(place, Path):
            _refuse_special(place)
        self._capture = cv2.VideoCapture(str(place) if is_file else place)
        if not self._capture.isOpened():
            hint = (
                "; check that the URL works, for example with ffplay"
                if _is_address(place)
                else ""
            )
            raise DataError(f"{source.name} cannot be opened as a video{hint}")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        frames = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate < 1000 else DEFAULT_FRAME_RATE
        self.count = int(frames) if frames > 0 and not source.is_live else None
        suffix = place.suffix.lower() if isinstance(place, Path) else ""
        self._tolerance = 0.0
        if suffix not in FORMATS_WITH_EXACT_COUNT:
            self._tolerance = max(
                1, TOLERATED_MISSING_FRACTION * (self.count or 0)
            )
        if self.count is None and not source.is_live:
            logger.warning(
                "%s has no number of frames: a truncated file cannot be detected",
                source.name,
            )
        elif suffix in FORMATS_WITHOUT_COUNT:
            logger.warning(
                "%s has a format without a number of frames: a truncated file cannot be detected",
                source.name,
            )

    def __iter__(self) -> Iterator[Tensor]:
        """Yield frames, `[3, H, W]` uint8, RGB."""
        self.was_stopped = True  # unless the loop reaches the end of the video
        try:
            while True:
                was_read, frame = self._capture.read()
                if not was_read:
                    break
                self.frames_read += 1
                rgb = np.ascontiguousarray(frame[..., ::-1])  # OpenCV gives BGR
                yield torch.from_numpy(rgb).permute(2, 0, 1)
            self.was_stopped = False
        finally:
            self._capture.release()

    @property
    def fault(self) -> str | None:
        """Description of missing frames after reading, or None. The end of a camera or stream is a fault."""
        if self.was_stopped:
            return None
        if self.source.is_live:
            return f"{self.source.name} gave no more frames after {self.frames_read}"
        if not self.frames_read:
            return f"{self.source.name} has no frame that can be read"
        if self.count and self.frames_read < self.count - self._tolerance:
            return (
                f"{self.source.name} could be read up to frame {self.frames_read} of {self.count}: the file "
                "is truncated or damaged"
            )
        return None


def _is_address(place: Path | str | int) -> bool:
    return isinstance(place, str)
