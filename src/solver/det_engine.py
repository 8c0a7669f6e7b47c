"""What training and evaluation are made of: the seed of a step, windows of batches, a progress bar, and an evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..core.contracts import Batch, DetectionLoader, Evaluator, KeepsDetections
from ..core.errors import DataError, NumericsError
from ..runtime.distributed import rank
from ..runtime.finite import refuse_non_finite_outputs
from .numerics import ADVICE_FOR_WEIGHTS, keep_batch


def seed_step(seed: int, step: int) -> None:
    """Seed all random number generators for a step of this rank from (seed, step, rank), so that no generator state has to be saved."""
    state = int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0]) >> 1
    random.seed(state)
    np.random.seed(state % (1 << 32))
    torch.manual_seed(state)


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Group batches into those of one optimizer step; the last group of an epoch may be smaller."""
    window: list[Batch] = []
    for batch in batches:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def with_progress(batches: Iterable, description: str, total: int, start: int = 0) -> tqdm:
    """Show a bar with the time left, where somebody is watching a terminal on rank 0."""
    return tqdm(
        batches,
        desc=description,
        total=total,
        initial=start,
        disable=None if rank() == 0 else True,
        leave=False,
        dynamic_ncols=True,
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    postprocessor: nn.Module,
    loader: DetectionLoader,
    evaluator: Evaluator,
    device: torch.device,
    between: Callable[[], None] = lambda: None,
    folder: Path | None = None,
    advice: str = ADVICE_FOR_WEIGHTS,
) -> dict[str, Any]:
    """Score a model on a data set, in float32.

    Args:
        model: unwrapped; its training mode is restored afterwards.
        postprocessor: from outputs to detections.
        loader: batches of images and targets; every image once over all ranks.
        evaluator: takes detections by image id.
        device: where the model is.
        between: called before each batch.
        folder: where a batch is saved for which the model gives NaN; None saves nothing.
        advice: what the user can do in this case.

    Returns:
        Metrics by name, the same on every rank.

    Raises:
        NumericsError: if a score or a box is not finite.
        DataError: if images were not scored.
    """
    was_training = model.training
    model.eval()
    evaluator.reset()
    for images, targets in with_progress(loader, "evaluation", len(loader)):
        between()
        sizes = torch.stack([target["orig_size"] for target in targets]).to(device)
        image_ids = [int(target["image_id"]) for target in targets]
        outputs = model(images.to(device, non_blocking=True))
        try:
            refuse_non_finite_outputs(outputs, [f"image {image_id}" for image_id in image_ids])
        except NumericsError as error:
            kept = keep_batch(folder, None, str(error), [(images, targets)])
            raise NumericsError(f"{error}; {kept}; {advice}") from None
        evaluator.update(dict(zip(image_ids, postprocessor(outputs, sizes))))
    evaluator.synchronize()
    _check_complete(evaluator, loader)
    model.train(was_training)
    return evaluator.summarize()


def _check_complete(evaluator: Evaluator, loader: DetectionLoader) -> None:
    """Make sure that every image of the data set was scored, over all ranks; a user's own evaluator may not know."""
    if not isinstance(evaluator, KeepsDetections):
        return
    scored = len(evaluator.detections)
    images = len(loader.dataset)
    if scored != images:
        raise DataError(
            f"{scored} of {images} validation images were scored: a loader ended early or images share an id"
        )
