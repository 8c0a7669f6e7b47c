"""Types and protocols of the objects that packages pass to each other."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
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
    """Labels of one image.

    `boxes` and `labels` are always present; evaluation also needs `image_id` and `orig_size`.
    """

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
    """Number of boxes in the image's labels; T is smaller if transforms have dropped some."""
    boxes_lost: dict[str, int]
    """Number of boxes that each transform has dropped, by its name."""


Batch = tuple[Tensor, list[Target]]
"""Images `[B, 3, H, W]` and their targets."""


class Objects(NamedTuple):
    """The ground-truth objects of one image."""

    boxes: Tensor
    """`[T, 4]` float, xyxy in pixels of the image file."""
    labels: Tensor
    """`[T]` int64, positions in `DetectionData.class_names`."""
    ignored: Tensor | None = None
    """`[T]` bool: objects excluded from training and scoring, such as crowd regions; None for no objects."""
    areas: Tensor | None = None
    """`[T]` float, square pixels, for the size classes small, medium and large; None uses the box areas."""


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
            _count_usable(self.objects(index)) for index in range(len(self))
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
            labels.append(hash64(_bytes_of(self.objects(index))))
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
                f"{self.ann_file}: {repeated} images have the name of another image (image_name)"
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


def coco_rows(objects: Objects) -> Iterator[dict[str, Any]]:
    """Yield a COCO annotation for each object, without `id` and `image_id`.

    `category_id` is the position of the class in `class_names`.
    """
    boxes = objects.boxes.reshape(-1, 4).tolist()
    labels = objects.labels.tolist()
    areas = [None] * len(boxes)
    if objects.areas is not None:
        areas = objects.areas.tolist()
    ignored = [False] * len(boxes)
    if objects.ignored is not None:
        ignored = objects.ignored.tolist()
    for box, label, area, is_ignored in zip(boxes, labels, areas, ignored):
        x0, y0, x1, y1 = box
        width = x1 - x0
        height = y1 - y0
        yield {
            "category_id": label,
            "bbox": [x0, y0, width, height],
            "area": width * height if area is None else area,
            "iscrowd": int(is_ignored),
        }


def _count_usable(objects: Objects) -> int:
    """Return the number of objects that are not ignored."""
    count = len(objects.boxes)
    if objects.ignored is not None:
        count -= int(objects.ignored.sum())
    return count


def _bytes_of(objects: Objects) -> bytes:
    """Return objects as bytes; equal objects give equal bytes."""
    values = [
        None if part is None else part.double().tolist() for part in objects
    ]
    return repr(values).encode()


class Collate(Protocol):
    """Function that combines items of a data set into a batch."""

    def __call__(self, items: list[Any]) -> Batch:
        """Return images `[B, 3, H, W]` and their targets."""


@runtime_checkable
class FollowsEpochs(Protocol):
    """A part of the loader that depends on the epoch, such as a collate function with two stages."""

    def set_epoch(self, epoch: int) -> None:
        """Store the epoch that begins."""


@runtime_checkable
class StagedCollate(Protocol):
    """A collate function with a final stage without strong augmentation."""

    stop_epoch: int | None
    """First epoch of that stage; None disables it."""
    ema_restart_decay: float | None
    """Decay of the EMA from that epoch on; None keeps the decay."""


@runtime_checkable
class MultiScaleCollate(Protocol):
    """A collate function that resizes batches to several sizes."""

    def largest_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the largest (height, width) to which a batch of images of this size can be resized."""


@runtime_checkable
class MixesImages(Protocol):
    """A data set or a collate function that may combine several images."""

    mixing: Sequence[str]
    """Active settings that combine images; evaluation refuses them."""


class RankBatches(Protocol):
    """The batch sampler of a loader."""

    batch_size: int
    """Images per rank."""
    equal_shares: bool
    """Whether all ranks take the same number of steps, as training requires, by repeating a few images."""


class DetectionLoader(Protocol):
    """Batches of one rank."""

    dataset: DetectionData
    collate_fn: Collate
    batch_sampler: RankBatches

    @property
    def total_batch_size(self) -> int:
        """Images per step over all ranks."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches."""

    def set_seed(self, seed: int) -> None:
        """Store the random seed of the run."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Store the epoch that begins, and the number of its first batch."""

    def report_images(self) -> None:
        """Log new observations about images. All ranks call this together."""


