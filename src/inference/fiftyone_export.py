"""Export an evaluation to a data set of FiftyOne, an app for browsing images."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.counts import counted
from ..core.errors import ConfigError
from ..detection.matching import CROWD, match_image
from ..runtime.log import logger
from ..runtime.optional import import_optional
from .detector_evaluation import Evaluation


def to_fiftyone(evaluation: Evaluation, name: str, threshold: float) -> Any:
    """Store images, ground truth and detections as a persistent data set.

    Args:
        evaluation: evaluation to store; images are referenced, not copied.
        name: name of the data set; an existing one of this name is replaced.
        threshold: minimum score of stored detections.

    Returns:
        The `fiftyone.Dataset`.

    Raises:
        ConfigError: if FiftyOne is not installed or cannot open its database.
    """
    fo = import_optional("fiftyone")
    try:
        data_set = fo.Dataset(name, overwrite=True, persistent=True)
    except Exception as error:  # FiftyOne has its own errors for a missing, outdated or locked database
        raise ConfigError(
            f"FiftyOne cannot open its database: {error}"
        ) from None
    data_set.add_samples(fiftyone_samples(evaluation, threshold))
    logger.info(
        "FiftyOne: %s as data set %s",
        counted(len(evaluation.dataset), "image"),
        name,
    )
    return data_set


def fiftyone_samples(evaluation: Evaluation, threshold: float) -> list[Any]:
    """Return a `fiftyone.Sample` for each image.

    It has `ground_truth`, `predictions`, and the counts `missed` and `false`. Detections have `confidence`
    and `eval`: "tp", "fp", or "crowd" within a crowd region.
    """
    fo = import_optional("fiftyone")
    data = evaluation.dataset
    samples = []
    for index, image_id in enumerate(data.labels.image_ids.tolist()):
        size = np.tile(data.labels.sizes[index].numpy().astype(float), 2)
        rows = evaluation.detections_above(image_id, threshold)
        objects = evaluation.objects.get(image_id, np.empty((0, 6)))
        found = match_image(rows, objects)
        verdicts = [_verdict(target) for target in found]
        truth = []
        for row in objects:
            true_box = fo.Detection(
                label=evaluation.names[int(row[4])],
                bounding_box=(row[:4] / size).tolist(),
                iscrowd=bool(row[5]),
            )
            truth.append(true_box)
        predictions = []
        for row, verdict in zip(rows, verdicts):
            label = int(row[5])
            predicted_box = fo.Detection(
                label=evaluation.names.get(label, str(label)),
                bounding_box=(row[:4] / size).tolist(),
                confidence=float(row[4]),
                eval=verdict,
            )
            predictions.append(predicted_box)
        total = int((objects[:, 5] == 0).sum())
        missed = total - int((found >= 0).sum())
        samples.append(
            fo.Sample(
                filepath=str(data.image_path(index).resolve()),
                image_id=image_id,
                ground_truth=fo.Detections(detections=truth),
                predictions=fo.Detections(detections=predictions),
                missed=missed,
                false=verdicts.count("fp"),
            )
        )
    return samples


def _verdict(target: int) -> str:
    """Return FiftyOne's name for the match of a detection (`match_image`)."""
    if target == CROWD:
        return "crowd"
    return "tp" if target >= 0 else "fp"
