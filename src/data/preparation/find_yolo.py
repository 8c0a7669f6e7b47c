"""Recognition of YOLO's layout, with and without a `data.yaml`.

Recognized without one are `images/` beside `labels/` (also divided into parts below), folders of parts that
contain both, and images with their text files in one folder. Class names are then read from `classes.txt` or
a similar file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from ...core.paths import read_text
from ..dataset.image_names import find_image_files, is_image_file
from .folders import Entries
from .labelled_images import Account, Faults, LabelledImages
from .yolo import label_files, read_described
from .yolo_labels import has_labels
from .yolo_yaml import (
    YoloDescription,
    names_in,
    read_description,
    read_yaml,
)

CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt")
"""Files with one class name per line."""

LOOKED_AT = 500
"""Maximum number of text files of a folder to examine."""


@dataclass(frozen=True)
class YoloLayout:
    """A data set in YOLO's layout."""

    data_format = "yolo"
    root: Path
    yaml: Path | None = None
    """The `data.yaml` that describes the parts."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Folders of images by part, if there is no `yaml`."""
    flat: bool = False
    """Only the images in the folders themselves are used, without subfolders."""
    names: dict[int, str] | None = None
    named_by: Path | None = None
    """File that the names are from."""

    def where(self) -> str:
        """Return the place of the labels for a message."""
        if self.yaml is not None:
            return self.yaml.name
        folder = next(iter(self.folders.values()))
        name = folder.relative_to(self.root).as_posix()
        if name == ".":
            return "*.txt"
        if self.flat:
            return f"{name}/*.txt"
        *before, last = name.split("/")
        if last == "images":
            return "/".join([*before, "labels/*.txt"])
        return f"{name.replace('images', 'labels', 1)}/*.txt"

    def describe(self, account: Account) -> YoloDescription:
        """List the images of each part.

        Raises:
            DataError: if there are none for training.
        """
        if self.yaml is not None:
            return read_description(self.yaml, account)
        files: dict[str, list[str]] = {}
        for part, folder in self.folders.items():
            prefix = folder.relative_to(self.root).as_posix()
            if self.flat:
                names = [p.name for p in Entries(folder).files]
                names = [n for n in names if is_image_file(folder / n)]
            else:
                names = find_image_files(folder).images
            if prefix != ".":
                names = [f"{prefix}/{name}" for name in names]
            files[part] = names
        if not files.get("train"):
            raise DataError(f"{self.root} has no images to train on")
        return YoloDescription(
            self.root, self.root.resolve(), self.names, files
        )

    def watched(self) -> Iterator[Path]:
        """Yield the files that the labels are made from."""
        source = self.yaml or self.root
        account = Account(Faults(source), Counter())
        description = self.describe(account)
        if self.yaml is not None:
            yield self.yaml
        if self.named_by is not None:
            yield self.named_by
        for name in chain.from_iterable(description.files.values()):
            yield description.root / name
        yield from label_files(description)

    def read(
        self,
        *,
        follow_links: bool,
        drop_boxes: bool,
        drop_strays: bool = True,
    ) -> LabelledImages:
        """Read the labels.

        Args:
            follow_links: open files that are symbolic links out of the data set.
            drop_boxes: drop boxes without area or outside their image, which are faults otherwise.
            drop_strays: leave out label files without an image, which are faults otherwise.

        Raises:
            DataError: if there are faults.
        """
        source = self.yaml or self.root
        account = Account(Faults(source), Counter(), drop_boxes, drop_strays)
        description = self.describe(account)
        return read_described(description, account, follow_links=follow_links)


def find_yolo(root: Path) -> YoloLayout | None:
    """Return the layout of a folder, or None if it is not YOLO's.

    Raises:
        DataError: if its `data.yaml` cannot be read, or if several files describe the data.
    """
    entries = Entries(root)
    described, names, named_by = _described_by_yaml(entries)
    if described is not None:
        return YoloLayout(root, yaml=described)
    folders, flat = _image_folders(entries)
    if not folders:
        return None
    if names is None:
        names, named_by = _names_beside(root, folders)
    return YoloLayout(
        root, folders=folders, flat=flat, names=names, named_by=named_by
    )


