"""Count and log skipped steps; too many of them end the run.

`training_step.py` decides which steps are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.contracts import Batch
from ..core.errors import NumericsError, ResourceError
from ..runtime.distributed import barrier, gather_objects, rank
from ..runtime.finite import tensors_in
from ..runtime.log import logger
from ..runtime.tensors import Copies, group_by_dtype
from ..runtime.weight_files import write_tensor_file

IN_A_ROW = 10
SHARE_OF_EPOCH = 0.01
IMAGES_NAMED = 8

BAD_BATCH = "bad_batch.pth"
"""File in the output folder with the batch at which a run diverged; torch.load reads it."""

ADVICE_FOR_A_RUN = (
    "try a lower learning rate, bf16 or float32 instead of fp16, clip_max_norm 0.1, and check the images "
    "listed above; last.pth holds the latest state with finite values"
)

ADVICE_FOR_WEIGHTS = (
    "try float32 instead of fp16, or the weights of an earlier epoch"
)
"""Advice for weights that give NaN in an evaluation without training."""


@dataclass
class NumericsGuard:
    """Count skipped steps and end a run that has diverged."""

    steps_per_epoch: int
    in_a_row: int = 0
    in_epoch: int = 0
    folder: Path | None = None
    """Folder for `BAD_BATCH`; None writes no file."""

    def start_epoch(self) -> None:
        """Reset the count of the epoch."""
        self.in_epoch = 0

    def passed(self) -> None:
        """Record a step with finite values."""
        self.in_a_row = 0

    def dropped(
        self,
        step: int,
        reason: str | None,
        batches: Sequence[Batch],
        losses: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        """Report a skipped step. All ranks must call this together.

        Args:
            step: number of the step.
            reason: first tensor of this rank that is not finite, or None if all are finite on this rank.
            batches: batches of this rank that may have caused it.
            losses: loss terms of each of these batches.

        Raises:
            NumericsError: after ten skipped steps in a row, or more than 1 % of the steps of an epoch.
        """
        self.in_a_row += 1
        self.in_epoch += 1
        reports = gather_objects((reason, _image_paths(batches)))
        failed_ranks: list[int] = []
        for number, (why, paths) in enumerate(reports):
            if not why:
                continue
            failed_ranks.append(number)
            shown = ", ".join(paths[:IMAGES_NAMED])
            if len(paths) > IMAGES_NAMED:
                shown += " ..."
            logger.warning(
                "step %d skipped: %s on rank %d; images: %s",
                step,
                why,
                number,
                shown,
            )
        tolerated = max(IN_A_ROW, SHARE_OF_EPOCH * self.steps_per_epoch)
        if self.in_a_row < IN_A_ROW and self.in_epoch <= tolerated:
            return
        writer = failed_ranks[0] if failed_ranks else 0
        path = (self.folder or Path()) / BAD_BATCH
        saved = f"the batch of rank {writer} is in {path}"
        if rank() == writer:
            saved = keep_batch(self.folder, step, reason, batches, losses)
        barrier()  # the first rank to exit ends the others: let the file be written before
        raise NumericsError(
            f"diverged at step {step}: {self.in_a_row} steps in a row and {self.in_epoch} of "
            f"{self.steps_per_epoch} in this epoch were skipped because values were not finite "
            f"({reason or 'on another rank'}); {saved}; {ADVICE_FOR_A_RUN}"
        )


def _image_paths(batches: Sequence[Batch]) -> list[str]:
    paths: list[str] = []
    for _, targets in batches:
        for target in targets:
            paths.append(str(target.get("image_path", "?")))
    return paths


def keep_batch(
    folder: Path | None,
    step: int | None,
    reason: str | None,
    batches: Sequence[Batch],
    losses: Sequence[Mapping[str, Tensor]] = (),
) -> str:
    """Write batches with their targets and losses to `BAD_BATCH`.

    The file holds `step`, `reason`, `rank`, `batches` (each with `images` `[B, 3, H, W]` in 0..1 and
    `targets`) and `losses`.

    Returns:
        Part of a message that says where the batches are saved.
    """
    if folder is None:
        return "the batch was not saved"
    path = folder / BAD_BATCH
    content: dict[str, Any] = {"step": step, "reason": reason, "rank": rank()}
    content["batches"] = []
    for images, targets in batches:
        plain_targets = [_plain(target) for target in targets]
        batch = {"images": images.detach().cpu(), "targets": plain_targets}
        content["batches"].append(batch)
    content["losses"] = list(map(_plain, losses))
    try:
        write_tensor_file(path, content)
    except ResourceError as error:
        return f"the batch could not be saved ({error})"
    return f"its batch is saved in {path}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors, strings and numbers, which a tensor file may contain."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            kept[key] = value.detach().cpu()
        elif isinstance(value, str | int | float):
            kept[key] = value
    return kept


@dataclass
class BatchStatistics:
    """Back up the batch norm statistics before a step, because a bad forward pass corrupts them."""

    model: nn.Module
    _groups: list[Copies] = field(init=False)
    """Statistics as targets, their copies as sources."""

    def __post_init__(self) -> None:
        buffers: list[Tensor] = []
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                buffers += module.buffers(recurse=False)
        pairs = [(buffer, buffer.clone()) for buffer in buffers]
        self._groups = group_by_dtype(pairs)

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the statistics."""
        for statistics, copies in self._groups:
            torch._foreach_copy_(copies, statistics)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the copied statistics."""
        for statistics, copies in self._groups:
            torch._foreach_copy_(statistics, copies)


def first_bad_tensor(
    images: Tensor,
    outputs: Mapping[str, Any],
    losses: Mapping[str, Tensor],
    model: nn.Module,
) -> str | None:
    """Name the first tensor that is not finite in the order of computation; None if all are finite."""
    gradients: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[f"the gradient of {name}"] = parameter.grad
    computed = (
        ("the input image", images),
        *tensors_in(outputs, "output"),
        *losses.items(),
        *gradients.items(),
    )
    for name, tensor in computed:
        if tensor.is_floating_point() and not bool(
            torch.isfinite(tensor).all()
        ):
            return f"{name} is not finite"
    return None


def poisoned_total(outputs: Mapping[str, Any]) -> Tensor:
    """Return a NaN loss that depends on every output, so that this rank still averages gradients."""
    sums: list[Tensor] = []
    for _, tensor in tensors_in(outputs):
        if tensor.requires_grad:
            sums.append(tensor.sum())
    return reduce(torch.add, sums) * float("nan")
