"""The training plan of a ViT: the blocks that are trained in each epoch, and factors on the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...core.contracts import Learning
from ...core.errors import ConfigError
from ...detection.lora_weights import is_lora_factor
from ...runtime.log import logger


class ThawPhase(NamedTuple):
    """A part of a run in which the same blocks are trained."""

    start: int
    """First epoch, from 0."""
    blocks: int
    """Number of blocks that are trained, counted from the last."""


@dataclass(frozen=True)
class ThawPlan:
    """The phases of a run and their learning rates, independent of a model.

    Example:
        >>> plan = ThawPlan(depth=12, phases=(ThawPhase(0, 0), ThawPhase(10, 4)))
        >>> plan.blocks_in(9), plan.blocks_in(10)
        (0, 4)
        >>> plan.trains("blocks.8.norm1.weight", blocks=4)
        True
    """

    depth: int
    """Number of blocks of the ViT."""
    phases: tuple[ThawPhase, ...]
    """Phases in order; the first starts in epoch 0."""
    lr_factor: float = 1.0
    """Factor on the learning rate of parameters that are unfrozen during the run."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block to the block before."""
    uses_final_norm: bool = True
    """True if the final norm of the ViT is applied; otherwise it is never trained."""
    lora_only: bool = False
    """True if only the LoRA factors of trainable blocks are trained."""

    def __post_init__(self) -> None:
        """Check the plan.

        Raises:
            ConfigError: if phases or numbers of blocks are not in order, or a factor is out of range.
        """
        if self.lr_factor <= 0 or not 0 < self.layer_decay <= 1:
            raise ConfigError(
                f"DINOv3Backbone: unfreeze_lr_factor is {self.lr_factor}, expected above 0; layer_decay is "
                f"{self.layer_decay}, expected above 0, at most 1"
            )
        starts = [phase.start for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ConfigError(
                f"DINOv3Backbone: phases begin in epochs {starts} (from 0), expected each after the "
                f"one before"
            )
        counts = [phase.blocks for phase in self.phases]
        if (
            counts != sorted(counts)
            or not 0 <= counts[0] <= counts[-1] <= self.depth
        ):
            raise ConfigError(
                f"DINOv3Backbone: {counts} trainable blocks in turn, expected numbers from 0 to {self.depth} "
                f"that do not fall"
            )

    @property
    def ever_learns(self) -> bool:
        """True if some block is trained in some phase."""
        return any(phase.blocks for phase in self.phases)

    def blocks_in(self, epoch: int) -> int:
        """Return how many of the last blocks are trained in an epoch, from 0."""
        started = [phase for phase in self.phases if phase.start <= epoch]
        return started[-1].blocks

    def trains(self, name: str, blocks: int) -> bool:
        """Return whether a parameter is trained together with the last `blocks` blocks.

        The final norm is trained with any block, patch embedding and tokens only with all of them.

        Args:
            name: name of the parameter in the ViT, such as "blocks.3.norm1.weight".
            blocks: number of trainable blocks.
        """
        if self.lora_only and not is_lora_factor(name):
            return False
        block = _block_of(name)
        if block is not None:
            return block >= self.depth - blocks
        if _is_final_norm(name):
            return self.uses_final_norm and blocks > 0
        return blocks == self.depth

    def learning(self, name: str) -> Learning | None:
        """Return first epoch and rate factor of a parameter of the ViT, or None if it is never trained."""
        for phase in self.phases:
            if self.trains(name, phase.blocks):
                factor = self.lr_factor if phase.start else 1.0
                return Learning(phase.start, factor * self.depth_factor(name))
        return None

    def depth_factor(self, name: str) -> float:
        """Return the factor of layer-wise learning-rate decay for a parameter (BEiT, Bao et al., 2022).

        Block i of n has layer_decay ** (n - i), embedding and tokens layer_decay ** (n + 1), the
        norm 1.
        """
        block = _block_of(name)
        if block is not None:
            return self.layer_decay ** (self.depth - block)
        if _is_final_norm(name):
            return 1.0
        return self.layer_decay ** (self.depth + 1)


def read_phases(
    depth: int,
    *,
    frozen: bool,
    frozen_epochs: int,
    blocks: int | None,
    plan: Sequence[Sequence[int]] | None,
) -> tuple[ThawPhase, ...]:
    """Return the phases that the settings of `DINOv3Backbone` describe; the first starts in epoch 0.

    Args:
        depth: number of blocks of the ViT.
        frozen: `freeze_backbone`: no block is ever trained.
        frozen_epochs: `freeze_backbone_epochs`: number of epochs before the ViT is trained.
        blocks: `unfreeze_blocks`: number of the last blocks that are trained after that; None means all.
        plan: `unfreeze_plan`: pairs of (epoch, number of the last blocks that are trained from this epoch
            on), instead of the other settings.

    Raises:
        ConfigError: if settings contradict each other or the plan is not a list of pairs.
    """
    if sum((frozen, frozen_epochs != 0, plan is not None)) > 1:
        raise ConfigError(
            "DINOv3Backbone: freeze_backbone, freeze_backbone_epochs and unfreeze_plan each say when the ViT "
            "trains; give one of them"
        )
    if plan is not None:
        if blocks is not None:
            raise ConfigError(
                "DINOv3Backbone: unfreeze_plan says how many blocks train, so unfreeze_blocks has no "
                "meaning; leave it out"
            )
        return _read_plan(plan)
    if blocks is not None and not frozen_epochs:
        _report_unused(blocks, depth, frozen=frozen)
    if frozen_epochs:
        thawed = depth if blocks is None else blocks
        return ThawPhase(0, 0), ThawPhase(frozen_epochs, thawed)
    return (ThawPhase(0, 0 if frozen else depth),)


def _report_unused(blocks: int, depth: int, *, frozen: bool) -> None:
    """Log that `unfreeze_blocks` has no effect, unless the result is the same."""
    if frozen:
        logger.warning(
            "DINOv3Backbone.unfreeze_blocks is %d, but freeze_backbone is set, so no block of the ViT is "
            "ever trained; to train the last %d, set freeze_backbone to False and unfreeze_plan to [[0, %d]]",
            blocks,
            blocks,
            blocks,
        )
    elif blocks < depth:
        logger.warning(
            "DINOv3Backbone.unfreeze_blocks is %d, but freeze_backbone_epochs is 0, so all %d blocks of the "
            "ViT are trained from the start; to train only the last %d, remove unfreeze_blocks and set "
            "unfreeze_plan to [[0, %d]]",
            blocks,
            depth,
            blocks,
            blocks,
        )


def _read_plan(plan: Sequence[Sequence[int]]) -> tuple[ThawPhase, ...]:
    """Return the phases of `unfreeze_plan`; until its first epoch, the ViT is frozen."""
    is_valid = bool(plan)
    for phase in plan:
        if len(phase) != 2 or not isinstance(phase[1], int):
            is_valid = False
    if not is_valid:
        raise ConfigError(
            f"DINOv3Backbone.unfreeze_plan is {list(plan)}, expected pairs of when and how many of the last "
            f"blocks, such as [[10, 4], [20, 12]]"
        )
    phases = tuple(ThawPhase(*phase) for phase in plan)
    return phases if phases[0].start == 0 else (ThawPhase(0, 0), *phases)


def _block_of(name: str) -> int | None:
    """Return the number of the block that a parameter of the ViT belongs to, or None."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


def _is_final_norm(name: str) -> bool:
    return name.startswith("norm.")
