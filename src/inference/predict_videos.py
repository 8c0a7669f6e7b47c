"""Write predictions for the frames of a video, a camera or a stream as a video and as COCO results."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..core.counts import counted
from ..core.errors import ConfigError, DataError, ResourceError
from ..runtime.files import temporary_path
from ..runtime.optional import import_optional
from ..runtime.own_files import mark_video, refuse_foreign
from .detector import Detector
from .prediction_files import ADVICE, PREDICTIONS, PredictionFile
from .prediction_settings import PredictionSettings
from .sources import Source, Video


class VideoJob:
    """A prediction job for a video, a camera or a stream."""

    def __init__(
        self, source: Source, folder: Path, draw: bool, frames: int | None
    ) -> None:
        """Open the video and check the paths of all results."""
        self.folder = folder
        self.draw = draw
        self.frames = frames
        place = source.place
        stem = place.stem if isinstance(place, Path) else "camera"
        self.path = folder / f"{stem}.mp4"
        if (
            isinstance(place, Path)
            and self.path.exists()
            and self.path.samefile(place)
        ):
            raise ConfigError(
                f"the drawn video would replace {place}; {ADVICE}"
            )
        results = [folder / PREDICTIONS]
        if draw:
            results.append(self.path)
        refuse_foreign(results, ADVICE)
        self.video = Video(source)

    def run(self, detector: Detector, settings: PredictionSettings) -> Path:
        """Detect objects and write the results.

        Returns:
            Path of the predictions.

        Raises:
            DataError: if frames could not be read, after all other results were written.
            ConfigError: if a setting is out of range.
        """
        video = self.video
        writer = VideoWriter(self.path, video.rate)
        total = min(filter(None, (video.count, self.frames)), default=None)
        bar = tqdm(
            islice(video, self.frames),
            desc="frames",
            total=total,
            disable=None,
            leave=False,
        )
        stream = detector.stream(bar, settings)
        try:
            with PredictionFile(self.folder) as results:
                for number, seen in enumerate(stream, start=1):
                    if self.draw:
                        writer.write(
                            np.asarray(seen.prediction.draw(seen.image))
                        )
                    name = f"frame {number}"
                    entries = seen.prediction.to_coco(number)
                    results.add(
                        [{**entry, "file_name": name} for entry in entries]
                    )
        finally:
            writer.close()
        if video.fault is not None:
            raise DataError(
                f"{video.fault}; the results of {counted(results.num_images, 'frame')} are in {self.folder}"
            )
        return results.path


class VideoWriter:
    """Write frames to an .mp4 file, which is created under its name when it is complete."""

    def __init__(self, path: Path, rate: float) -> None:
        """Store the path and the frames per second; the first frame sets the size."""
        self.path = path
        self.rate = rate
        self._temporary = temporary_path(path, path.suffix)
        self._writer: Any = None  # cv2.VideoWriter
        self._size: tuple[int, int] | None = None
        self._frames = 0

    def write(self, frame: np.ndarray) -> None:
        """Add a frame `[H, W, 3]` uint8, RGB.

        Raises:
            ResourceError: if the file cannot be written.
        """
        cv2 = import_optional("cv2")
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            self._temporary.touch(exist_ok=False)
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(
                str(self._temporary), codec, self.rate, self._size
            )
            if not self._writer.isOpened():
                self._temporary.unlink()
                raise ResourceError(f"{self.path} cannot be written as a video")
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = cv2.resize(frame, self._size)
        bgr = np.ascontiguousarray(frame[..., ::-1])
        self._writer.write(bgr)
        self._frames += 1

    def close(self) -> None:
        """Finish the file; without frames, no file is created.

        Raises:
            ResourceError: if frames are missing in the file, for example because the disk is full, which
                OpenCV does not report.
        """
        if self._writer is None:
            return
        cv2 = import_optional("cv2")
        self._writer.release()
        self._writer = None
        written = cv2.VideoCapture(str(self._temporary))
        frames = (
            int(written.get(cv2.CAP_PROP_FRAME_COUNT))
            if written.isOpened()
            else 0
        )
        written.release()
        if frames != self._frames:
            self._temporary.unlink(missing_ok=True)
            raise ResourceError(
                f"{self.path} was not written: {frames} of {self._frames} frames reached the disk; is it "
                "full?"
            )
        mark_video(self._temporary)
        self._temporary.replace(self.path)
