"""Gram anchoring (DINOv3, Siméoni et al., 2025): preserve patch similarities while a ViT is fine-tuned.

The teacher is a frozen copy of the published ViT. It is part of the training and not of the detector, so it
is not in the model's parameters, checkpoints or EMA weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.durations import EpochLength
from ..core.errors import ConfigError
from ..core.registry import register
from .backbone.dinov3_backbone import DINOv3Backbone
from .backbone.dinov3_weights import load_published_weights
from .lora import LoRALinear

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import Eva


@register()
class GramAnchoring:
    """A loss for the DINOv3 backbone of a detector, computed from the model's last forward pass.

    `attach` once, then call after each forward pass; `set_epoch` moves the weight along its schedule.
    """

    __role__ = "gram_anchoring"
    __load__ = "load_teacher"

    def __init__(
        self,
        model: nn.Module,
        weight: float | Sequence[tuple[EpochLength, float]] = 100.0,
        num_tokens: int | None = 512,
        all_taps: bool = False,
        checkpoint_path: str | None = None,
    ) -> None:
        """Store the settings; `load_teacher` reads the weights.

        Args:
            model: the unwrapped detector.
            weight: weight of the loss; or pairs of an epoch and its weight, such as [[0, 100], ["50 %", 0]],
                with linear interpolation between them.
            num_tokens: number of random patches per step, the same in all images; None uses all patches.
            all_taps: compare all blocks that the adapter reads instead of only the last one.
            checkpoint_path: DINOv3 weights for the teacher; None uses the initial weights of the backbone.

        Raises:
            ConfigError: if the model has no DINOv3 backbone or one that is never trained, or a value is out
                of range.
        """
        if num_tokens is not None and num_tokens < 1:
            raise ConfigError(
                f"GramAnchoring.num_tokens is {num_tokens}, expected at least 1"
            )
        self._backbone = _backbone_of(model)
        if not self._backbone.ever_learns:
            raise ConfigError(
                "gram_anchoring keeps a trained ViT close to its teacher, but no block of this ViT is ever "
                "trained (DINOv3Backbone.freeze_backbone, unfreeze_blocks, unfreeze_plan); train some "
                "blocks, or train without Gram anchoring: -u gram_anchoring=~"
            )
        self.num_tokens = num_tokens
        self.all_taps = all_taps
        self.checkpoint_path = checkpoint_path
        self.teacher: Eva | None = None
        self._epochs, self._weights = _read_schedule(weight)
        self.set_epoch(0)
        self._recorder = _Recorder()
        self._hook: RemovableHandle | None = None

    def load_teacher(self) -> None:
        """Create the teacher: the backbone's ViT with published weights, independent of the model's weights.

        Raises:
            CheckpointError: if neither a file nor a network is available, or the weights do not fit.
        """
        vit = copy.deepcopy(self._backbone.vit)
        for layer in list(vit.modules()):
            if isinstance(layer, LoRALinear):
                layer.convert_to_deploy()
        vit.set_grad_checkpointing(False)
        load_published_weights(
            vit,
            self._backbone.model_name,
            self.checkpoint_path or self._backbone.checkpoint_path,
            None if self.checkpoint_path else self._backbone.checkpoint_sha256,
            setting="gram_anchoring.checkpoint_path",
            without="train without Gram anchoring: -u gram_anchoring=~",
        )
        self.teacher = vit.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> GramAnchoring:
        """Move the teacher to a device."""
        self._loaded_teacher().to(device)
        return self

    def _loaded_teacher(self) -> Eva:
        """Return the teacher, which must have been loaded."""
        assert self.teacher is not None, "load_teacher comes first"
        return self.teacher

    def attach(self) -> None:
        """Start recording forward passes of the model, but not of later copies of it."""
        self.detach()
        self._hook = self._backbone.adapter.register_forward_pre_hook(
            self._recorder
        )

    def detach(self) -> None:
        """Stop recording and discard the last forward pass."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._recorder.seen = None

    def set_epoch(self, epoch: int) -> None:
        """Set the weight of an epoch, 0-based."""
        self.weight = float(np.interp(epoch, self._epochs, self._weights))

    def __call__(self) -> Tensor | None:
        """Return the weighted loss of the last forward pass, and discard that pass.

        Returns:
            A float32 scalar. None if no gradient reaches the ViT (because it is frozen or in eval mode), if
            the weight is zero, or if there was no forward pass.
        """
        seen = self._recorder.seen
        self._recorder.seen = None
        if seen is None or not self.weight:
            return None
        device = seen.images.device
        with (
            torch.no_grad(),
            torch.autocast(device.type, seen.autocast_dtype, seen.autocast),
        ):
            references = self._backbone.taps_of(
                self._loaded_teacher(), seen.images
            )
        first = 0 if self.all_taps else -1
        num_patches = references[-1].shape[-2:].numel()
        drawn = None
        if self.num_tokens is not None and self.num_tokens < num_patches:
            drawn = torch.randperm(num_patches, device=device)[
                : self.num_tokens
            ]
        losses = []
        for student, teacher in zip(seen.taps[first:], references[first:]):
            losses.append(gram_distance(student, teacher, drawn))
        return self.weight * torch.stack(losses).mean()


