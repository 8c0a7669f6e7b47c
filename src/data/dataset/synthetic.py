"""Synthetic scenes for the demo and for tests.

They are coloured shapes on textured backgrounds, with boxes and masks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...runtime.files import prepare_output_dir, write_json
from ...runtime.own_files import (
    DATA_IMAGE,
    is_our_coco_file,
    is_our_data_image,
    marked_coco,
    refuse_foreign,
)

CATEGORIES = {1: "disc", 3: "square", 7: "triangle", 8: "ring"}
"""Names by id; the ids have gaps, as in real files."""

MIN_VISIBLE = 0.5
"""Minimum fraction of a shape that later shapes leave uncovered."""


class Scene(NamedTuple):
    """A synthetic image; shapes may hide parts of earlier ones, whose boxes and masks stay complete."""

    image: np.ndarray
    """`[S, S, 3]` uint8."""
    boxes: np.ndarray
    """`[T, 4]` float64, xyxy in pixels, tight around the masks."""
    category_ids: np.ndarray
    """`[T]` int64, keys of `CATEGORIES`."""
    masks: np.ndarray
    """`[T, S, S]` bool."""


def draw_scene(
    rng: np.random.Generator,
    size: int,
    max_objects: int = 5,
    empty_share: float = 0.05,
) -> Scene:
    """Generate a scene.

    Args:
        rng: random generator.
        size: side of the image in pixels, S.
        max_objects: maximum number of shapes in an image.
        empty_share: fraction of images without shapes.
    """
    image = _texture(rng, size)
    num_objects = 0
    if rng.random() >= empty_share:
        num_objects = int(rng.integers(1, max_objects + 1))
    masks: list[np.ndarray] = []
    visible: list[np.ndarray] = []
    ids = []
    for _ in range(num_objects):
        category = int(rng.choice(list(CATEGORIES)))
        mask = _place(rng, size, category, masks, visible)
        if mask is None:
            continue
        visible = [shown & ~mask for shown in visible]
        visible.append(mask)
        colour = rng.uniform(40, 255, 3)
        shade = rng.normal(0, 8, (size, size, 1))
        image[mask] = (colour + shade)[mask]
        masks.append(mask)
        ids.append(category)
    boxes = list(map(_box_around, masks))
    return Scene(
        image.clip(0, 255).astype(np.uint8),
        np.array(boxes, float).reshape(-1, 4),
        np.array(ids, np.int64),
        np.array(masks, bool).reshape(-1, size, size),
    )


def _box_around(mask: np.ndarray) -> list[int]:
    """Return the tight box of a mask, xyxy in pixels."""
    columns = np.flatnonzero(mask.any(0))
    rows = np.flatnonzero(mask.any(1))
    left, right = columns[[0, -1]]
    top, bottom = rows[[0, -1]]
    return [left, top, right + 1, bottom + 1]


def write_synthetic_coco(
    folder: str | Path,
    *,
    train: int,
    val: int,
    size: int = 128,
    seed: int = 0,
    max_objects: int = 5,
) -> None:
    """Write `train.json`, `val.json` and their images (JPEG) in COCO format.

    Args:
        folder: output folder, created if it does not exist.
        train: number of training images.
        val: number of validation images.
        size: side of the images in pixels.
        seed: random seed.
        max_objects: maximum number of shapes in an image.

    Raises:
        ConfigError: if files that this project did not write would be replaced, or if the folder is not
            writable.
    """
    folder = Path(folder)
    image_folder = folder / "images"
    pictures = {
        "train": _picture_paths(image_folder, "train", train),
        "val": _picture_paths(image_folder, "val", val),
    }
    labels = [folder / "train.json", folder / "val.json"]
    refuse_foreign(
        labels, "choose another --output", recognize=is_our_coco_file
    )
    own = chain.from_iterable(pictures.values())
    refuse_foreign(own, "choose another --output", recognize=is_our_data_image)
    prepare_output_dir(image_folder)
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    for part, (name, paths) in enumerate(pictures.items()):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, path in enumerate(paths):
            rng = np.random.default_rng([seed, part, index])
            scene = draw_scene(rng, size, max_objects)
            _write_picture(path, scene.image)
            image_id = index + 1
            images.append(
                {
                    "id": image_id,
                    "file_name": path.name,
                    "width": size,
                    "height": size,
                }
            )
            annotations += _annotations(scene, image_id, len(annotations) + 1)
        content = {
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        write_json(folder / f"{name}.json", marked_coco(content))


def _picture_paths(
    folder: Path,
    part: str,
    num_pictures: int,
) -> list[Path]:
    return [folder / f"{part}_{index:05}.jpg" for index in range(num_pictures)]


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    # an existing file is not overwritten, so that a hard link to it keeps its content
    path.unlink(missing_ok=True)
    picture = Image.fromarray(pixels)
    picture.save(path, quality=92, comment=DATA_IMAGE.encode())


def _annotations(
    scene: Scene,
    image_id: int,
    first_id: int,
) -> Iterator[dict[str, Any]]:
    """Yield the COCO annotations of a scene."""
    rows = zip(
        count(first_id),
        scene.boxes.tolist(),
        scene.category_ids.tolist(),
        scene.masks,
    )
    for annotation_id, (x0, y0, x1, y1), category, mask in rows:
        yield {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category,
            "iscrowd": 0,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": float(mask.sum()),
        }


def _place(
    rng: np.random.Generator,
    size: int,
    category: int,
    masks: list[np.ndarray],
    visible: list[np.ndarray],
) -> np.ndarray | None:
    """Try ten random places; return a mask that leaves enough of every earlier shape visible, or None."""
    for _ in range(10):
        radius = rng.uniform(0.1, 0.25) * size
        centre = rng.uniform(radius, size - radius, 2)
        angle = rng.uniform(-0.4, 0.4)
        mask = _SHAPES[category](*_local_axes(size, centre, radius, angle))
        if _leaves_visible(mask, masks, visible):
            return mask
    return None


def _leaves_visible(
    mask: np.ndarray,
    masks: list[np.ndarray],
    visible: list[np.ndarray],
) -> bool:
    """Return whether enough of every earlier shape stays visible below a new one."""
    left = [(shown & ~mask).sum() for shown in visible]
    required = [MIN_VISIBLE * whole.sum() for whole in masks]
    return all(map(operator.ge, left, required))


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a gradient with waves and noise, `[S, S, 3]` float."""
    y, x = np.mgrid[0:size, 0:size] / size
    colour = rng.uniform(30, 200, 3)
    across = x[..., None] * rng.normal(0, 40, 3)
    down = y[..., None] * rng.normal(0, 40, 3)
    base = colour + (across + down)
    direction = x * rng.uniform(-6, 6) + y * rng.uniform(-6, 6)
    waves = np.sin(2 * np.pi * direction + rng.uniform(0, 6))
    height = rng.uniform(0, 25, 3)
    noise = rng.normal(0, 6, (size, size, 3))
    return base + waves[..., None] * height + noise


def _local_axes(
    size: int,
    centre: np.ndarray,
    radius: float,
    angle: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of all pixels in units of a shape's radius, rotated by its angle."""
    y, x = np.mgrid[0:size, 0:size] + 0.5
    x = (x - centre[0]) / radius
    y = (y - centre[1]) / radius
    cos = np.cos(angle)
    sin = np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


_SHAPES: dict[int, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    1: lambda x, y: x**2 + y**2 <= 1,
    3: lambda x, y: np.maximum(abs(x), abs(y)) <= 0.75,
    7: lambda x, y: (y >= -0.5) & (y + np.sqrt(3) * abs(x) <= 1),
    8: lambda x, y: (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.35),
}
