"""A sample: the decoded pixels of an image, and the accumulated transforms.

Geometric transforms only move a canvas and the boxes, colour transforms only multiply a matrix. `render` then
resamples the pixels once, directly into the batch, whatever the number of transforms. A mosaic is a list of
images with their maps (`layers`), which are resampled in the same way.

A large image is decoded when `render` knows how many of its pixels are needed, at a reduced size if that
suffices (docs/decisions/0028). Coordinates remain those of the whole file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.contracts import Target
from .layers import Layers
from .pixels import Pixels, PixelSource, reduction_for

PixelWindow = tuple[int, int, int, int]
"""Whole pixels of an image, xyxy."""

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])
"""Weights of ITU-R 601 luma, as in Pillow and torchvision."""


@dataclass
class Sample:
    """An image with its boxes. All boxes are xyxy in pixels of the canvas; x points right, y down.

    >>> image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    >>> boxes = np.array([[10.0, 5.0, 30.0, 15.0]])
    >>> sample = Sample(image, boxes, {"labels": np.array([2])}, {}, np.random.default_rng(0))
    >>> sample.move((0.5, 0.5), (0, 0), (20, 10))
    >>> sample.boxes.tolist()
    [[5.0, 2.5, 15.0, 7.5]]
    """

    source: Tensor | PixelSource | Layers
    """Pixels `[3, H, W]` uint8; an image that is decoded when its pixels are needed; or several images, which
    are drawn by `render`.
    """
    boxes: np.ndarray
    """`[T, 4]` float64."""
    fields: dict[str, np.ndarray]
    """Values of each box: `labels`, `area`, `iscrowd`; `[T]` each."""
    info: dict[str, Any]
    """Values of the image: tensors and strings that are copied into the target."""
    rng: np.random.Generator
    """Random generator of this sample and of the samples for its mosaic; derived from seed, epoch and
    image.
    """
    draw_other: Callable[[np.random.Generator], Sample] | None = None
    """Function that draws another sample of the data set with a random generator; None without a data set."""
    is_mosaic: bool = False
    """Whether the sample consists of several images; `info` is then that of the first."""
    canvas: tuple[int, int] = (0, 0)
    """(width, height) in pixels."""
    scale: np.ndarray = field(default_factory=lambda: np.ones(2))
    """Factors (x, y) from pixels of the file to the canvas; negative if mirrored. The file has full size,
    even if its pixels are decoded at a reduced size (`pixels`).
    """
    shift: np.ndarray = field(default_factory=lambda: np.zeros(2))
    """Position of the file's (0, 0) on the canvas."""
    visible: np.ndarray = field(default_factory=lambda: np.zeros(4))
    """The part of the canvas that shows the file, xyxy; the rest shows `fill`."""
    fill: float = 0.0
    """Grey value 0..255 outside the image."""
    normalize: tuple[np.ndarray, np.ndarray] | None = None
    """Mean and standard deviation per channel for normalization, the last step."""
    as_float: bool = False
    """Whether the result is float32 instead of uint8."""
    value_scale: float = 1.0
    """Factor for float values: 1 / 255 for the range 0..1."""
    box_format: Literal["xyxy", "cxcywh"] = "xyxy"
    relative_boxes: bool = False
    """Whether boxes are in 0..1 of the canvas instead of pixels."""
    boxes_read: int = -1
    """Number of boxes at the beginning; for a mosaic, of all its images."""
    lost: Counter[str] = field(default_factory=Counter)
    """Number of boxes that transforms dropped, by the name of the transform."""
    _decoded: Pixels | None = field(default=None, init=False)
    _colour: np.ndarray | None = field(default=None, init=False)
    _waiting: list[Callable[[Sample], None]] = field(
        default_factory=list, init=False
    )

    def __post_init__(self) -> None:
        if self.boxes_read < 0:
            self.boxes_read = len(self.boxes)
        self._decoded = None
        if isinstance(self.source, Tensor):
            self._decoded = Pixels(self.source)
        self._colour = None
        self._waiting = []
        width, height = self.file_size
        self.canvas = (width, height)
        self.visible = np.array([0.0, 0.0, width, height])

    @property
    def file_size(self) -> tuple[int, int]:
        """(width, height) of the file, upright; `scale`, `shift` and boxes refer to its pixels."""
        if isinstance(self.source, Tensor):
            height, width = self.source.shape[1:]
            return width, height
        return self.source.size

    @property
    def image(self) -> Tensor:
        """`[3, h, w]` uint8: the pixels that are decoded, at full size if none are decoded yet; of a mosaic,
        its canvas, drawn now.

        `pixels` returns them at the size that a scale needs, with their position in the file.
        """
        decoded = self._decoded
        return self.pixels().image if decoded is None else decoded.image

    @image.setter
    def image(self, image: Tensor) -> None:
        self.source = image
        self._decoded = Pixels(image)

    @property
    def colour(self) -> np.ndarray | None:
        """`[3, 4]`: out = colour[:, :3] @ rgb + colour[:, 3], in 0..255; None keeps the colours."""
        if self._waiting:
            self.pixels()
        return self._colour

    @colour.setter
    def colour(self, colour: np.ndarray | None) -> None:
        self._waiting = []
        self._colour = colour

    @property
    def is_unchanged(self) -> bool:
        """True if the canvas shows the file without any transform."""
        return (
            self.canvas == self.file_size
            and bool((self.scale == 1).all() and (self.shift == 0).all())
            and self.colour is None
        )

    def pixels(self, scale: float = 1.0) -> Pixels:
        """Return the pixels, decoded now unless they are already, or were at a size too small.

        Args:
            scale: pixels that are drawn for each pixel of the file along a side; if the two sides differ, the
                larger number.

        Raises:
            ImageError: if the file cannot be read.
        """
        if isinstance(self.source, Layers):
            return Pixels(self.source.whole())
        decoded = self._decoded
        wanted = reduction_for(scale)
        if decoded is None or decoded.reduction > wanted:
            source = cast(PixelSource, self.source)
            decoded = source.decode(wanted)
            self._decoded = decoded
            waiting = self._waiting
            self._waiting = []
            for work in waiting:
                work(self)
        return decoded

    def drawn_scale(self, size_hw: tuple[int, int] | None = None) -> float:
        """Return the `scale` of `pixels` for `render` with this size."""
        width, height = self.canvas
        stretch = np.ones(2)
        if size_hw is not None:
            stretch = np.array([size_hw[1] / width, size_hw[0] / height])
        return float(np.abs(self.scale * stretch).max())

    def when_decoded(self, work: Callable[[Sample], None]) -> None:
        """Call a function with this sample now, or after its pixels are decoded; it must not use `rng`."""
        if self._decoded is None and not isinstance(self.source, Layers):
            self._waiting.append(work)
        else:
            work(self)

    def move(
        self,
        scale: tuple[float, float],
        shift: tuple[float, float],
        canvas: tuple[int, int],
    ) -> None:
        """Map the canvas by x -> scale * x + shift onto a new one; image and boxes are clipped to it."""
        factor = np.asarray(scale, float)
        offset = np.asarray(shift, float)
        self.scale = self.scale * factor
        self.shift = self.shift * factor + offset
        limit = np.array([*canvas, *canvas], float)
        self.visible = _mapped(self.visible, factor, offset).clip(0, limit)
        self.boxes = _mapped(self.boxes, factor, offset).clip(0, limit)
        self.canvas = canvas

    def keep(self, mask: np.ndarray) -> None:
        """Keep the boxes under `mask [T]` and drop the others."""
        self.boxes = self.boxes[mask]
        self.fields = {
            name: values[mask] for name, values in self.fields.items()
        }

    def restart(
        self,
        source: Tensor | Layers,
        boxes: np.ndarray,
        fields: dict[str, np.ndarray],
    ) -> None:
        """Restart with other pixels and boxes, without any transforms."""
        self.source = source
        self.boxes = boxes
        self.fields = fields
        self.scale = np.ones(2)
        self.shift = np.zeros(2)
        self.fill = 0.0
        self.__post_init__()

    def render(
        self, size_hw: tuple[int, int] | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Target]:
        """Resample the pixels and finish the target.

        Args:
            size_hw: (height, width) of the result; the canvas is stretched to it. None takes the canvas as it
                is.
            out: `[3, height, width]` to write into, of the result's type or one that holds its values.

        Returns:
            The image, `[3, height, width]` float32 or uint8, and its target.
        """
        canvas_width, canvas_height = self.canvas
        height, width = size_hw or (canvas_height, canvas_width)
        stretch = np.array([width / canvas_width, height / canvas_height])
        pixels: Pixels | Layers
        if isinstance(self.source, Layers):
            pixels = self.source
        else:
            pixels = self.pixels(self.drawn_scale((height, width)))
        source, target = self._snap(pixels, stretch, width, height)
        if out is None:
            dtype = torch.float32 if self.as_float else torch.uint8
            out = torch.empty(3, height, width, dtype=dtype)
        x0, y0, x1, y1 = target
        shown = bool((self.visible[2:] > self.visible[:2]).all())
        if not shown or (x1 - x0, y1 - y0) != (width, height):
            out.fill_(self.fill * self._factor)
        if shown:
            self._draw(pixels, source, out[:, y0:y1, x0:x1])
        if self.normalize is not None:
            mean = torch.as_tensor(self.normalize[0], dtype=out.dtype)
            std = torch.as_tensor(self.normalize[1], dtype=out.dtype)
            out.sub_(mean[:, None, None]).div_(std[:, None, None])
        boxes = self._final_boxes(pixels, source, target)
        return out, self._target(boxes, width, height)

    @property
    def _factor(self) -> float:
        """Factor from 0..255 to the values of the result."""
        return self.value_scale if self.as_float else 1.0

    def _snap(
        self,
        pixels: Pixels | Layers,
        stretch: np.ndarray,
        width: int,
        height: int,
    ) -> tuple[PixelWindow, PixelWindow]:
        """Return the visible ones of the pixels and the pixels that they are drawn to, both xyxy, integers.

        Rounding to whole pixels moves the image by less than one pixel. The boxes are moved by the same
        distance, so they stay on their pixels.
        """
        corners = self.visible.reshape(2, 2)
        in_file = np.sort((corners - self.shift) / self.scale, axis=0)
        if pixels.reduction > 1:
            in_file = in_file / pixels.reduction + pixels.origin
        seen = corners * stretch
        image_width, image_height = pixels.size
        left, right = _whole(in_file[:, 0], image_width)
        top, bottom = _whole(in_file[:, 1], image_height)
        out_left, out_right = _whole(seen[:, 0], width)
        out_top, out_bottom = _whole(seen[:, 1], height)
        source = (left, top, right, bottom)
        target = (out_left, out_top, out_right, out_bottom)
        return source, target

    def _draw(
        self, image: Pixels | Layers, source: PixelWindow, out: Tensor
    ) -> None:
        """Cut the source out of the image, resize it to `out`, and flip it if the canvas is mirrored."""
        height, width = out.shape[1:]
        mirrored = (bool(self.scale[0] < 0), bool(self.scale[1] < 0))
        if isinstance(image, Layers):
            for top, band in image.bands(source, (height, width), mirrored):
                self._write(band, out[:, top : top + band.shape[1]])
            return
        x0, y0, x1, y1 = source
        pixels = image.image[None, :, y0:y1, x0:x1]
        if pixels.shape[2:] != (height, width):
            pixels = F.interpolate(
                pixels, (height, width), mode="bilinear", antialias=True
            )
        flipped = []
        if mirrored[0]:
            flipped.append(3)
        if mirrored[1]:
            flipped.append(2)
        if flipped:
            pixels = pixels.flip(flipped)
        self._write(pixels[0], out)

    def _write(self, pixels: Tensor, out: Tensor) -> None:
        """Apply the colour matrix to `pixels` (0..255), scale them, and write them into `out`."""
        factor = self._factor
        if self.colour is None:
            if pixels.is_floating_point() and not self.as_float:
                pixels = pixels.round()
            out.copy_(pixels)
            if factor != 1.0:
                out.mul_(factor)
            return
        matrix = torch.from_numpy(self.colour * factor).float()
        flat = pixels.flatten(1).float()
        in_place = self.as_float and out.stride()[1:] == (out.shape[2], 1)
        destination = out.view(3, -1) if in_place else None
        mixed = torch.addmm(matrix[:, 3:], matrix[:, :3], flat, out=destination)
        mixed.clamp_(0, 255 * factor)
        if not in_place:
            if not self.as_float:
                mixed.round_()
            out.copy_(mixed.view(pixels.shape))

    def _final_boxes(
        self, pixels: Pixels | Layers, source: PixelWindow, target: PixelWindow
    ) -> np.ndarray:
        """Map the boxes from the canvas back to the file, and from there to the rendered image."""
        low = np.array(source[:2], float)
        high = np.array(source[2:], float)
        if pixels.reduction > 1:
            low = (low - pixels.origin) * pixels.reduction
            high = (high - pixels.origin) * pixels.reduction
        out_low = np.array(target[:2], float)
        out_high = np.array(target[2:], float)
        ratio = (out_high - out_low) / (high - low)
        in_file = _mapped(self.boxes, 1 / self.scale, -self.shift / self.scale)
        mirrored = self.scale < 0
        factor = np.where(mirrored, -ratio, ratio)
        offset = np.where(
            mirrored, out_high + low * ratio, out_low - low * ratio
        )
        boxes = _mapped(in_file, factor, offset)
        return boxes.clip(np.tile(out_low, 2), np.tile(out_high, 2))

    def _target(self, boxes: np.ndarray, width: int, height: int) -> Target:
        """Return the target; boxes without area are dropped and counted."""
        kept: np.ndarray = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        fields = self.fields
        if not kept.all():
            boxes = boxes[kept]
            fields = {name: values[kept] for name, values in fields.items()}
            self.lost["resampling"] += len(kept) - len(boxes)
        if self.relative_boxes:
            boxes = boxes / (width, height, width, height)
        if self.box_format == "cxcywh":
            starts = boxes[:, :2]
            ends = boxes[:, 2:]
            boxes = np.concatenate([(starts + ends) / 2, ends - starts], 1)
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            **{
                name: torch.from_numpy(values)
                for name, values in fields.items()
            },
            **self.info,
            "boxes_read": self.boxes_read,
            "boxes_lost": dict(self.lost),
        }
        return cast(Target, target)


def _mapped(
    boxes: np.ndarray, scale: np.ndarray, shift: np.ndarray
) -> np.ndarray:
    """Map boxes `[..., 4]` by x -> scale * x + shift; corners stay ordered if a scale is negative."""
    low = boxes[..., :2] * scale + shift
    high = boxes[..., 2:] * scale + shift
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], -1)


def _whole(interval: np.ndarray, room: int) -> tuple[int, int]:
    """Round an interval to whole pixels in 0..room, at least one pixel."""
    start, end = map(round, interval.tolist())
    low = min(max(start, 0), room - 1)
    return low, min(max(end, low + 1), room)
