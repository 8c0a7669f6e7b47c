"""The shapes of what packages hand to each other."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .errors import ConfigError, DataError
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


class Target(TypedDict, total=False):
    """Labels of one image; `boxes` and `labels` are always there, evaluation needs `image_id` and `orig_size`."""

    boxes: Tensor
    """`[T, 4]` float32: cxcywh in 0..1 for training, xyxy in pixels of the resized image for evaluation."""
    labels: Tensor
    """`[T]` int64, 0..C-1."""
    image_id: Tensor
    """`[1]` int64, as in the annotation file."""
    orig_size: Tensor
    """`[2]` int64, (width, height) of the file in pixels."""
    area: Tensor
    """`[T]` float32, square pixels of the file."""
    iscrowd: Tensor
    """`[T]` int64, 0 or 1."""
    idx: Tensor
    """`[1]` int64, position in the data set."""
    image_path: str
    boxes_read: int
    """Boxes that the image has in its labels; T is smaller if transforms have dropped some."""
    boxes_lost: dict[str, int]
    """Boxes that were dropped, by the name of the transform."""


Batch = tuple[Tensor, list[Target]]
"""Images `[B, 3, H, W]` and their targets."""


class Objects(NamedTuple):
    """The true objects of one image."""

    boxes: Tensor
    """`[T, 4]` float, xyxy in pixels of the image file."""
    labels: Tensor
    """`[T]` int64, positions in `DetectionData.class_names`."""
    ignored: Tensor | None = None
    """`[T]` bool: objects that are neither learned nor scored, such as crowd regions; None if there are none."""
    areas: Tensor | None = None
    """`[T]` float, square pixels; None takes those of the boxes. They decide what counts as small, medium and large."""


class Picture(NamedTuple):
    """An image as it is in its file, with the boxes that are drawn on it."""

    image: Tensor
    """`[3, H, W]` uint8, RGB."""
    boxes: Tensor
    """`[T, 4]`, xyxy in pixels."""
    labels: Tensor
    """`[T]` int64, 0..C-1."""


class DetectionData(Dataset[tuple[Tensor, Target]], ABC):
    """What a run learns from or is scored on.

    A data set defines `class_names`, `__len__`, `__getitem__` and `objects`. Everything else has a default, and is overridden
    by a data set that knows more. `src/data/dataset/detection_dataset.py` defines `__getitem__` with this project's transforms.
    """

    class_names: Sequence[str]
    """Names of the classes. Label i is `class_names[i]` unless `use_labels` says otherwise."""
    output_size: tuple[int, int] | None = None
    """(height, width) of all images that `__getitem__` returns; None if it is not known."""
    mixing: Sequence[str] = ()
    """Settings by which several images are put together, which evaluation refuses."""
    seed: int = 0
    """Random seed of the run; the loader sets it before the first epoch."""
    epoch: int = 0
    """Epoch in progress; the loader sets it. Random numbers should depend on (seed, epoch, index) alone."""
    has_checked_labels: bool = False
    """Whether labels were read from a file and checked; what other data sets return is checked at the start of a run."""
    remap_mscoco_category: bool = False
    """Whether detections carry `category_ids` instead of labels."""

    # ---- what every data set defines ----

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return an image `[3, H, W]` as the model gets it, float in 0..1, and its `Target`."""

    @abstractmethod
    def objects(self, index: int) -> Objects:
        """Return the `Objects` of an image, without reading the image."""

    def checked_objects(self, index: int) -> Objects:
        """Return the objects of an image after a check of their types, shapes and values.

        Raises:
            DataError: if `objects` returns something else than the contract says, or raises an exception.
        """
        objects = call(self, self.objects, index)
        check_objects(place(self, "objects", index), objects, Objects, len(self.class_names))
        return objects

    # ---- names and numbers ----

    @cached_property
    def ann_file(self) -> str:
        """Where the labels come from, for messages. Default: the name of the class."""
        return type(self).__name__

    @cached_property
    def category_ids(self) -> Sequence[int]:
        """Ids of the classes in the checkpoint and in files of results. Default: 0..C-1."""
        return range(len(self.class_names))

    def image_id(self, index: int) -> int:
        """Return the id of an image, which no other image has. Default: its position."""
        return index

    def image_name(self, index: int) -> str:
        """Return what identifies an image from run to run, such as its file name. Default: its position."""
        return f"image {index}"

    # ---- labels ----

    @cached_property
    def label_of_category(self) -> Tensor:
        """`[C]` int64: the label of each class. Default: 0..C-1."""
        return torch.arange(len(self.class_names))

    def use_labels(self, labels: Sequence[int]) -> None:
        """Give the classes other labels: those by which a trained model knows them.

        Args:
            labels: one for each class.

        Raises:
            ConfigError: by default if they differ, because only `__getitem__` can change what it returns.
        """
        if list(labels) != self.label_of_category.tolist():
            raise ConfigError(
                f"{self.ann_file} has the classes {', '.join(self.class_names)}, which the run knows by the labels {list(labels)}; "
                f"list class_names in that order, or define use_labels ({DATA_GUIDE})"
            )

    @property
    def num_classes(self) -> int:
        """The smallest number of classes that a model of this data needs."""
        return int(self.label_of_category.max()) + 1

    @property
    def label_names(self) -> dict[int, str]:
        """Names by the labels that targets carry."""
        return dict(zip(self.label_of_category.tolist(), self.class_names))

    @property
    def detection_ids(self) -> list[int]:
        """What detections of each class carry: category ids with `remap_mscoco_category`, else labels."""
        return list(self.category_ids) if self.remap_mscoco_category else self.label_of_category.tolist()

    @property
    def detection_names(self) -> dict[int, str]:
        """Names by what detections carry."""
        return dict(zip(self.detection_ids, self.class_names))

    # ---- the truth ----

    def ground_truth(self) -> dict[str, Any]:
        """Return the objects as a COCO dictionary for the evaluator; categories have the ids that detections carry.

        Raises:
            DataError: if there is nothing to find.
        """
        if not self.usable_boxes():
            raise DataError(
                f"{self.ann_file} has no ground truth: none of its {len(self)} images has a usable box, so nothing can be scored"
            )
        ids = self.detection_ids
        image_ids = [self.image_id(index) for index in range(len(self))]
        records: list[dict[str, Any]] = []
        for index, image_id in enumerate(image_ids):
            for row in coco_rows(self.objects(index)):
                category = ids[row["category_id"]]
                records.append({**row, "id": len(records) + 1, "image_id": image_id, "category_id": category})
        return {
            "images": [{"id": image_id} for image_id in image_ids],
            "annotations": records,
            "categories": [{"id": i, "name": name} for i, name in sorted(self.detection_names.items())],
        }

    def boxes_per_image(self) -> Tensor:
        """Return the number of boxes of each image, ignored ones included: `[N]` int64."""
        counts = [len(self.objects(index).boxes) for index in range(len(self))]
        return torch.tensor(counts, dtype=torch.int64)

    def usable_boxes(self) -> int:
        """Return the number of boxes that are learned and scored."""
        return sum(_count_usable(self.objects(index)) for index in range(len(self)))

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this data from other data: a resumed run must have the same.

        Returns:
            `names` and `labels`, `[N]` int64 hashes of each image's name and objects, and `classes`, (category id, name) in order.
        """
        names = [hash64(self.image_name(index).encode(errors="surrogatepass")) for index in range(len(self))]
        labels = [hash64(_bytes_of(self.objects(index))) for index in range(len(self))]
        return {
            "names": torch.tensor(names, dtype=torch.int64),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "classes": [[category, name] for category, name in zip(self.category_ids, self.class_names)],
        }

    # ---- what a data set may know about its images ----

    def picture(self, index: int) -> Picture | None:
        """Return an image with its true boxes for the pictures of a run. Default: None, and no picture is made of it."""

    def check(self, *, strict: bool = False, cache: Path | None = None) -> list[str]:
        """Compare labels and image files before a run; all ranks together.

        Args:
            strict: warnings end the run, so images that cannot be read must not be skipped later.
            cache: file for what was found, so that the next start is faster.

        Returns:
            Warnings, one a line. The default checks the objects of all images, their ids and their names.

        Raises:
            DataError: if the data cannot be used.
        """
        check_length(self)
        for index in range(len(self)):
            self.checked_objects(index)
        return self._check_ids_and_names()

    def _check_ids_and_names(self) -> list[str]:
        ids = [call(self, self.image_id, index) for index in range(len(self))]
        wrong = next((value for value in ids if not isinstance(value, int)), None)
        if wrong is not None:
            raise DataError(
                f"{type(self).__name__}.image_id returned {wrong!r}, expected an integer; see {DATA_GUIDE}"
            )
        (most_common, count), *_ = Counter(ids).most_common(1)
        if count > 1:
            raise DataError(
                f"{self.ann_file}: {count} images have the id {most_common}; image_id must return another number for "
                f"each image; see {DATA_GUIDE}"
            )
        names = [call(self, self.image_name, index) for index in range(len(self))]
        other = next((name for name in names if not isinstance(name, str)), None)
        if other is not None:
            raise DataError(
                f"{type(self).__name__}.image_name returned a {type(other).__name__}, expected a text; see {DATA_GUIDE}"
            )
        if len(set(names)) < len(names):
            return [
                f"{self.ann_file}: {len(names) - len(set(names))} images have the name of another (image_name)"
            ]
        return []

    def describe_duplicates(self, *others: DetectionData) -> list[str]:
        """Return warnings about images that are in the data more than once; all data sets have been checked. Default: none."""
        return []

    def allow_bad_images(self) -> None:
        """Skip a few images that cannot be read, as training may. Default: nothing changes; the first one ends the run."""

    def unreadable_images(self) -> list[int]:
        """Return the positions of images that could not be read so far. Default: none."""
        return []

    def remember_unreadable(self, indices: Sequence[int]) -> None:
        """Count images that an earlier part of the run could not read. Default: they are not counted."""

    def report_images(self) -> None:
        """Log what is new about images that were read; all ranks call this together. Default: nothing."""

    def last_image(self, worker: int) -> str:
        """Return the name of the image that a loading process read last. Default: not known."""
        return "not known"

    def set_epoch(self, epoch: int) -> None:
        """Store the epoch that begins."""
        self.epoch = epoch


def refuse_incomplete_class(cls: Any) -> None:
    """Check that a class of data sets defines what every data set needs; other classes pass.

    Raises:
        ConfigError: with the class, what is missing, and what each missing member returns.
    """
    if isinstance(cls, type) and issubclass(cls, DetectionData) and inspect.isabstract(cls):
        raise ConfigError(_missing_text(cls, sorted(cls.__abstractmethods__)))


def require_detection_data(data: Any) -> None:
    """Check that an object can be used as a data set.

    Raises:
        ConfigError: with its class, what is missing, and what each missing member returns.
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
        line = (inspect.getdoc(getattr(cls, name, None) or getattr(DetectionData, name, None)) or "").split(
            "\n"
        )[0]
        parts.append(f"{name} ({purposes.get(name) or line.rstrip('.').replace('Return', 'returns', 1)})")
    if not parts:
        parts.append("the defaults of DetectionData, which it has to derive from")
    return f"{cls.__name__} cannot be used as a data set: it lacks {', '.join(parts)}; see {DATA_GUIDE}"


