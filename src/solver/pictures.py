"""What a run shows of its images: augmented ones as the model gets them, and what it finds in a few of validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import make_grid

from ..core.contracts import DetectionData, Target
from ..runtime.distributed import is_main
from ..runtime.drawing import draw_boxes, side_by_side

if TYPE_CHECKING:
    from .det_solver import DetSolver

TRAINING_IMAGES, VALIDATION_IMAGES = 9, 6
WIDTH = 320
"""Pixels that a picture in a grid is wide."""

SHOWN_SHARE = 10
"""Pictures are made in the first epoch, in the last, and about so many times between."""

DEFAULT_THRESHOLD = 0.4
"""Least score that is drawn as long as no F1 tells a better one."""


def show_learned(solver: DetSolver, images: Tensor, targets: list[Target]) -> None:
    """Show a run's images as they are learned from, with their boxes, in some epochs."""
    if _is_time(solver):
        _write(
            solver,
            "training",
            training_grid(
                images, targets, {label: entry["name"] for label, entry in enumerate(solver.classes)}
            ),
        )


def show_found(solver: DetSolver, metrics: Mapping[str, Any]) -> None:
    """Show what is found in the same few validation images, in some epochs; an evaluator of a user's own may keep no detections."""
    found = getattr(solver.evaluator, "detections", None)
    if found and _is_time(solver):
        picture = validation_grid(solver.val_loader.dataset, found, metrics.get("F1_threshold"))
        if picture is not None:
            _write(solver, "validation", picture)


def _is_time(solver: DetSolver) -> bool:
    return (
        is_main()
        and solver.settings.pictures
        and shows_pictures(solver.progress.epoch, solver.settings.epochs)
    )


def _write(solver: DetSolver, name: str, picture: Tensor) -> None:
    for writer in solver.writers:
        writer.write_picture(solver.progress.epoch, name, picture)


def shows_pictures(epoch: int, epochs: int) -> bool:
    """Tell whether an epoch of a run, counted from 0, is one whose images are shown."""
    return epoch % max(1, epochs // SHOWN_SHARE) == 0 or epoch == epochs - 1


def training_grid(images: Tensor, targets: list[Target], names: Mapping[int, str]) -> Tensor:
    """Draw the first images of a batch with their boxes.

    Args:
        images: `[B, 3, H, W]` float, as the model gets them; values outside 0..1 are stretched to it for each image.
        targets: boxes cxcywh in 0..1.
        names: class names by label.

    Returns:
        `[3, h, w]` uint8.
    """
    height, width = images.shape[2:]
    pictures = []
    for image, target in zip(images[:TRAINING_IMAGES].cpu().float(), targets):
        low, high = min(0.0, float(image.min())), max(1.0, float(image.max()))
        pixels = ((image - low) / (high - low) * 255).round().to(torch.uint8)
        centre, size = target["boxes"].cpu().float().chunk(2, 1)
        xyxy = torch.cat([centre - size / 2, centre + size / 2], 1) * torch.tensor(
            [width, height, width, height]
        )
        pictures.append(_fitted(draw_boxes(pixels, xyxy, target["labels"].cpu(), names)))
    return _grid(pictures, columns=3)


def validation_grid(
    dataset: DetectionData, detections: Mapping[int, Any], threshold: float | None
) -> Tensor | None:
    """Draw the truth and, right of it, what was found, for images spread evenly over a data set: always the same ones.

    Args:
        dataset: what was evaluated.
        detections: by image id, `[R, 6]`: x, y, w, h, score, category.
        threshold: least score that is drawn; None for 0.4.

    Returns:
        `[3, h, w]` uint8; None if nothing was found in any of the images, nor could have been.
    """
    pictures = []
    for index in (
        torch.linspace(0, len(dataset) - 1, min(VALIDATION_IMAGES, len(dataset))).round().int().tolist()
    ):
        rows = detections.get(dataset.image_id(index))
        picture = None if rows is None else dataset.picture(index)
        if picture is None:
            continue
        found = torch.from_numpy(rows)
        found = found[found[:, 4] >= (DEFAULT_THRESHOLD if threshold is None else threshold)]
        truth = draw_boxes(
            picture.image,
            picture.boxes,
            picture.labels,
            dataset.label_names,
        )
        xyxy = torch.cat([found[:, :2], found[:, :2] + found[:, 2:4]], 1)
        guess = draw_boxes(picture.image, xyxy, found[:, 5].long(), dataset.detection_names, found[:, 4])
        pictures.append(side_by_side([_fitted(truth), _fitted(guess)]))
    return _grid(pictures, columns=2) if pictures else None


def _fitted(picture: Tensor) -> Tensor:
    """Bring a picture to the width of a grid."""
    height = max(1, round(picture.shape[1] * WIDTH / picture.shape[2]))
    return F.interpolate(picture[None], (height, WIDTH), mode="bilinear", antialias=True)[0]


def _grid(pictures: list[Tensor], columns: int) -> Tensor:
    """Lay pictures of any heights in rows, white below the shorter ones."""
    height = max(picture.shape[1] for picture in pictures)
    even = [F.pad(picture, (0, 0, 0, height - picture.shape[1]), value=255) for picture in pictures]
    return make_grid(torch.stack(even), nrow=columns, padding=4, pad_value=255)