class Predictions(TypedDict):
    """Output of a detector in eval mode."""

    pred_logits: Tensor
    """`[B, Q, C]`, before the sigmoid."""
    pred_boxes: Tensor
    """`[B, Q, 4]`, cxcywh in 0..1."""


class Detections(TypedDict):
    """Output of the post-processor for one image, sorted by descending score."""

    labels: Tensor
    """`[R]` int64: 0..C-1, or COCO category ids with `remap_mscoco_category`."""
    boxes: Tensor
    """`[R, 4]`, xyxy in pixels of the original image."""
    scores: Tensor
    """`[R]`, 0..1."""


class Backbone(Protocol):
    """A network that maps images `[B, 3, H, W]` in 0..1 to a list of feature maps, fine to coarse.

    If a backbone has `out_channels` and `out_strides`, they are compared with the settings of the encoder.
    """

    out_channels: list[int]
    out_strides: list[int]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Map images to feature maps."""


class Learning(NamedTuple):
    """First epoch and learning rate of a parameter."""

    thaw_epoch: int
    """First epoch, from 0, in which the parameter is trained (unfrozen)."""
    factor: float
    """Multiplies the configured `lr` of the parameter's group (`optim/param_groups.py`)."""


@runtime_checkable
class Phased(Protocol):
    """A module whose parts are unfrozen one after the other."""

    def set_epoch(self, epoch: int) -> None:
        """Freeze and unfreeze parameters as planned for this epoch."""

    def learning_plan(self) -> dict[str, Learning]:
        """Return first epoch and rate, by name, of every parameter that is trained at any time."""


LORA_FACTORS = ("lora_down", "lora_up")
"""Names of the LoRA parameters of an `Adapted` layer; they are the last parts of checkpoint keys."""


@runtime_checkable
class Adapted(Protocol):
    """A layer with a frozen `weight` and a trained low-rank update in the parameters `LORA_FACTORS`."""

    def merged_weight(self) -> Tensor:
        """Return the weight with the update merged."""


@runtime_checkable
class Licensed(Protocol):
    """A module that may have loaded published weights."""

    licence_note: str | None
    """Owner and licence of the published weights; None if none are loaded."""


@runtime_checkable
class Compilable(Protocol):
    """A backbone with a part that `torch.compile` can compile."""

    def compile_for_training(self) -> None:
        """Compile this part at its first use; copies of the model, such as the EMA, are not compiled."""


@runtime_checkable
class AttendsCoarsestMap(Protocol):
    """An encoder that can apply self-attention to its coarsest map."""

    hidden_dim: int
    """Channels of this map, D."""

    def coarsest_attention(self) -> tuple[nn.Module, nn.Module] | None:
        """Return the attention layers, and the layer whose input is their result `[B, D, h, w]`.

        None if the coarsest level has no attention.
        """


@runtime_checkable
class Distills(Protocol):
    """An additional loss with a teacher, and with trainable parameters that are not the detector's."""

    weight: float
    """Factor on the loss in the epoch in progress."""

    def __call__(self, images: Tensor) -> Tensor | None:
        """Return the weighted loss of the last forward pass of `images`, `[B, 3, H, W]` in 0..1."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters."""

    def average_gradients(self) -> None:
        """Average the gradients of these parameters over ranks. All ranks must call this together."""

    def observe(self, parameters: Sequence[Tensor]) -> None:
        """Read the gradients of a step, given all parameters that have one."""

    def begin_epoch(self, *, final_stage: bool, progress: float = 0.0) -> None:
        """Set the weight of an epoch; it can begin again after a resume.

        `progress` is the fraction of the epochs before the final stage that are over, 0..1.
        """

    def end_epoch(self) -> dict[str, float]:
        """Set the weight of the next epoch, and return entries for the record of this one."""

    def forget_epoch(self) -> None:
        """Discard what was observed in the epoch in progress."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to resume."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict`."""


class TaughtDetections(NamedTuple):
    """Confident detections of a teacher in one batch, as soft targets; K rows for each image, best first."""

    scores: Tensor
    """Largest class probability of each row, `[B, K]`; 0 for rows that are not used."""
    counts: Tensor
    """Number of rows that are used, the first ones, `[B]` int64."""
    probabilities: Tensor
    """Class probabilities, `[B, K, C]`, of the student's classes."""
    boxes: Tensor
    """Boxes, `[B, K, 4]`, cxcywh in 0..1."""
    known: Tensor | None
    """1 for classes that the teacher has, 0 for others, `[C]`; None if it has all."""
    normalizer: Tensor | float
    """Sum of the scores in the accumulation window, as a mean over ranks and at least 1."""