def coco_rows(objects: Objects) -> Iterator[dict[str, Any]]:
    """Yield a COCO annotation for each object, without `id` and `image_id`; `category_id` is its position in `class_names`."""
    boxes = objects.boxes.reshape(-1, 4).tolist()
    areas = objects.areas.tolist() if objects.areas is not None else [None] * len(boxes)
    ignored = objects.ignored.tolist() if objects.ignored is not None else [False] * len(boxes)
    for (x0, y0, x1, y1), label, area, is_ignored in zip(boxes, objects.labels.tolist(), areas, ignored):
        width, height = x1 - x0, y1 - y0
        yield {
            "category_id": label,
            "bbox": [x0, y0, width, height],
            "area": width * height if area is None else area,
            "iscrowd": int(is_ignored),
        }


def _count_usable(objects: Objects) -> int:
    return len(objects.boxes) - (0 if objects.ignored is None else int(objects.ignored.sum()))


def _bytes_of(objects: Objects) -> bytes:
    """Return objects as bytes, the same for equal objects."""
    return repr([None if part is None else part.double().tolist() for part in objects]).encode()


class Collate(Protocol):
    """What makes a batch of the items of a data set."""

    def __call__(self, items: list[Any]) -> Batch:
        """Return images `[B, 3, H, W]` and their targets."""


