"""Distillation of DINOv3 features into the encoder of a detector (RT-DETRv4, 2025).

The teacher and the projector are parts of the training and not of the detector: they are not in the model's
parameters, its EMA or `best.pth`. The projector is trained, so it is in the training state (`last.pth`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.contracts import AttendsCoarsestMap
from ..core.errors import CheckpointError, ConfigError
from ..core.registry import Argument, arguments_of, register
from ..runtime.distributed import mean_over_ranks, world_size
from ..runtime.log import logger
from .backbone.dinov3_backbone import DINOv3Backbone
from .backbone.dinov3_weights import load_published_weights
from .gradient_share import GradientShareWeight


def _vit_arguments() -> dict[str, Argument]:
    """Return the arguments of timm's ViT that a configuration may set for the teacher."""
    extra = DINOv3Backbone.__extra_arguments__()
    known = arguments_of(FeatureDistillation)
    return {name: extra[name] for name in extra if name not in known}


class EncoderDistillation:
    """A loss that pulls the encoder's coarsest map towards the maps of a frozen teacher.

    `attach` once; `take_seen` then returns the map of each forward pass, and `distance` compares it.
    """

    def __init__(self, model: nn.Module, control: GradientShareWeight) -> None:
        """Find the attention layers of the student; `project_to` builds the projector.

        Args:
            model: the unwrapped detector.
            control: weight of the loss.

        Raises:
            ConfigError: if the model has no attention on its coarsest level.
        """
        attention, self._reader, self._width = student_of(model)
        self._watched = {id(parameter) for parameter in attention.parameters()}
        self.control = control
        self.projector: nn.Module = nn.Identity()
        self._recorder = Recorder()
        self._hook: RemovableHandle | None = None

    def project_to(self, width: int) -> None:
        """Build the projector from the width of the student to that of the teacher."""
        self.projector = nn.Linear(self._width, width)

    @property
    def weight(self) -> float:
        """Factor on the loss in the epoch in progress."""
        return self.control.weight

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the projector."""
        return list(self.projector.parameters())

    def attach(self) -> None:
        """Start recording forward passes of the model, but not of later copies of it."""
        self.detach()
        self._hook = self._reader.register_forward_pre_hook(self._recorder)

    def detach(self) -> None:
        """Stop recording and discard the last forward pass."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._recorder.seen = None

    def take_seen(self) -> Seen | None:
        """Return the student's map of the last forward pass with gradients, once; None without one."""
        seen = self._recorder.seen
        self._recorder.seen = None
        return seen

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance between projected maps `[B, D, h, w]` and the teacher's `[B, D', h', w']`."""
        with torch.autocast(student.device.type, enabled=False):
            tokens = student.float().permute(0, 2, 3, 1)  # [B, h, w, D]
            projected = self.projector(tokens).permute(0, 3, 1, 2)
            return cosine_distance(projected, teacher)

    def average_gradients(self) -> None:
        """Average the projector's gradients over ranks. All ranks must call this together.

        The wrapper of the model does not know the projector. A missing gradient counts as zero, since a rank
        whose loss could not be computed must still take part.
        """
        if world_size() == 1:
            return
        parameters = self.parameters()
        parts = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parts.append(parameter.grad.flatten())
        mean = mean_over_ranks(torch.cat(parts))
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, mean.split(sizes)):
            parameter.grad = part.view_as(parameter).clone()

    def observe(self, parameters: Sequence[Tensor]) -> None:
        """Read the gradients of a step, given all parameters that have one."""
        self.control.observe(parameters, self._watched)

    def begin_epoch(self, *, final_stage: bool, progress: float = 0.0) -> None:
        """Set the weight of an epoch; it can begin again after a resume. `progress` has no effect."""
        self.control.begin_epoch(final_stage=final_stage)

    def end_epoch(self) -> dict[str, float]:
        """Set the weight of the next epoch, and return weight and share of this one for its record."""
        before = self.weight
        share = self.control.end_epoch()
        record = {"distillation_weight": before}
        if share is not None:
            record["distillation_share"] = share
            logger.info(
                "distillation: the encoder's attention got %.2f %% of the gradient (target %g +- %g); weight "
                "%.4g -> %.4g",
                share,
                self.control.share,
                self.control.tolerance,
                before,
                self.weight,
            )
        return record

    def forget_epoch(self) -> None:
        """Discard what was observed in the epoch in progress."""
        self.control.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the projector, the weight, and what was observed in the epoch in progress."""
        return {
            "projector": self.projector.state_dict(),
            **self.control.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict`.

        Raises:
            CheckpointError: if the projector has another shape.
        """
        own = self.projector.state_dict()
        saved = state["projector"]
        shapes = {name: list(value.shape) for name, value in saved.items()}
        expected = {name: list(value.shape) for name, value in own.items()}
        if shapes != expected:
            raise CheckpointError(
                f"the projector of the distillation has {shapes}, expected {expected}; use the teacher that "
                "the run started with, or start a new run from its weights with -t"
            )
        self.projector.load_state_dict(saved)
        self.control.load_state_dict(dict(state))


@register()
class FeatureDistillation(EncoderDistillation):
    """A loss that pulls the encoder's coarsest map towards the features of a frozen DINOv3 ViT.

    `attach` once, then call after each forward pass with its images.
    """

    __role__ = "distillation"
    __load__ = "load_teacher"
    __extra_arguments__ = staticmethod(_vit_arguments)

    def __init__(
        self,
        model: nn.Module,
        *,
        teacher: str = "dinov3_base",
        checkpoint_path: str | None = None,
        weight: float = 5.0,
        share: float | None = None,
        tolerance: float = 1.0,
        default_weight: float | None = None,
        **vit_arguments: Any,
    ) -> None:
        """Build the teacher and the projector; `load_teacher` reads the weights.

        Args:
            model: the unwrapped detector.
            teacher: timm's name of a DINOv3 ViT, or dinov3_small, dinov3_small_plus, dinov3_base,
                dinov3_large.
            checkpoint_path: file of the teacher's weights; None uses the official name in `weights/`.
            weight: weight of the loss in the first epoch.
            share: share of the gradient, in percent, that the attention of the coarsest level gets of that of
                all parameters. The weight follows it from epoch to epoch; None keeps the weight constant.
            tolerance: permitted distance from `share`, in percent.
            default_weight: weight in the final stage without strong augmentation; None keeps the last one.
            vit_arguments: other arguments of timm's ViT, such as embed_dim, depth and num_heads for small
                teachers.

        Raises:
            ConfigError: if the model has no attention on its coarsest level, the teacher does not exist, or
                a value is out of range.
        """
        super().__init__(
            model, GradientShareWeight(weight, share, tolerance, default_weight)
        )
        self.checkpoint_path = checkpoint_path
        self.teacher = FeatureTeacher(teacher, **vit_arguments)
        self.project_to(self.teacher.width)

    def load_teacher(self) -> None:
        """Load the published weights of the teacher.

        Raises:
            CheckpointError: if neither a file nor a network is available, or the weights do not fit.
        """
        self.teacher.load(self.checkpoint_path)

    def to(self, device: torch.device | str) -> FeatureDistillation:
        """Move teacher and projector to a device."""
        self.teacher.to(device)
        self.projector.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor | None:
        """Return the weighted loss of the last forward pass, and discard that pass.

        Args:
            images: images of that pass, `[B, 3, H, W]` in 0..1; H and W are multiples of 32.

        Returns:
            A float32 scalar. None if no pass with gradients was recorded.
        """
        seen = self.take_seen()
        if seen is None:
            return None
        kind = images.device.type
        with torch.autocast(kind, seen.autocast_dtype, seen.autocast):
            taught = self.teacher(images)
        return self.weight * self.distance(seen.map, taught)


class FeatureTeacher:
    """A frozen DINOv3 ViT, from images to one map on the grid of stride 32."""

    def __init__(self, name: str, **vit_arguments: Any) -> None:
        """Build the ViT without weights.

        Args:
            name: as `DINOv3Backbone.model_name`.
            vit_arguments: other arguments of timm's ViT.

        Raises:
            ConfigError: if timm does not know the ViT, or refuses an argument.
        """
        try:
            backbone = DINOv3Backbone(
                name,
                pretrained=False,
                freeze_backbone=True,
                detail_channels=0,
                **vit_arguments,
            )
        except ConfigError as error:
            raise ConfigError(f"distillation.teacher: {error}") from None
        self.backbone = backbone.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Channels of the map."""
        return self.backbone.vit.embed_dim

    def load(self, checkpoint_path: str | None) -> None:
        """Load published weights from a file, or else from what is in `weights/` or published by timm."""
        load_published_weights(
            self.backbone.vit,
            self.backbone.model_name,
            checkpoint_path,
            setting="distillation.checkpoint_path",
            without="train without distillation: -u distillation=~",
        )

    def to(self, device: torch.device | str) -> None:
        """Move the ViT to a device."""
        self.backbone.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the patch tokens after the final norm of images at half their size.

        Args:
            images: `[B, 3, H, W]` in 0..1, RGB; H and W are multiples of 32.

        Returns:
            A map `[B, width, H/32, W/32]`.
        """
        backbone = self.backbone
        images = (images - backbone.image_mean) / backbone.image_std
        halved = F.avg_pool2d(images, 2)
        return backbone.taps_of(backbone.vit, halved)[-1]


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over images and positions of 1 - cosine similarity, in float32.

    Args:
        student: maps `[B, C, h, w]`.
        teacher: maps `[B, C, h', w']`; another size is resized bilinearly to that of `student`.

    Example:
        >>> across = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        >>> diagonal = torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
        >>> cosine_distance(across, diagonal)
        tensor(0.2929)
    """
    student = student.float()
    teacher = teacher.float()
    size = student.shape[-2:]
    if teacher.shape[-2:] != size:
        teacher = F.interpolate(
            teacher, size, mode="bilinear", align_corners=False
        )
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


