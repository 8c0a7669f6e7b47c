"""Checks of a configuration on this machine: loader, training steps in each precision, memory, speed.

Weights are random and images are noise, so that neither a download nor data is needed.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..core.build import create
from ..core.contracts import Batch
from ..core.durations import RunLength
from ..core.errors import ConfigError, NumericsError, ResourceError
from ..core.loader_contracts import MultiScaleCollate
from ..core.yaml_config import YAMLConfig
from ..runtime.checks import Finding, Skipped
from ..runtime.distributed import (
    broadcast_object,
    gather_objects,
    world_size,
)
from ..runtime.memory import (
    available_memory,
    reset_peak_memory,
    resident_memory,
)
from ..runtime.precision import full_float32
from .automatic_batch import AUTO
from .building import build_model, build_step
from .memory_trial import noise_batch, try_memory
from .numerics import NumericsGuard
from .phases import Phases
from .run_estimate import (
    COCO_IMAGES,
    describe_fit,
    describe_run,
    images_that_fit,
    speed_text,
    speed_with_loader,
)
from .start_weights import Start
from .training_step import TrainStep

TOLERANCE = 0.01
"""Relative difference of the losses of CPU and GPU above which a float32 step is wrong."""

HALF_TOLERANCE = 0.1
"""Relative difference of the losses of mixed precision and float32 above which there is a warning."""

MOST_OBJECTS = 93
"""Objects in the most crowded training image of COCO, used if the data is not available."""

USUAL_OBJECTS = 8

SMALL_SIDE = 320
"""Largest side of the images with which the results of two devices are compared."""

LOADER_SECONDS = 20.0
SPEED_SECONDS = 10.0
MOST_STEPS = 20

IMAGES_ON_CPU = 2
"""Largest batch that is tried on a CPU, whose memory other programs share."""

DEFAULT_SIZE = (640, 640)
DEFAULT_CLASSES = 80


@dataclass(frozen=True)
class Trial:
    """A configuration that is tried on this machine."""

    path: Path
    overrides: Mapping[str, Any]
    device: torch.device
    amp_dtype: torch.dtype | None
    ranks: int
    """Ranks of the run, also before they have joined."""

    def config(self) -> YAMLConfig:
        """Return the configuration, with random weights and the batch of one rank; nothing is built yet."""
        cfg = YAMLConfig(self.path, **copy.deepcopy(dict(self.overrides)))
        cfg.without_pretrained()
        loader = cfg.yaml_cfg.get("train_dataloader")
        if isinstance(loader, dict):
            own = {"batch_size": self.images, "total_batch_size": None}
            cfg.set("train_dataloader", own, "doctor.py")
        return cfg

    @cached_property
    def loader_settings(self) -> dict[str, Any]:
        """Return the settings of the training loader; empty if the configuration has none."""
        cfg = YAMLConfig(self.path, **copy.deepcopy(dict(self.overrides)))
        return dict(cfg.yaml_cfg.get("train_dataloader") or {})

    @cached_property
    def images(self) -> int:
        """Images of one rank in a batch."""
        loader = self.loader_settings
        if loader.get("batch_size"):
            return int(loader["batch_size"])
        total = loader.get("total_batch_size") or 1
        if total == AUTO:  # how many fit is estimated from one and two
            return 1
        return max(1, int(total) // self.ranks)

    @property
    def workers(self) -> int:
        """Loader workers of one rank."""
        return int(self.loader_settings.get("num_workers") or 0)

    @property
    def waiting_batches(self) -> int:
        """Batches of one rank that wait in shared memory at a time."""
        prefetch = self.loader_settings.get("prefetch_factor") or 2
        return self.workers * int(prefetch)

    def folder(self) -> Path | None:
        """Return the folder of the training images, or None if the data set names none."""
        data = self.loader_settings.get("dataset")
        if not isinstance(data, dict) or not data.get("img_folder"):
            return None
        return Path(data["img_folder"])

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the usual and the largest (height, width) of training images, in pixels."""
        cfg = self.config()
        height, width = cfg.yaml_cfg.get("eval_spatial_size") or DEFAULT_SIZE
        size = (int(height), int(width))
        resolved = cfg.resolved_cfg
        loader = resolved.get("train_dataloader") or {}
        spec = loader.get("collate_fn")
        collate = create(spec, resolved) if spec else None
        if isinstance(collate, MultiScaleCollate):
            return size, collate.largest_size(size)
        return size, size

    def batch_bytes(self) -> int:
        """Return the bytes of the images of a batch of the largest size, as float32."""
        _, (height, width) = self.sizes()
        return 4 * 3 * self.images * height * width


@dataclass(frozen=True)
class Built:
    """A training step that was built for a trial, in the last phase of its run."""

    step: TrainStep
    phases: Phases
    num_classes: int
    last_epoch: int