@runtime_checkable
class FollowsEpochs(Protocol):
    """A part of the loader that depends on the epoch, such as a collate function with stages."""

    def set_epoch(self, epoch: int) -> None:
        """Store the epoch that begins."""


@runtime_checkable
class StagedCollate(Protocol):
    """A collate function with a final stage without strong augmentation."""

    stop_epoch: int | None
    """First epoch of that stage; None if there is none."""
    ema_restart_decay: float | None
    """Decay of the EMA from that epoch on; None keeps it."""


@runtime_checkable
class MultiScaleCollate(Protocol):
    """A collate function that makes batches of several sizes."""

    def largest_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the largest (height, width) that a batch of images of a size can have."""


@runtime_checkable
class MixesImages(Protocol):
    """A data set or a collate function that may put several images together."""

    mixing: Sequence[str]
    """Settings by which it does so, which evaluation refuses."""


class RankBatches(Protocol):
    """The batch sampler of a loader."""

    batch_size: int
    """Images per rank."""
    equal_shares: bool
    """Whether all ranks take equally many steps, as training must; then a few images come twice."""


class DetectionLoader(Protocol):
    """Batches of one rank."""

    dataset: DetectionData
    collate_fn: Collate
    batch_sampler: RankBatches

    @property
    def total_batch_size(self) -> int:
        """Images of one step over all ranks."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches."""

    def set_seed(self, seed: int) -> None:
        """Store the random seed of the run."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Store the epoch that begins, and the batch to begin with."""

    def report_images(self) -> None:
        """Log what is new about images that were read; all ranks call this together."""


