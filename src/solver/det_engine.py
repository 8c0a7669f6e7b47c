"""Building blocks of training: seeding, gradient accumulation windows, progress bar, evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..core.contracts import Batch, Evaluator, KeepsDetections
from ..core.errors import DataError, NumericsError
from ..core.loader_contracts import DetectionLoader
from ..runtime.distributed import broadcast_object, is_main, rank
from ..runtime.finite import refuse_non_finite_outputs
from ..runtime.log import logger
from ..runtime.precision import full_float32
from .numerics import ADVICE_FOR_WEIGHTS, keep_batch
from .pace import Pace


def seed_step(seed: int, step: int) -> None:
    """Seed all random number generators from (seed, step, rank), so that no state has to be saved."""
    sequence = np.random.SeedSequence([seed, step, rank()])
    state = int(sequence.generate_state(1, np.uint64)[0]) >> 1
    random.seed(state)
    np.random.seed(state % (1 << 32))
    torch.manual_seed(state)


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Group the batches of each optimizer step; the last group of an epoch may be smaller."""
    window: list[Batch] = []
    for batch in batches:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def with_progress(
    batches: Iterable, description: str, total: int, start: int = 0
) -> tqdm:
    """Return a progress bar, which is shown on rank 0 if standard error is a terminal."""
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
@full_float32()
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
    """Evaluate a model on a data set, in float32.

    Args:
        model: unwrapped model; its training mode is restored afterwards.
        postprocessor: module that converts outputs to detections.
        loader: batches of images and targets; every image occurs once over all ranks.
        evaluator: evaluator that receives detections by image id.
        device: device of the model.
        between: function called before each batch.
        folder: folder in which a batch with NaN outputs is saved; None saves nothing.
        advice: end of the error message in this case, with advice for the user.

    Returns:
        Metrics by name, identical on every rank.

    Raises:
        NumericsError: if a score or a box is not finite.
        DataError: if images were not scored.
    """
    was_training = model.training
    model.eval()
    evaluator.reset()
    bar = with_progress(loader, "evaluation", len(loader))
    pace = Pace()
    for number, (images, targets) in enumerate(bar):
        between()
        if bar.disable and is_main() and pace.is_due():
            logger.info("evaluation: %d of %d batches", number, len(loader))
        sizes = torch.stack([target["orig_size"] for target in targets]).to(
            device
        )
        image_ids = [int(target["image_id"]) for target in targets]
        outputs = model(images.to(device, non_blocking=True))
        image_names = [f"image {image_id}" for image_id in image_ids]
        try:
            refuse_non_finite_outputs(outputs, image_names)
        except NumericsError as error:
            kept = keep_batch(folder, None, str(error), [(images, targets)])
            raise NumericsError(f"{error}; {kept}; {advice}") from None
        evaluator.update(dict(zip(image_ids, postprocessor(outputs, sizes))))
    evaluator.synchronize()
    _check_complete(evaluator, loader)
    model.train(was_training)
    return evaluator.summarize()


def _check_complete(evaluator: Evaluator, loader: DetectionLoader) -> None:
    """Raise if images were not scored on any rank; skipped for evaluators that do not keep detections.

    Rank 0 counts, because only its evaluator has the detections of all ranks.
    """
    if not isinstance(evaluator, KeepsDetections):
        return
    scored = broadcast_object(len(evaluator.detections))
    images = len(loader.dataset)
    if scored != images:
        raise DataError(
            f"{scored} of {images} validation images were scored: a loader ended early or images share an id"
        )