@dataclass(frozen=True)
class Seen:
    """The student's map, and the precision in which it was computed."""

    map: Tensor
    """`[B, D, h, w]`."""
    autocast: bool
    """True if autocast was enabled."""
    autocast_dtype: torch.dtype
    """Type that autocast used."""


class Recorder:
    """A hook before a layer that keeps its last input if that requires a gradient."""

    def __init__(self) -> None:
        self.seen: Seen | None = None

    def __call__(self, layer: nn.Module, arguments: tuple[Tensor]) -> None:
        """Keep the input of the layer, `[B, D, h, w]`."""
        (student,) = arguments
        self.seen = None
        if student.requires_grad:
            kind = student.device.type
            enabled = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind)
            self.seen = Seen(student, enabled, dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _record_nothing


def _record_nothing(layer: nn.Module, arguments: tuple[Tensor]) -> None:
    """Do nothing; this hook replaces the recorder in copies of a model."""


def student_of(model: nn.Module) -> tuple[nn.Module, nn.Module, int]:
    """Return the attention layers of the encoder's coarsest level, the layer behind them, and their width.

    Raises:
        ConfigError: if there is no attention on the coarsest level.
    """
    encoder = getattr(model, "encoder", None)
    found = None
    if isinstance(encoder, AttendsCoarsestMap):
        found = encoder.coarsest_attention()
        if found is not None:
            return *found, encoder.hidden_dim
    raise ConfigError(
        f"distillation needs an encoder with attention on its coarsest level, this {type(model).__name__} "
        f"has {type(encoder).__name__} without; let HybridEncoder.use_encoder_idx name the last level, or "
        "train without distillation: -u distillation=~"
    )
