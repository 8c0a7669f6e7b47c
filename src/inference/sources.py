"""Where images come from: a file, a folder, a video or a camera."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError, ResourceError
from ..data.dataset.images import IMAGE_SUFFIXES
from ..runtime.files import TEMPORARY

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv")

UNKNOWN_RATE = 25.0
"""Frames a second of a video or camera that does not tell."""


def image_files(path: Path) -> list[Path]:
    """Return a file, or all image files in a folder and below it, by name; links to folders are not followed.

    Raises:
        DataError: if there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist (looked from {Path.cwd()})")
    files = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if not files:
        raise DataError(f"{path} has no image files ({', '.join(IMAGE_SUFFIXES)})")
    return files


class Video:
    """A video file or a camera, read once."""

    def __init__(self, source: Path | int) -> None:
        """Open it.

        Args:
            source: a file, or the number of a camera.

        Raises:
            DataError: if it cannot be opened or has no frames.
            ConfigError: if OpenCV is not installed.
        """
        cv2 = _opencv()
        if isinstance(source, Path) and not source.is_file():
            raise DataError(f"{source} does not exist (looked from {Path.cwd()})")
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            raise DataError(f"{self.name} cannot be opened as a video")
        rate, frames = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate < 1000 else UNKNOWN_RATE
        self.count = int(frames) if frames > 0 and not isinstance(source, int) else None

    def __iter__(self) -> Iterator[Tensor]:
        """Give frames, `[3, H, W]` uint8, RGB."""
        try:
            while (frame := self._capture.read())[0]:
                yield torch.from_numpy(np.ascontiguousarray(frame[1][..., ::-1])).permute(2, 0, 1)
        finally:
            self._capture.release()


class VideoWriter:
    """Writes frames to an .mp4 file, which appears under its name when it is complete."""

    def __init__(self, path: Path, rate: float) -> None:
        """Store where to and how many frames a second; the first frame sets the size."""
        self.path, self.rate = path, rate
        self._temporary = path.with_name(f"{path.stem}{TEMPORARY}{path.suffix}")
        self._writer = None
        self._size: tuple[int, int] | None = None

    def write(self, frame: np.ndarray) -> None:
        """Add a frame `[H, W, 3]` uint8, RGB.

        Raises:
            ResourceError: if the file cannot be written.
        """
        cv2 = _opencv()
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(
                str(self._temporary), cv2.VideoWriter_fourcc(*"mp4v"), self.rate, self._size
            )
            if not self._writer.isOpened():
                raise ResourceError(f"{self.path} cannot be written as a video")
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = cv2.resize(frame, self._size)
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))

    def close(self) -> None:
        """Finish the file; without a frame there is none."""
        if self._writer is not None:
            self._writer.release()
            self._temporary.replace(self.path)


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError:
        raise ConfigError("videos and cameras need OpenCV: pip install -r tools/requirements.txt") from None
    return cv2