def build_trial(
    trial: Trial,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    data: Mapping[str, Any],
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Built:
    """Build model, loss and optimizer of a trial with random weights.

    Args:
        trial: what is tried.
        device: device of the model.
        amp_dtype: dtype for autocast, or None for float32.
        data: numbers of `check_loader`; empty without data.
        changes: settings that differ from the configuration, by section; other sections are left out.
    """
    cfg = trial.config()
    classes = data.get("classes", DEFAULT_CLASSES)
    if cfg.yaml_cfg.get("num_classes") is None:
        cfg.set("num_classes", classes, "doctor.py")
    for section, settings in (changes or {}).items():
        known = cfg.yaml_cfg.get(section)
        if isinstance(known, dict):
            cfg.set(section, dict(settings), "doctor.py")
    images = data.get("images", COCO_IMAGES)
    window = trial.images * trial.ranks * cfg.settings.grad_accum_steps
    epochs = cfg.settings.epochs
    cfg.resolve_lengths(RunLength(epochs, max(1, images // window)))
    model, _ = build_model(cfg, Start(), [], 0, device)
    scaler = cfg.scaler(device.type) if amp_dtype == torch.float16 else None
    guard = NumericsGuard(max(1, images // window))
    step = build_step(cfg, model.train(), guard, scaler, device, amp_dtype)
    phases = Phases(
        step, find_unused_parameters=cfg.settings.find_unused_parameters
    )
    return Built(step, phases, int(cfg.yaml_cfg["num_classes"]), epochs - 1)


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
        f"{data.ann_file}: {len(data):,} images, {data.num_classes} classes; {speed_text(speed)} images/s "
        f"with {trial.workers} worker(s), batches of {trial.images}"
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


def step_losses(
    trial: Trial,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    data: Mapping[str, Any],
) -> tuple[list[float], float]:
    """Run two training steps on one small image, without the random parts that differ between devices.

    Returns:
        The losses of both steps, of which the second shows the update, and the seconds of the second step.

    Raises:
        NumericsError: if a loss or gradient is not finite.
    """
    changes: dict[str, dict[str, Any]] = {
        "DFINETransformer": {"num_denoising": 0},
        "DINOv3Backbone": {"drop_path": 0.0},
    }
    built = build_trial(trial, device, amp_dtype, data, changes)
    built.phases.apply(built.last_epoch)
    (height, width), _ = trial.sizes()
    size = (min(height, SMALL_SIDE), min(width, SMALL_SIDE))
    torch.manual_seed(0)
    batch = noise_batch(1, size, 3, built.num_classes)
    losses: list[float] = []
    seconds = 0.0
    for number in range(2):
        started = time.perf_counter()
        terms = built.step(number, [batch])
        if terms is None:
            raise NumericsError(
                f"step {number + 1} on {device} gives a loss or a gradient that is not finite"
            )
        losses.append(sum(value.item() for value in terms.values()))
        seconds = time.perf_counter() - started
    return losses, seconds


def largest_difference(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference of two lists of losses."""
    differences = []
    for ours, theirs in zip(found, expected):
        differences.append(abs(ours - theirs) / max(abs(theirs), 1e-12))
    return max(differences)


def check_float32(trial: Trial, data: Mapping[str, Any]) -> Finding:
    """Run two float32 steps on the CPU and on the GPU, and compare their losses.

    Raises:
        NumericsError: if the losses differ by more than `TOLERANCE`.
    """
    with full_float32():
        expected, cpu_seconds = step_losses(
            trial, torch.device("cpu"), None, data
        )
        shown = f"loss {expected[0]:.4f}, then {expected[1]:.4f}"
        numbers: dict[str, Any] = {
            "losses": expected,
            "cpu_seconds": cpu_seconds,
        }
        if trial.device.type == "cpu":
            text = f"{shown} on the CPU ({step_text(cpu_seconds)} a step); no GPU to compare with"
            return Finding(text, numbers)
        found, seconds = step_losses(trial, trial.device, None, data)
    difference = largest_difference(found, expected)
    numbers.update(gpu_losses=found, difference=difference, seconds=seconds)
    if difference > TOLERANCE:
        raise NumericsError(
            f"{trial.device} gives other losses than the CPU: {found[0]:.4f}, then {found[1]:.4f}, expected "
            f"{shown}, relative difference {difference:.2g} (tolerance {TOLERANCE:g})"
        )
    return Finding(
        f"{shown} on CPU and {trial.device}, relative difference {difference:.2g} (tolerance {TOLERANCE:g})",
        numbers,
    )


def check_half(
    trial: Trial,
    dtype: torch.dtype,
    data: Mapping[str, Any],
    expected: list[float] | None,
) -> Finding:
    """Run two steps in mixed precision, and compare their losses with those of float32.

    Args:
        trial: what is tried.
        dtype: `torch.bfloat16` or `torch.float16`.
        data: numbers of `check_loader`.
        expected: losses of float32; None if they are not known.

    Raises:
        NumericsError: if a loss is not finite.
    """
    device = trial.device
    if device.type == "cpu" and dtype == torch.float16:
        raise Skipped("training uses fp16 only on GPUs")
    if device.type == "cuda" and dtype == torch.bfloat16:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if not has_bf16:
            raise Skipped(
                "this GPU does not support bf16; --use-amp selects fp16 with loss scaling"
            )
    found, seconds = step_losses(trial, device, dtype, data)
    text = f"loss {found[0]:.4f}, then {found[1]:.4f} ({step_text(seconds)} a step)"
    numbers: dict[str, Any] = {"losses": found, "seconds": seconds}
    if expected is None:
        return Finding(text, numbers)
    # loss scaling may skip the update before the second step
    difference = largest_difference(found[:1], expected[:1])
    numbers["difference"] = difference
    text += f", relative difference from float32 {difference:.2g}"
    if difference > HALF_TOLERANCE:
        return Finding(
            f"{text}, more than {HALF_TOLERANCE:g}", numbers, "warning"
        )
    return Finding(text, numbers)


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
        f"{speed_text(speed)} images/s on {world_size()} rank(s), {images} image(s) each of "
        f"{size[0]} x {size[1]}, {dtype}, {step_text(seconds)} a step, last phase"
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


def step_text(seconds: float) -> str:
    """Return the duration of a step, such as "85 ms" or "12.2 s"."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


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
