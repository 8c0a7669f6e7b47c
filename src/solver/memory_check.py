"""Check of the memory of training steps: peaks with one and two images, and the configured batch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..core.errors import ResourceError
from ..runtime.checks import Finding
from ..runtime.memory import (
    available_memory,
    reset_peak_memory,
    resident_memory,
)
from .configuration_trial import Built, Trial, build_trial
from .memory_trial import try_memory
from .run_estimate import images_that_fit

MOST_OBJECTS = 93
"""Objects in the most crowded training image of COCO, used if the data is not available."""


def check_memory(trial: Trial, data: Mapping[str, Any]) -> Finding:
    """Measure the peak memory of the largest step with one and two images, and try the configured batch.

    On a CPU, the configured batch is not tried, only estimated.

    Raises:
        ResourceError: if not even one image fits.
    """
    device = trial.device
    built = build_trial(trial, device, trial.amp_dtype, data)
    capacity = _capacity(device)
    one = _peak(trial, built, data, 1)
    try:
        two = _peak(trial, built, data, 2)
    except ResourceError as error:
        return _only_one_image_fits(trial, one, capacity, error)
    fits = images_that_fit(one, two, capacity)
    numbers = {
        "one_image_gb": one,
        "two_images_gb": two,
        "capacity_gb": capacity,
        "estimated_images": fits,
        "images": trial.images,
    }
    _, (height, width) = trial.sizes()
    text = (
        f"{one:.2f} GB with one image of {height} x {width}, {two:.2f} GB with two, {capacity:.1f} GB "
        "available"
    )
    if device.type == "cpu":
        if fits is not None and fits < trial.images:
            numbers["images_that_fit"] = max(1, fits)
            return Finding(
                f"{text}; the batch of {trial.images} probably does not fit, about {fits} would",
                numbers,
                "warning",
            )
        return Finding(text, numbers)
    try:
        batch = _peak(trial, built, data, trial.images)
    except ResourceError as error:
        numbers["images_that_fit"] = max(1, min(fits or 1, trial.images - 1))
        return Finding(f"{text}; {error}", numbers, "failed", error.exit_code)
    numbers["batch_gb"] = batch
    return Finding(
        f"{text}; {batch:.2f} GB with the configured {trial.images}", numbers
    )


def _only_one_image_fits(
    trial: Trial, one: float, capacity: float, error: ResourceError
) -> Finding:
    numbers = {
        "one_image_gb": one,
        "capacity_gb": capacity,
        "estimated_images": 1,
        "images": trial.images,
        "images_that_fit": 1,
    }
    text = f"{one:.2f} GB with one image, {capacity:.1f} GB available; {error}"
    if trial.images == 1:
        return Finding(text, numbers, "warning")
    return Finding(text, numbers, "failed", error.exit_code)


def _peak(
    trial: Trial, built: Built, data: Mapping[str, Any], images: int
) -> float:
    """Return the peak memory in GB of the largest step with a number of images."""
    if trial.device.type == "cpu":
        reset_peak_memory()
    _, largest = trial.sizes()
    return try_memory(
        built.step,
        built.phases,
        images=images,
        size_hw=largest,
        objects=data.get("most_objects", MOST_OBJECTS),
        num_classes=built.num_classes,
        epoch=built.last_epoch,
        last_epoch=built.last_epoch,
    )


def _capacity(device: torch.device) -> float:
    """Return the GB that this process can use on its device, including what it uses now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device)) / 1e9
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return (available_memory() / processes + resident_memory()) / 1e9
