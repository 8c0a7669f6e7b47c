"""Types and protocols of the objects that packages pass to each other: targets, models and results.

The contracts of data sets and loaders are in `detection_data.py` and `loader_contracts.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor, nn


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


@runtime_checkable
class ChecksEpochs(Protocol):
    """A module that cannot be trained in a run of any length."""

    def check_epochs(self, epochs: int) -> None:
        """Raise `ConfigError` if a run of this many epochs cannot train the module."""


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