def _described_by_yaml(
    entries: Entries,
) -> tuple[Path | None, dict[int, str] | None, Path | None]:
    """Return the YAML file that describes the data; otherwise the class names of one, and that file.

    Such a file has `names`, and `train` or `val`. Others, such as `environment.yml`, are ignored.
    """
    describing = []
    naming: list[tuple[dict[int, str], Path]] = []
    for path in entries.with_suffix(".yaml", ".yml"):
        settings = _settings(path)
        if "names" not in settings:
            continue
        if settings.keys() & {"train", "val", "valid", "validation"}:
            describing.append(path)
        elif path.stem.lower() in _USUAL_STEMS:
            naming.append((names_in(settings, path), path))
    for stem in _USUAL_STEMS:
        for path in describing:
            if path.stem.lower() == stem:
                return path, None, None
    if len(describing) > 1:
        listed = ", ".join(path.name for path in describing)
        raise DataError(
            f"{entries.folder} has {len(describing)} files that describe a data set ({listed}); "
            "give the one to use with --data FILE"
        )
    if describing:
        return describing[0], None, None
    if naming:
        return None, *naming[0]
    return None, None, None


_USUAL_STEMS = ("data", "dataset")
"""Names of `data.yaml`; a file with such a name must be readable."""


def _settings(path: Path) -> dict[str, Any]:
    """Return the settings of a YAML file; an unreadable one with an unusual name has none."""
    try:
        return read_yaml(path)
    except DataError:
        if path.stem.lower() in _USUAL_STEMS:
            raise
        return {}


def _image_folders(entries: Entries) -> tuple[dict[str, Path], bool]:
    """Return the folders of images with YOLO labels by part, and whether labels lie beside the images."""
    root = entries.folder
    if _has_both(root):
        images = root / "images"
        by_part = Entries(images).folders_by_part()
        if "train" in by_part:
            return by_part, False
        return {"train": images}, False
    divided: dict[str, Path] = {}
    beside: dict[str, Path] = {}
    for part, folder in entries.folders_by_part().items():
        if _has_both(folder) or (
            # an unlabelled part, such as a test part without labels
            divided and (folder / "images").is_dir()
        ):
            divided[part] = folder / "images"
        elif _has_labels_beside(Entries(folder)):
            beside[part] = folder
    if divided:
        return divided, False
    if beside:
        return beside, True
    if _has_labels_beside(entries):
        return {"train": root}, True
    images = root / "images"
    if images.is_dir() and _has_labels_beside(Entries(images)):
        return {"train": images}, True
    return {}, False


def _has_both(folder: Path) -> bool:
    """Return whether a folder has `images/`, and `labels/` with a text file that is not empty."""
    images = folder / "images"
    labels = folder / "labels"
    if not images.is_dir() or not labels.is_dir():
        return False
    count = 0
    for base, folders, names in os.walk(labels):
        folders.sort()
        for name in sorted(names):
            if not name.lower().endswith(".txt") or name in CLASS_FILES:
                continue
            count += 1
            if os.path.getsize(os.path.join(base, name)):
                return True
            if count > LOOKED_AT:
                return False
    return False


def _has_labels_beside(entries: Entries) -> bool:
    """Return whether a folder has images, and a label file named as one of them."""
    if not entries.has_images():
        return False
    stems = {path.stem for path in entries.files if path.suffix != ".txt"}
    for path in entries.with_suffix(".txt")[:LOOKED_AT]:
        if path.name in CLASS_FILES or not has_labels(path):
            continue
        if path.stem in stems or Path(path.stem).stem in stems:
            return True
    return False


def _names_beside(
    root: Path, folders: dict[str, Path]
) -> tuple[dict[int, str] | None, Path | None]:
    """Return the class names of a text file near the labels, and the file; None, None if there is none."""
    places = [root, root / "labels"]
    for folder in folders.values():
        places += [folder, folder.parent, folder.parent / "labels"]
    for place in places:
        for name in CLASS_FILES:
            path = place / name
            if path.is_file():
                return _names_in_lines(path), path
    return None, None


def _names_in_lines(path: Path) -> dict[int, str]:
    """Return the class names of a text file, one per line.

    Raises:
        DataError: if the file has none or cannot be read.
    """
    try:
        lines = read_text(path, errors="replace").splitlines()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}"
        ) from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(
            f"{path} is empty; it should have one class name per line"
        )
    names = {}
    for number, line in enumerate(lines):
        names[number] = line.strip() or f"class_{number}"
    return names