class Predictions(TypedDict):
    """Output of a detector in eval mode."""

    pred_logits: Tensor
    """`[B, Q, C]`, before the sigmoid."""
    pred_boxes: Tensor
    """`[B, Q, 4]`, cxcywh in 0..1."""


class Detections(TypedDict):
    """Output of the post-processor for one image, best first."""

    labels: Tensor
    """`[R]` int64: 0..C-1, or COCO category ids with `remap_mscoco_category`."""
    boxes: Tensor
    """`[R, 4]`, xyxy in pixels of the original image."""
    scores: Tensor
    """`[R]`, 0..1."""


class Backbone(Protocol):
    """Images `[B, 3, H, W]` in 0..1 to a list of maps, fine to coarse. A backbone that knows its channels and
    strides has these; then they are checked against the encoder."""

    out_channels: list[int]
    out_strides: list[int]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Map images to feature maps."""


class Learning(NamedTuple):
    """Start and rate of a parameter's training."""

    thaw_epoch: int
    """First epoch in which it does, from 0."""
    factor: float
    """On the learning rate of its group."""


@runtime_checkable
class Phased(Protocol):
    """A module whose parts begin to learn one after the other."""

    def set_epoch(self, epoch: int) -> None:
        """Freeze and thaw what is due."""

    def learning_plan(self) -> dict[str, Learning]:
        """Return for each parameter that is ever trained, by name, when that begins and at which rate."""


LORA_FACTORS = ("lora_down", "lora_up")
"""Names of the parameters of an `Adapted` layer that hold its change; checkpoints have them as the ends of keys."""


@runtime_checkable
class Adapted(Protocol):
    """A layer with `weight` and a trained change of it, held in the parameters `LORA_FACTORS`."""

    def merged_weight(self) -> Tensor:
        """Return the weight with the change folded in."""


@runtime_checkable
class Licensed(Protocol):
    """A module that may have been filled with published weights."""

    licence_note: str | None
    """Whose they are and what licence they stand under; None as long as there are none."""


@runtime_checkable
class Deployable(Protocol):
    """A module with a leaner form for inference."""

    def convert_to_deploy(self) -> None:
        """Take that form, in place."""


class WeightAverage(Protocol):
    """An exponential moving average (EMA) of a model's weights."""

    module: nn.Module
    """The model with averaged weights, in eval mode."""

    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of a model, after an optimizer step."""

    def restart(self, weights: dict[str, Tensor], decay: float | None) -> None:
        """Begin again from weights; a decay of None keeps the present one."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for the checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`."""


class Evaluator(Protocol):
    """Four verbs between the training loop and a metric."""

    def reset(self) -> None:
        """Forget all detections, before an evaluation."""

    def update(self, predictions: dict[int, Detections]) -> None:
        """Take the detections of some images, by image id."""

    def synchronize(self) -> None:
        """Bring the detections of all ranks together; each image counts once."""

    def summarize(self) -> dict[str, Any]:
        """Return the metrics by name."""


@runtime_checkable
class HasHorizon(Protocol):
    """An average of weights that knows how far back it reaches."""

    horizon: float
    """Steps after which weights count for 1 / e of what they did."""


@runtime_checkable
class HasQueries(Protocol):
    """A decoder that finds a limited number of objects."""

    num_queries: int
    """Objects that can be found in one image."""


@runtime_checkable
class ListsMetrics(Protocol):
    """An evaluator that knows its metrics before anything is evaluated."""

    metric_names: Sequence[str]

    def undefined_metrics(self) -> dict[str, str]:
        """Return the metrics that the labels do not define, each with the reason."""


@runtime_checkable
class KeepsDetections(Protocol):
    """An evaluator that keeps what was found."""

    detections: Mapping[int, Any]
    """By image id, `[R, 6]`: x, y, width, height in pixels, score, category."""


@runtime_checkable
class Diagnoses(Protocol):
    """An evaluator that can explain why nothing was found."""

    def diagnose(self) -> str:
        """Return the most likely reason in a few words."""


@runtime_checkable
class CountsObjects(Protocol):
    """A loss that can be normalized by the objects of several batches (gradient accumulation)."""

    def count(self, outputs: dict[str, Any], targets: list[Target]) -> Any:
        """Return what a batch is normalized by."""

    def window_normalizers(self, counts: list[Any], images: list[int], device: torch.device) -> list[Any]:
        """Return for each batch of a window what its loss has to be normalized by."""
