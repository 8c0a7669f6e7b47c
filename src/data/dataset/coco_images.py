"""The list of images of a COCO file, for uses that need neither boxes nor categories."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .coco_format import check_images
from .coco_records import image_records
from .findings import Findings


class CocoImages(NamedTuple):
    """N images as a file lists them."""

    names: list[str]
    """File names, relative to the image folder."""
    ids: list[int]
    sizes: list[tuple[int, int]]
    """(width, height) in pixels."""


def load_coco_images(path: str | Path) -> CocoImages:
    """Read the list `images` of a COCO file.

    The lists `annotations` and `categories` may be missing, as in files of test sets.

    Raises:
        DataError: if the file cannot be read, or if its records have faults.
    """
    findings = Findings(Path(path))
    content = image_records(findings.path, findings)
    check_images(content, findings)
    findings.raise_if_faulty()
    images = CocoImages([], [], [])
    for image in content.images:
        images.names.append(image.file_name)
        images.ids.append(image.id)
        images.sizes.append((image.width, image.height))
    return images
