"""The images of a COCO file, for which boxes and categories are not needed."""

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
    """Read the list `images` of a COCO file; `annotations` and `categories` may be missing, as in files of test sets.

    Raises:
        DataError: if it cannot be read, or with the faults of its records.
    """
    findings = Findings(Path(path))
    content = image_records(findings.path, findings)
    check_images(content, findings)
    findings.raise_if_faulty()
    return CocoImages(
        [image.file_name for image in content.images],
        [image.id for image in content.images],
        [(image.width, image.height) for image in content.images],
    )
