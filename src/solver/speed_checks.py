"""Checks of speed: the loader, training steps on all ranks, and what both mean for a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from ..core.contracts import Batch
from ..core.counts import counted
from ..core.errors import ConfigError
from ..runtime.checks import Finding, Skipped
from ..runtime.distributed import broadcast_object, gather_objects, world_size
from .configuration_trial import Trial, build_trial
from .memory_trial import noise_batch
from .run_estimate import (
    COCO_IMAGES,
    describe_fit,
    describe_run,
    speed_text,
    speed_with_loader,
    step_text,
)
from .training_step import TrainStep

USUAL_OBJECTS = 8
"""Objects of an image, used if the data is not available."""

LOADER_SECONDS = 20.0
SPEED_SECONDS = 10.0
MOST_STEPS = 20

IMAGES_ON_CPU = 2
"""Largest batch that is tried on a CPU, whose memory other programs share."""


def check_loader(trial: Trial) -> Finding:
    """Measure the images per second of the configured training loader.

    Raises:
        RunError: if the data is missing or invalid.
    """
    cfg = trial.config()
    loader = cfg.train_dataloader
    loader.set_seed(0)
    loader.set_epoch(0)
    data = loader.dataset
    counts = data.boxes_per_image().float()
    ahead = trial.waiting_batches
    times: list[float] = []
    sizes: list[int] = []
    started = time.perf_counter()
    for images, _ in loader:
        times.append(time.perf_counter())
        sizes.append(len(images))
        is_late = times[-1] - started > LOADER_SECONDS
        if is_late or len(times) >= max(8, 3 * ahead):
            break
    if not times:
        raise ConfigError("the training loader gives no batch")
    speed = sum(sizes) / (times[-1] - started)
    if len(times) > ahead + 4:
        # workers prepared the first batches before these were asked for
        speed = sum(sizes[ahead + 1 :]) / (times[-1] - times[ahead])
    text = (
        f"{data.ann_file}: {counted(len(data), 'image')}, {counted(data.num_classes, 'class', 'classes')}; "
        f"{speed_text(speed)} images/s "
        f"with {counted(trial.workers, 'worker')}, batches of {trial.images}"
    )
    numbers = {
        "images": len(data),
        "classes": data.num_classes,
        "most_objects": int(counts.max()),
        "mean_objects": float(counts.mean()),
        "images_per_second": speed,
        "workers": trial.workers,
    }
    return Finding(text, numbers)


def check_speed(
    trial: Trial, data: Mapping[str, Any], memory: Mapping[str, Any]
) -> Finding:
    """Measure the images per second of training steps, on all ranks together. All ranks call this together.

    Args:
        trial: what is tried.
        data: numbers of `check_loader`.
        memory: numbers of `check_memory`.
    """
    device = trial.device
    images = min(trial.images, memory.get("images_that_fit", trial.images))
    if device.type == "cpu":
        images = min(images, IMAGES_ON_CPU)
    images = min(gather_objects(images))
    built = build_trial(trial, device, trial.amp_dtype, data)
    built.phases.begin(built.last_epoch)
    size, _ = trial.sizes()
    objects = round(data.get("mean_objects", USUAL_OBJECTS))
    torch.manual_seed(0)
    batch = noise_batch(images, size, objects, built.num_classes)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _steps_seconds(built.step, batch, 1, device)
    first = _steps_seconds(built.step, batch, 1, device)
    count = max(1, min(MOST_STEPS, int(SPEED_SECONDS / first)))
    count = broadcast_object(count)
    seconds = _steps_seconds(built.step, batch, count, device) / count
    speed = images * world_size() / seconds
    dtype = str(trial.amp_dtype or torch.float32).removeprefix("torch.")
    text = (
        f"{speed_text(speed)} images/s on {counted(world_size(), 'rank')}, "
        f"{counted(images, 'image')} each of {size[0]} x {size[1]}, {dtype}, "
        f"{step_text(seconds)} a step, last phase"
    )
    numbers = {
        "images_per_second": speed,
        "images": images,
        "ms_per_step": 1000 * seconds,
        "dtype": dtype,
        "ranks": world_size(),
    }
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        numbers["peak_gb"] = peak
        text += f", peak memory {peak:.2f} GB"
    return Finding(text, numbers)


def _steps_seconds(
    step: TrainStep, batch: Batch, count: int, device: torch.device
) -> float:
    """Return the seconds of some training steps."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for number in range(count):
        step(number, [batch])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def check_run(
    trial: Trial,
    data: Mapping[str, Any],
    memory: Mapping[str, Any],
    speed: Mapping[str, Any],
) -> Finding:
    """Return what the measurements mean for a run of the configuration.

    Args:
        trial: what is tried.
        data: numbers of `check_loader`; empty without data.
        memory: numbers of `check_memory`.
        speed: numbers of `check_speed`.
    """
    if not speed:
        raise Skipped("the speed is not known")
    cfg = trial.config()
    images = data.get("images", COCO_IMAGES)
    name = "this data" if data else "COCO"
    steps = speed["images_per_second"]
    loader = data.get("images_per_second")
    if loader is not None:
        loader *= trial.ranks
    total = speed_with_loader(steps, loader, trial.workers)
    epochs = cfg.settings.epochs
    text = describe_run(
        name, images, epochs, total, loader_bound=total < 0.9 * steps
    )
    device = "GPU" if trial.device.type == "cuda" else "process"
    fits = memory.get("estimated_images")
    if memory:
        text += f"; {describe_fit(trial.images, fits, device)}"
    numbers = {
        "images": images,
        "epochs": epochs,
        "images_per_second": total,
        "seconds": images * epochs / total,
        "estimated_images": fits,
    }
    return Finding(text, numbers)