def gram_distance(
    student: Tensor, teacher: Tensor, drawn: Tensor | None = None
) -> Tensor:
    """Return the mean of (X_S X_S^T - X_G X_G^T)^2 over images and pairs of patches, in float32.

    This is L_Gram (equation 2) with the mean instead of the sum, as in the authors' code. The products are
    cosine similarities between patches.

    Args:
        student: features `[B, D, h, w]`.
        teacher: features `[B, D', h, w]`.
        drawn: indices `[P]` of the patches to compare, 0..h*w-1 in row-major order; None compares all.

    Example:
        >>> different = torch.eye(2).view(1, 2, 1, 2)  # two patches with orthogonal features
        >>> equal = torch.ones(1, 2, 1, 2)
        >>> gram_distance(different, equal)
        tensor(0.5000)
    """
    with torch.autocast(student.device.type, enabled=False):
        return F.mse_loss(
            _gram_matrix(student, drawn), _gram_matrix(teacher, drawn)
        )


def _gram_matrix(maps: Tensor, drawn: Tensor | None) -> Tensor:
    """Return the cosine similarities between the patches of maps `[B, D, h, w]`, `[B, P, P]`."""
    tokens = F.normalize(maps.flatten(2).float(), dim=1)  # [B, D, h*w]
    tokens = tokens if drawn is None else tokens[..., drawn]
    return tokens.transpose(1, 2) @ tokens


@dataclass(frozen=True)
class _Seen:
    """Inputs of the adapter, and the precision in which they were computed."""

    taps: list[Tensor]
    """Features of the tapped blocks, `[B, D, H/16, W/16]` each."""
    images: Tensor
    """Normalized images, `[B, 3, H, W]`."""
    autocast: bool
    """True if autocast was enabled."""
    autocast_dtype: torch.dtype
    """Type that autocast used."""


class _Recorder:
    """A hook before the adapter that keeps its last inputs if the last tap requires a gradient."""

    def __init__(self) -> None:
        self.seen: _Seen | None = None

    def __call__(
        self, adapter: nn.Module, arguments: tuple[list[Tensor], Tensor]
    ) -> None:
        taps, images = arguments
        self.seen = None
        if taps[-1].requires_grad:
            kind = images.device.type
            enabled = torch.is_autocast_enabled(kind)
            self.seen = _Seen(
                taps, images, enabled, torch.get_autocast_dtype(kind)
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _record_nothing


def _record_nothing(
    adapter: nn.Module, arguments: tuple[list[Tensor], Tensor]
) -> None:
    """Do nothing; this hook replaces the recorder in copies of a model."""


def _backbone_of(model: nn.Module) -> DINOv3Backbone:
    """Return the only DINOv3 backbone of a model; any other number of them raises ConfigError."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, DINOv3Backbone)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"GramAnchoring needs a model with one DINOv3Backbone, this {type(model).__name__} has "
            f"{len(found)}"
        )
    return found[0]


def _read_schedule(weight: Any) -> tuple[list[int], list[float]]:
    """Return epochs in ascending order and their weights."""
    is_number = isinstance(weight, (int, float))
    pairs: list[Any] = [[0, weight]] if is_number else list(weight)
    if not pairs or not all(map(_is_epoch_and_weight, pairs)):
        raise ConfigError(
            f"GramAnchoring.weight is {weight!r}, expected a number of at least 0, or pairs of a length and "
            f"such a number: [[0, 100], ['50 %', 0]]"
        )
    epochs = [epoch for epoch, _ in pairs]
    if epochs != sorted(epochs):
        raise ConfigError(
            f"GramAnchoring.weight goes through epochs {epochs}, expected them to ascend"
        )
    return epochs, [float(value) for _, value in pairs]


def _is_epoch_and_weight(pair: Any) -> bool:
    """Return whether a value is a pair whose second item is a number of at least 0."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return False
    return isinstance(pair[1], (int, float)) and pair[1] >= 0
