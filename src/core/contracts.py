"""The shapes of what packages hand to each other."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

from torch import Tensor, nn


class Target(TypedDict, total=False):
    """Labels of one image; `boxes` and `labels` are always there."""

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
    """Three verbs between the training loop and a metric."""

    def update(self, predictions: dict[int, Detections]) -> None:
        """Take the detections of some images, by image id."""

    def synchronize(self) -> None:
        """Bring the detections of all ranks together; each image counts once."""

    def summarize(self) -> dict[str, Any]:
        """Return the metrics by name."""