class Lesson(NamedTuple):
    """Results of a teacher for one batch."""

    map: Tensor | None
    """Coarsest map of its encoder, `[B, D, h, w]`, or None if it is not needed."""
    detections: TaughtDetections | None
    """Its confident detections, or None if they are not needed."""


@runtime_checkable
class Teaches(Protocol):
    """A `Distills` whose teacher is a detector, which sees all batches of a step before the model does."""

    decoder_weight: float
    """Factor on the losses of detections in the epoch in progress."""
    needs_criterion: bool
    """Whether the criterion computes a part of the losses (`LearnsDetections`)."""

    def match_classes(
        self, class_names: Sequence[str] | None, num_classes: int
    ) -> None:
        """Match the classes of the data, in the order of their labels, with those of the teacher."""

    def consult(self, batches: Iterable[Tensor]) -> list[Lesson]:
        """Run the teacher for the images of all batches of a step. All ranks must call this together."""

    def teach(
        self,
        lesson: Lesson,
        outputs: dict[str, Any],
        criterion: Any,
        fraction: float,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of the last forward pass, for the lesson of its batch.

        `fraction` is the fraction of the step's images in this batch.
        """


@runtime_checkable
class LearnsDetections(Protocol):
    """A criterion that can compare the model's predictions with a teacher's detections."""

    def taught_terms(
        self, outputs: dict[str, Any], taught: TaughtDetections
    ) -> dict[str, Tensor]:
        """Return the losses by name, which do not contain the weight of the distillation."""


@runtime_checkable
class Deployable(Protocol):
    """A module with a smaller form for inference."""

    def convert_to_deploy(self) -> None:
        """Convert to that form, in place."""


class WeightAverage(Protocol):
    """An exponential moving average (EMA) of a model's weights."""

    module: nn.Module
    """The model with averaged weights, in eval mode."""

    def update(self, model: nn.Module) -> None:
        """Update the average with the weights of a model, after an optimizer step."""

    def restart(self, weights: dict[str, Tensor], decay: float | None) -> None:
        """Restart the average from weights; a decay of None keeps the current one."""

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`."""


class Evaluator(Protocol):
    """Interface between the evaluation loop and a metric."""

    def reset(self) -> None:
        """Discard all detections, before an evaluation."""

    def update(self, predictions: dict[int, Detections]) -> None:
        """Add the detections of some images, by image id."""

    def synchronize(self) -> None:
        """Gather the detections of all ranks; each image counts once."""

    def summarize(self) -> dict[str, Any]:
        """Return the metrics by name."""


@runtime_checkable
class HasHorizon(Protocol):
    """An average of weights with a known time scale."""

    horizon: float
    """Number of steps after which the influence of weights has fallen to 1 / e."""


@runtime_checkable
class HasQueries(Protocol):
    """A decoder that detects a limited number of objects."""

    num_queries: int
    """Maximum number of detections in one image."""


@runtime_checkable
class ListsMetrics(Protocol):
    """An evaluator whose metrics are known before the evaluation."""

    metric_names: Sequence[str]

    def undefined_metrics(self) -> dict[str, str]:
        """Return the metrics that are undefined for these labels, each with the reason."""


@runtime_checkable
class KeepsDetections(Protocol):
    """An evaluator that keeps the detections."""

    detections: Mapping[int, Any]
    """Detections by image id, `[R, 6]`: x, y, width, height in pixels, score, category."""


@runtime_checkable
class Diagnoses(Protocol):
    """An evaluator that can explain why no object was detected."""

    def diagnose(self) -> str:
        """Return the most likely reason in a few words."""


@runtime_checkable
class CountsObjects(Protocol):
    """A loss that can be normalized by the objects of several batches (gradient accumulation)."""

    def count(self, outputs: dict[str, Any], targets: list[Target]) -> Any:
        """Return the number of objects by which the loss of a batch is normalized."""

    def window_normalizers(
        self, counts: list[Any], images: list[int], device: torch.device
    ) -> list[Any]:
        """Return the normalizer of the loss for each batch of an accumulation window."""
