"""A rehearsal before the first step: does the largest batch that the run can meet fit into memory?"""

from __future__ import annotations

import resource

import torch

from ..core.contracts import Target
from ..core.errors import ResourceError, first_line
from ..runtime.log import logger
from .phases import Phases
from .training_step import TrainStep

ADVICE = (
    "things that help, the strongest first: train_dataloader.total_batch_size (with grad_accum_steps to keep the step's batch), "
    "DINOv3Backbone.gradient_checkpointing=True, freezing the ViT or most of its blocks, train_dataloader.collate_fn.base_size_repeat=~ "
    "(no larger sizes), DFINETransformer.num_queries and num_denoising, --use-amp"
)


def try_memory(
    step: TrainStep,
    phases: Phases,
    *,
    images: int,
    size_hw: tuple[int, int],
    objects: int,
    num_classes: int,
    epoch: int,
    last_epoch: int,
) -> float:
    """Rehearse the largest step of a run: at its largest size, with its most crowded image, in its last phase.

    Args:
        step: not wrapped for several ranks yet.
        phases: of the run.
        images: of a batch of this rank.
        size_hw: largest (height, width).
        objects: the most in an image.
        num_classes: C.
        epoch: the one that the run is in, whose phase is restored.
        last_epoch: of the run.

    Returns:
        Peak memory in GB.

    Raises:
        ResourceError: if it does not fit, with what helps.
    """
    phases.apply(last_epoch)
    try:
        return rehearse_largest_step(step, images, size_hw, objects, num_classes)
    finally:
        phases.apply(epoch)


def rehearse_largest_step(
    step: TrainStep, images: int, size_hw: tuple[int, int], objects: int, num_classes: int
) -> float:
    """Go forth and back with a batch of noise at the largest size, with the most objects, and report the peak.

    Args:
        step: not wrapped for several ranks yet; weights, statistics, gradients and chance stay as they were.
        images: of a batch of this rank.
        size_hw: largest (height, width).
        objects: the most in an image.
        num_classes: C.

    Returns:
        Peak memory in GB: of the device, or of this process.

    Raises:
        ResourceError: if it does not fit, with what helps.
    """
    device = step.device
    shown = f"{images} image(s) of {size_hw[0]} x {size_hw[1]} pixels with {objects} objects each"
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            batch = (
                torch.rand(images, 3, *size_hw),
                [_noise_target(objects, num_classes) for _ in range(images)],
            )
            step.rehearse(batch)
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = first_line(error, without_text="out of memory")
        raise ResourceError(
            f"the largest batch of this run does not fit: {shown}: {reason}; {ADVICE}"
        ) from None
    states = _missing_optimizer_state(step.optimizer)
    if device.type == "cuda":
        peak, total = (
            torch.cuda.max_memory_allocated(device) + states,
            torch.cuda.get_device_properties(device).total_memory,
        )
        torch.cuda.empty_cache()
    else:
        peak, total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + states, None
    of_all = f" of {total / 1e9:.1f}" if total else ""
    logger.info("the largest batch, %s, takes %.1f%s GB at its peak", shown, peak / 1e9, of_all)
    if total and peak > total:
        raise ResourceError(
            f"the largest batch of this run does not fit: {shown} takes {peak / 1e9:.1f} GB with the optimizer's state, the device has "
            f"{total / 1e9:.1f}; {ADVICE}"
        )
    return peak / 1e9


def _missing_optimizer_state(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of AdamW's two moments that come with the first step; a resumed run has them already."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return 2 * sum(p.numel() * p.element_size() for p in parameters if p not in optimizer.state)


def _noise_target(objects: int, num_classes: int) -> Target:
    return {
        "labels": torch.randint(num_classes, (objects,)),
        "boxes": torch.cat([torch.rand(objects, 2) * 0.5 + 0.25, torch.rand(objects, 2) * 0.2 + 0.02], 1),
    }
