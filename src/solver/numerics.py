"""What happens when a number is not finite: the step is dropped and told of, and too many of them end the run."""

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
from ..runtime.weight_files import write_tensor_file

IN_A_ROW = 10
SHARE_OF_EPOCH = 0.01
IMAGES_NAMED = 8

BAD_BATCH = "bad_batch.pth"
"""What a run that ends for its numbers could not digest, in the output folder; torch.load reads it."""

ADVICE_FOR_A_RUN = (
    "things that help: a lower learning rate, bf16 or float32 in place of fp16, clip_max_norm 0.1, a look at the images named above; "
    "last.pth holds the last good state"
)

ADVICE_FOR_WEIGHTS = "try float32 in place of fp16, or weights of an earlier epoch"
"""What helps if weights that are only evaluated give NaN."""


@dataclass
class NumericsGuard:
    """Counts dropped steps and decides when a run is lost."""

    steps_per_epoch: int
    in_a_row: int = 0
    in_epoch: int = 0
    folder: Path | None = None
    """Where `BAD_BATCH` goes; None for nowhere."""

    def start_epoch(self) -> None:
        """Begin a new count for an epoch."""
        self.in_epoch = 0

    def passed(self) -> None:
        """Take note of a good step."""
        self.in_a_row = 0

    def dropped(
        self,
        step: int,
        reason: str | None,
        batches: Sequence[Batch],
        losses: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        """Report a dropped step. All ranks must call this together.

        Args:
            step: number of the step.
            reason: the first bad tensor of this rank, or None if all is well here.
            batches: of this rank, that are to blame.
            losses: of each of these batches.

        Raises:
            NumericsError: after ten dropped steps in a row or more than one in a hundred of an epoch.
        """
        self.in_a_row += 1
        self.in_epoch += 1
        everyone = gather_objects(
            (reason, [str(target.get("image_path", "?")) for _, targets in batches for target in targets])
        )
        for number, (why, paths) in enumerate(everyone):
            if why:
                shown = ", ".join(paths[:IMAGES_NAMED]) + (" ..." if len(paths) > IMAGES_NAMED else "")
                logger.warning("step %d dropped: %s on rank %d; images: %s", step, why, number, shown)
        if self.in_a_row >= IN_A_ROW or self.in_epoch > max(IN_A_ROW, SHARE_OF_EPOCH * self.steps_per_epoch):
            blamed = next((number for number, (why, _) in enumerate(everyone) if why), 0)
            kept = f"the batch of rank {blamed} is in {(self.folder or Path()) / BAD_BATCH}"
            if rank() == blamed:
                kept = keep_batch(self.folder, step, reason, batches, losses)
            barrier()  # a rank that ends takes the others with it
            raise NumericsError(
                f"diverged at step {step}: {self.in_a_row} steps in a row and {self.in_epoch} of {self.steps_per_epoch} in this epoch were "
                f"dropped, because numbers were not finite ({reason or 'on another rank'}); {kept}; {ADVICE_FOR_A_RUN}"
            )


def keep_batch(
    folder: Path | None,
    step: int | None,
    reason: str | None,
    batches: Sequence[Batch],
    losses: Sequence[Mapping[str, Tensor]] = (),
) -> str:
    """Write batches with their targets and losses to `BAD_BATCH`, and tell where they are.

    The file holds `step`, `reason`, `rank`, `batches` (each with `images` `[B, 3, H, W]` in 0..1 and `targets`) and `losses`.
    """
    if folder is None:
        return "the batch was not kept"
    path = folder / BAD_BATCH
    plain = [
        {"images": images.detach().cpu(), "targets": [_plain(target) for target in targets]}
        for images, targets in batches
    ]
    try:
        write_tensor_file(
            path,
            {
                "step": step,
                "reason": reason,
                "rank": rank(),
                "batches": plain,
                "losses": [_plain(terms) for terms in losses],
            },
        )
    except ResourceError as error:
        return f"the batch could not be kept ({error})"
    return f"its batch is in {path}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what a file of plain tensors may hold."""
    return {
        key: value.detach().cpu() if isinstance(value, Tensor) else value
        for key, value in values.items()
        if isinstance(value, Tensor | str | int | float)
    }


@dataclass
class BatchStatistics:
    """Keeps the batch norms' statistics of before a step: a bad forward pass has spoilt them by the time it is noticed."""

    model: nn.Module
    _pairs: tuple[list[Tensor], list[Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        buffers = [
            b
            for m in self.model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
            for b in m.buffers(recurse=False)
        ]
        self._pairs = (buffers, [b.clone() for b in buffers])

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the statistics."""
        if self._pairs[0]:
            torch._foreach_copy_(self._pairs[1], self._pairs[0])

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        if self._pairs[0]:
            torch._foreach_copy_(self._pairs[0], self._pairs[1])


def first_bad_tensor(
    images: Tensor, outputs: Mapping[str, Any], losses: Mapping[str, Tensor], model: nn.Module
) -> str | None:
    """Name the first tensor that is not finite, in the order in which they came to be, or None."""
    gradients = (
        (f"the gradient of {name}", p.grad) for name, p in model.named_parameters() if p.grad is not None
    )
    for name, tensor in (
        ("the input image", images),
        *tensors_in(outputs, "output"),
        *losses.items(),
        *gradients,
    ):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name} is not finite"
    return None


def poisoned_total(outputs: Mapping[str, Any]) -> Tensor:
    """Return a NaN that depends on every output: a rank whose loss failed still takes part in averaging gradients."""
    sums = [tensor.sum() for _, tensor in tensors_in(outputs) if tensor.requires_grad]
    return reduce(torch.add, sums) * float("nan")
