"""Estimates for a run from measurements on a machine: its duration, and the largest batch that fits."""

from __future__ import annotations

from ..core.counts import counted

COCO_IMAGES = 118_287
"""Training images of COCO 2017."""

USABLE_SHARE = 0.95
"""Fraction of a device's memory that a run can use; the rest is lost to fragments and libraries."""

_SMALLEST_SLOPE = 0.005
"""A second image that adds less than this fraction of the first one's peak was not measured well."""


def images_that_fit(one: float, two: float, capacity: float) -> int | None:
    """Estimate the largest batch that fits, from a line through two measured peaks.

    Args:
        one: peak memory with one image.
        two: peak memory with two images, in the same unit.
        capacity: memory of the device, in the same unit.

    Returns:
        Number of images, 0 if not even one fits; None if the peaks do not differ enough.
    """
    per_image = two - one
    if per_image < _SMALLEST_SLOPE * one:
        return None
    fixed = one - per_image
    return max(0, int((USABLE_SHARE * capacity - fixed) / per_image))


def speed_with_loader(
    steps: float, loader: float | None, workers: int
) -> float:
    """Return the images per second of a run whose loader may be slower than its steps.

    Args:
        steps: images per second of the training steps alone.
        loader: images per second of the loader alone; None if unknown.
        workers: worker processes of the loader, which load while the steps run; 0 loads in between.
    """
    if loader is None:
        return steps
    if workers == 0:
        return 1 / (1 / steps + 1 / loader)
    return min(steps, loader)


def run_seconds(images: int, epochs: int, images_per_second: float) -> float:
    """Return the duration of the training steps of a run, without evaluations."""
    return images * epochs / images_per_second


def duration_text(seconds: float) -> str:
    """Return a duration as two significant units at most, such as "40 min", "11 h" or "5 days"."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    if hours < 48:
        return f"{hours:.0f} h" if hours >= 10 else f"{hours:.1f} h"
    return f"{hours / 24:.0f} days"


def speed_text(images_per_second: float) -> str:
    """Return a speed with three significant digits, such as "3.1", "128" or "1,235"."""
    if images_per_second < 100:
        return f"{images_per_second:.3g}"
    return f"{images_per_second:,.0f}"


def step_text(seconds: float) -> str:
    """Return the duration of a step, such as "85 ms" or "12.2 s"."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def describe_run(
    data: str,
    images: int,
    epochs: int,
    images_per_second: float,
    *,
    loader_bound: bool,
) -> str:
    """Return the sentence about the duration of a run.

    Args:
        data: name of the data.
        images: number of training images.
        epochs: epochs of the configuration.
        images_per_second: speed over all ranks.
        loader_bound: whether the loader limits the speed.
    """
    seconds = run_seconds(images, epochs, images_per_second)
    limit = ""
    if loader_bound:
        limit = ", limited by the loader: more num_workers or faster storage would help"
    return (
        f"{data} ({counted(images, 'image')}), {counted(epochs, 'epoch')}: about "
        f"{duration_text(seconds)} without evaluations, at {speed_text(images_per_second)} images/s{limit}"
    )


def describe_fit(images: int, fits: int | None, device: str) -> str:
    """Return the sentence about the batch.

    Args:
        images: configured images per rank.
        fits: estimate of `images_that_fit`.
        device: "GPU" or "process".
    """
    if fits is None:
        return "the largest batch could not be estimated"
    batch = f"a batch of {counted(images, 'image')} per {device}"
    estimate = "estimated from the peak memory of one and two images"
    if fits < images:
        return (
            f"{batch} probably does not fit, about {fits} would ({estimate}); see "
            "docs/training.md#out-of-memory"
        )
    more = f", about {fits} would fit too" if fits > images else ""
    return f"{batch} fits{more} ({estimate})"
