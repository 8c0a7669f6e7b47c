"""Run the largest possible step before training starts, to find out whether it fits into memory."""

from __future__ import annotations

import torch

from ..core.contracts import Batch, Target
from ..core.counts import counted
from ..core.errors import ResourceError, first_line
from ..runtime.log import logger
from ..runtime.memory import peak_memory
from .phases import Phases
from .training_step import TrainStep

ADVICE = (
    "to reduce memory, most effective first: a smaller train_dataloader.total_batch_size (with "
    "grad_accum_steps to keep the effective batch size), DINOv3Backbone.gradient_checkpointing=True, "
    "freezing the ViT or most of its blocks, train_dataloader.collate_fn.base_size_repeat=~ (no larger "
    "image sizes), a smaller DFINETransformer.num_queries and num_denoising, --use-amp"
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
    """Try the largest step of a run: its largest image size, its maximum number of objects, its last phase.

    Args:
        step: training step that is not wrapped in DDP yet.
        phases: phases of the run.
        images: images of one batch on this rank.
        size_hw: largest (height, width) in pixels.
        objects: maximum number of objects in an image.
        num_classes: C.
        epoch: current epoch; the model is returned to its phase.
        last_epoch: last epoch of the run.

    Returns:
        Peak memory in GB.

    Raises:
        ResourceError: if the step does not fit into memory; the message says how to reduce it.
    """
    phases.apply(last_epoch)
    try:
        return rehearse_largest_step(
            step, images, size_hw, objects, num_classes
        )
    finally:
        phases.apply(epoch)


def rehearse_largest_step(
    step: TrainStep,
    images: int,
    size_hw: tuple[int, int],
    objects: int,
    num_classes: int,
) -> float:
    """Run one forward and backward pass with a batch of noise, and log the peak memory.

    Weights, batch statistics, gradients and random state are unchanged afterwards.

    Args:
        step: training step that is not wrapped in DDP yet.
        images: images of one batch on this rank.
        size_hw: largest (height, width) in pixels.
        objects: number of objects in each image.
        num_classes: C.

    Returns:
        Peak memory in GB, of the GPU or otherwise of this process.

    Raises:
        ResourceError: if the step does not fit into memory; the message says how to reduce it.
    """
    device = step.device
    height, width = size_hw
    shown = f"{counted(images, 'image')} of {height} x {width} pixels with {counted(objects, 'object')} each"
    try:
        peak = peak_of_step(step, images, size_hw, objects, num_classes)
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = first_line(error, without_text="out of memory")
        raise ResourceError(
            f"the largest batch of this run does not fit: {shown}: {reason}; {ADVICE}"
        ) from None
    total = None
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    of_all = f" of {total / 1e9:.1f}" if total else ""
    logger.info(
        "the largest batch, %s, takes %.1f%s GB at its peak",
        shown,
        peak / 1e9,
        of_all,
    )
    if total and peak > total:
        raise ResourceError(
            f"the largest batch of this run does not fit: {shown} takes {peak / 1e9:.1f} GB with the "
            f"optimizer's state, the device has {total / 1e9:.1f}; {ADVICE}"
        )
    return peak / 1e9


def peak_of_step(
    step: TrainStep,
    images: int,
    size_hw: tuple[int, int],
    objects: int,
    num_classes: int,
) -> int:
    """Run one forward and backward pass with a batch of noise, and return the peak memory in bytes.

    The peak includes the optimizer's state that is not allocated yet. The arguments are those of
    `rehearse_largest_step`.

    Raises:
        OutOfMemoryError, MemoryError: if the step does not fit.
    """
    device = step.device
    devices_with_rng = []
    if device.type == "cuda":
        devices_with_rng.append(device)
        torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng(devices_with_rng):
        step.rehearse(noise_batch(images, size_hw, objects, num_classes))
    states = _missing_optimizer_state(step.optimizer)
    if device.type != "cuda":
        return peak_memory() + states
    peak = torch.cuda.max_memory_allocated(device) + states
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def noise_batch(
    images: int, size_hw: tuple[int, int], objects: int, num_classes: int
) -> Batch:
    """Return random images with random labels; every image has the same number of objects."""
    pixels = torch.rand(images, 3, *size_hw)
    targets = [_noise_target(objects, num_classes) for _ in range(images)]
    return pixels, targets


def _missing_optimizer_state(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of AdamW's two moments that are not allocated yet."""
    missing = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                missing += 2 * parameter.numel() * parameter.element_size()
    return missing


def _noise_target(objects: int, num_classes: int) -> Target:
    """Return random labels, and random boxes inside the image."""
    labels = torch.randint(num_classes, (objects,))
    centres = torch.rand(objects, 2) * 0.5 + 0.25
    sizes = torch.rand(objects, 2) * 0.2 + 0.02
    return {"labels": labels, "boxes": torch.cat([centres, sizes], 1)}
