"""The base class of data sets, with the defaults of its optional members, and checks of a user's class.

It is separate from `contracts.py` because its readers write a data set of their own and need nothing else.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .contracts import Target
from .errors import ConfigError, DataError
from .ground_truth import Objects, bytes_of, coco_rows, count_usable
from .hashing import hash64
from .own_data import (
    DATA_GUIDE,
    call,
    check_category_ids,
    check_class_names,
    check_length,
    check_objects,
    place,
)


class Picture(NamedTuple):
    """An image as stored in its file, with the boxes to draw on it."""

    image: Tensor
    """`[3, H, W]` uint8, RGB."""
    boxes: Tensor
    """`[T, 4]`, xyxy in pixels."""
    labels: Tensor
    """`[T]` int64, 0..C-1."""


class DetectionData(Dataset[tuple[Tensor, Target]], ABC):
    """Base class of data sets for training and evaluation.

    A subclass defines `class_names`, `__len__`, `__getitem__` and `objects`. Everything else has a default,
    which a subclass overrides if it knows more. `src/data/dataset/detection_dataset.py` defines
    `__getitem__` with this project's transforms.
    """

    class_names: Sequence[str]
    """Names of the classes. Label i is `class_names[i]` unless `use_labels` says otherwise."""
    output_size: tuple[int, int] | None = None
    """(height, width) of all images that `__getitem__` returns; None if it is not known."""
    mixing: Sequence[str] = ()
    """Active settings that combine several images; evaluation refuses them."""
    seed: int = 0
    """Random seed of the run. The loader sets it before the first epoch."""
    epoch: int = 0
    """Epoch in progress. The loader sets it; random numbers should depend only on (seed, epoch, index)."""
    has_checked_labels: bool = False
    """True if labels are read from a file and checked there. Others are checked at the start of a run."""
    remap_mscoco_category: bool = False
    """Whether detections carry `category_ids` instead of labels."""

    # ---- required ----

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return the model's input, an image `[3, H, W]`, float in 0..1, and its `Target`."""

    @abstractmethod
    def objects(self, index: int) -> Objects:
        """Return the `Objects` of an image, without reading the image."""

    def checked_objects(self, index: int) -> Objects:
        """Return the objects of an image after a check of their types, shapes and values.

        Raises:
            DataError: if the return value of `objects` violates the contract, or `objects` raises an error.
        """
        objects = call(self, self.objects, index)
        check_objects(
            place(self, "objects", index),
            objects,
            Objects,
            len(self.class_names),
        )
        return objects

    # ---- names and ids ----

    @cached_property
    def ann_file(self) -> str:
        """Source of the labels, for messages. Default: the name of the class."""
        return type(self).__name__

    @cached_property
    def category_ids(self) -> Sequence[int]:
        """Ids of the classes in checkpoints and result files. Default: 0..C-1."""
        return range(len(self.class_names))

    def image_id(self, index: int) -> int:
        """Return the unique id of an image. Default: its position."""
        return index

    def image_name(self, index: int) -> str:
        """Return a name that is the same in every run, such as the file name. Default: the position."""
        return f"image {index}"

    # ---- labels ----

    @cached_property
    def label_of_category(self) -> Tensor:
        """`[C]` int64: the label of each class. Default: 0..C-1."""
        return torch.arange(len(self.class_names))

    def use_labels(self, labels: Sequence[int]) -> None:
        """Give the classes the labels that a trained model uses for them.

        Args:
            labels: label of each class.

        Raises:
            ConfigError: by default if they differ, because only `__getitem__` can change what it returns.
        """
        if list(labels) != self.label_of_category.tolist():
            raise ConfigError(
                f"{self.ann_file} has the classes {', '.join(self.class_names)}, for which the run uses the "
                f"labels {list(labels)}; list class_names in that order, or define use_labels ({DATA_GUIDE})"
            )

    @property
    def num_classes(self) -> int:
        """Minimum number of classes that a model for this data needs."""
        return int(self.label_of_category.max()) + 1

    @property
    def label_names(self) -> dict[int, str]:
        """Class names by the labels in targets."""
        return dict(zip(self.label_of_category.tolist(), self.class_names))

    @property
    def detection_ids(self) -> list[int]:
        """Id of each class in detections: category ids with `remap_mscoco_category`, else labels."""
        if self.remap_mscoco_category:
            return list(self.category_ids)
        return self.label_of_category.tolist()

    @property
    def detection_names(self) -> dict[int, str]:
        """Class names by the ids in detections."""
        return dict(zip(self.detection_ids, self.class_names))

    # ---- ground truth ----

    def ground_truth(self) -> dict[str, Any]:
        """Return the objects as a COCO dictionary for the evaluator; categories have the ids of detections.

        Raises:
            DataError: if no image has a usable box.
        """
        if not self.usable_boxes():
            raise DataError(
                f"{self.ann_file} has no ground truth: none of its {len(self)} images has a usable box, so "
                "nothing can be scored"
            )
        ids = self.detection_ids
        image_ids = [int(self.image_id(index)) for index in range(len(self))]
        records: list[dict[str, Any]] = []
        for index, image_id in enumerate(image_ids):
            for row in coco_rows(self.objects(index)):
                row["id"] = len(records) + 1
                row["image_id"] = image_id
                row["category_id"] = ids[row["category_id"]]
                records.append(row)
        categories = []
        for category, name in sorted(self.detection_names.items()):
            categories.append({"id": category, "name": name})
        return {
            "images": [{"id": image_id} for image_id in image_ids],
            "annotations": records,
            "categories": categories,
        }

    def boxes_per_image(self) -> Tensor:
        """Return the number of boxes of each image, ignored ones included: `[N]` int64."""
        counts = [len(self.objects(index).boxes) for index in range(len(self))]
        return torch.tensor(counts, dtype=torch.int64)

    def usable_boxes(self) -> int:
        """Return the number of boxes that are used for training and scoring."""
        return sum(
            count_usable(self.objects(index)) for index in range(len(self))
        )

    def identity(self) -> dict[str, Any]:
        """Return a fingerprint of this data, which must be the same when a run is resumed.

        Returns:
            `names` and `labels`: `[N]` int64, hashes of each image's name and objects. `classes`: pairs of
            category id and name, in order.
        """
        names = []
        labels = []
        for index in range(len(self)):
            name = self.image_name(index)
            names.append(hash64(name.encode(errors="surrogatepass")))
            labels.append(hash64(bytes_of(self.objects(index))))
        classes = []
        for category, name in zip(self.category_ids, self.class_names):
            classes.append([int(category), name])
        return {
            "names": torch.tensor(names, dtype=torch.int64),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "classes": classes,
        }

    # ---- optional information about images ----

    def picture(self, index: int) -> Picture | None:
        """Return an image with its ground-truth boxes, for the pictures of a run. Default: None."""

    def check(
        self, *, strict: bool = False, cache: Path | None = None
    ) -> list[str]:
        """Compare labels and image files before a run. All ranks call this together.

        Args:
            strict: True if warnings end the run; then unreadable images must not be skipped later either.
            cache: file in which results are stored, so that the next start is faster.

        Returns:
            Warnings, each of one line. The default checks the objects, ids and names of all images.

        Raises:
            DataError: if the data cannot be used.
        """
        check_length(self)
        for index in range(len(self)):
            self.checked_objects(index)
        return self._check_ids_and_names()

    def _check_ids_and_names(self) -> list[str]:
        """Check that image ids are unique integers; return a warning if image names are not unique."""
        ids = [call(self, self.image_id, index) for index in range(len(self))]
        wrong = next(
            (value for value in ids if not isinstance(value, Integral)), None
        )
        if wrong is not None:
            raise DataError(
                f"{type(self).__name__}.image_id returned {wrong!r}, expected an integer; see {DATA_GUIDE}"
            )
        (most_common, count), *_ = Counter(ids).most_common(1)
        if count > 1:
            raise DataError(
                f"{self.ann_file}: {count} images have the id {most_common}; image_id must return another "
                f"number for each image; see {DATA_GUIDE}"
            )
        names = [
            call(self, self.image_name, index) for index in range(len(self))
        ]
        other = next(
            (name for name in names if not isinstance(name, str)), None
        )
        if other is not None:
            raise DataError(
                f"{type(self).__name__}.image_name returned a {type(other).__name__}, expected a text; see "
                f"{DATA_GUIDE}"
            )
        repeated = len(names) - len(set(names))
        if repeated:
            return [
                f"{self.ann_file}: images with the name of another image (image_name): {repeated}"
            ]
        return []

    def describe_duplicates(self, *others: DetectionData) -> list[str]:
        """Return warnings about duplicate images, after all data sets have been checked. Default: none."""
        return []

    def allow_bad_images(self) -> None:
        """Allow training to skip a few unreadable images. Default: the first one ends the run."""

    def allow_reduced_decoding(self) -> None:
        """Allow training to decode large images at a reduced size. Default: does nothing."""

    def unreadable_images(self) -> list[int]:
        """Return the positions of images that could not be read so far. Default: no positions."""
        return []

    def remember_unreadable(self, indices: Sequence[int]) -> None:
        """Add images that an earlier part of the run could not read to the count. Default: does nothing."""

    def report_images(self) -> None:
        """Log new observations about images. All ranks call this together. Default: logs nothing."""

    def last_image(self, worker: int) -> str:
        """Return the name of the image that a worker process read last. Default: "not known"."""
        return "not known"

    def set_epoch(self, epoch: int) -> None:
        """Store the epoch that begins."""
        self.epoch = epoch


