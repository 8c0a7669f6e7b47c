"""Starting from other weights (`-t`): which class rows can be kept, which have to start anew."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.coco_categories import COCO_NAMES, COCO_TO_OBJECTS365, OBJECTS365_SLOTS
from ..core.errors import CheckpointError
from ..detection.fitting import completed, describe_misfits, refuse_factors
from ..detection.weight_file import WeightFile, class_count
from ..runtime.log import logger

_CLASS_LAYERS = re.compile(
    r"^decoder\.(enc_score_head|dec_score_head\.\d+|denoising_class_embed)\.(weight|bias)$"
)

ClassMap = list[int | None]
"""For each of our labels, the row of the file's class layers to take, or None to start anew."""


def load_for_tuning(model: nn.Module, file: WeightFile, class_names: Sequence[str] | None) -> None:
    """Fill a model from a checkpoint whose classes may differ.

    Args:
        model: the model to train; class rows that are not taken over keep their new values.
        file: the weights.
        class_names: our classes in the order of labels, or None if not known.

    Raises:
        CheckpointError: if anything but class layers and computed tables does not fit; all keys are listed.
    """
    own = model.state_dict()
    refuse_factors(file, own)
    weights = completed(file.weights, model)
    theirs = class_count(weights)
    ours = class_count(own)
    if ours is None:
        raise CheckpointError("-t needs a model with a class head, decoder.dec_score_head; this one has none")
    if theirs is None:
        raise CheckpointError(
            f"{file.path} is no D-FINE checkpoint: it has no class head (first keys: {', '.join(list(weights)[:5])})"
        )
    mapping = map_classes(theirs, ours, _names_of(file.classes) if file.classes else None, class_names)
    layers = [key for key in own if _CLASS_LAYERS.match(key)]
    for key in layers:
        weights[key] = _mapped_rows(weights.get(key), own[key], mapping, theirs)
    for key in [k for k in weights if _CLASS_LAYERS.match(k) and k not in own]:
        del weights[key]  # e.g. the denoising embedding, when denoising is off
    if faults := describe_misfits(weights, own):
        raise CheckpointError(
            f"{file.path} does not fit this model: {faults}; -t changes the classes, not the architecture"
        )
    model.load_state_dict(weights)
    kept = sum(row is not None for row in mapping)
    anew = (
        ""
        if kept == ours
        else f"; re-initialised: {ours - kept} of {ours} classes in {len(layers)} class tensors ({', '.join(layers[:3])}, ...)"
    )
    logger.info(
        "tuning from %s: loaded %d of %d tensors%s",
        file.path,
        len(own) - (0 if kept else len(layers)),
        len(own),
        anew,
    )


def _names_of(classes: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of a checkpoint's classes; Objects365's, known by their ids, under COCO's names where it has the class."""
    names = [c["name"] for c in classes]
    row = {c["id"]: index for index, c in enumerate(classes)}
    if sorted(row) == list(range(1, OBJECTS365_SLOTS)):
        for label, index in enumerate(COCO_TO_OBJECTS365):
            names[row[index + 1]] = COCO_NAMES[label]
    return names


def map_classes(
    theirs: int, ours: int, their_names: Sequence[str] | None, our_names: Sequence[str] | None
) -> ClassMap:
    """Decide which class rows carry over.

    Names decide where both sides have them, whatever their case. Without names, Objects365 and COCO know each other; an equal number of
    classes is taken to be the same classes; anything else starts anew, since positions mean nothing.
    """
    if their_names and our_names:
        row = {name.casefold(): index for index, name in reversed(list(enumerate(their_names)))}
        row |= {name: index for index, name in reversed(list(enumerate(their_names)))}
        mapping: ClassMap = [row.get(name, row.get(name.casefold())) for name in our_names]
        return mapping + [None] * (ours - len(mapping))
    if (theirs, ours) == (OBJECTS365_SLOTS, len(COCO_NAMES)):
        return [index + 1 for index in COCO_TO_OBJECTS365]
    if (theirs, ours) == (len(COCO_NAMES), OBJECTS365_SLOTS):
        mapping = [None] * ours
        for label, index in enumerate(COCO_TO_OBJECTS365):
            mapping[index + 1] = label
        return mapping
    return list(range(ours)) if theirs == ours else [None] * ours


def _mapped_rows(source: Tensor | None, fresh: Tensor, mapping: ClassMap, their_classes: int) -> Tensor:
    """Take rows over by `mapping`; an embedding has one more row, for padding, which stays the last."""
    result = fresh.clone()
    if source is None or source.shape[1:] != fresh.shape[1:]:
        return result
    pairs = [(label, row) for label, row in enumerate(mapping) if row is not None]
    if len(fresh) == len(mapping) + 1 and len(source) == their_classes + 1:
        pairs.append((len(mapping), their_classes))
    if pairs:
        labels, rows = torch.tensor(pairs).T
        result[labels] = source[rows].to(result.dtype)
    return result
