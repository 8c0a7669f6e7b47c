"""Checks of numbers: the losses of training steps on CPU and GPU, and in mixed precision."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from ..core.errors import NumericsError
from ..runtime.checks import Finding, Skipped
from ..runtime.precision import full_float32
from .configuration_trial import Trial, build_trial
from .memory_trial import noise_batch
from .run_estimate import step_text

TOLERANCE = 0.01
"""Relative difference of the losses of CPU and GPU above which a float32 step is wrong."""

HALF_TOLERANCE = 0.1
"""Relative difference of the losses of mixed precision and float32 above which there is a warning."""

SMALL_SIDE = 320
"""Largest side of the images with which the results of two devices are compared."""


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