def refuse_incomplete_class(cls: Any) -> None:
    """Check that a data set class defines the required members; other classes are accepted.

    Raises:
        ConfigError: with the class, the missing members, and the return value of each.
    """
    is_data_set = isinstance(cls, type) and issubclass(cls, DetectionData)
    if is_data_set and inspect.isabstract(cls):
        raise ConfigError(_missing_text(cls, sorted(cls.__abstractmethods__)))


def require_detection_data(data: Any) -> None:
    """Check that an object can be used as a data set.

    Raises:
        ConfigError: with its class, the missing members, and the return value of each.
    """
    required = ("class_names", *sorted(DetectionData.__abstractmethods__))
    missing = [name for name in required if not hasattr(data, name)]
    if missing or not isinstance(data, DetectionData):
        raise ConfigError(_missing_text(type(data), missing))
    check_class_names(data, data.class_names)
    check_category_ids(data, data.category_ids, data.class_names)
    if not data.has_checked_labels:
        check_length(data)


def _missing_text(cls: type, missing: Sequence[str]) -> str:
    """Return one sentence about a class that is not a complete data set."""
    purposes = {"class_names": "a list with the names of the classes"}
    parts = []
    for name in missing:
        member = getattr(cls, name, None) or getattr(DetectionData, name, None)
        summary = (inspect.getdoc(member) or "").split("\n")[0]
        returns = summary.rstrip(".").replace("Return", "returns", 1)
        parts.append(f"{name} ({purposes.get(name) or returns})")
    if not parts:
        parts.append("the defaults of DetectionData, from which it must derive")
    return f"{cls.__name__} cannot be used as a data set: it lacks {', '.join(parts)}; see {DATA_GUIDE}"
