"""Start from the weights of another run (`-t`): keep the rows of known classes, re-initialize the others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.coco_categories import (
    COCO_NAMES,
    COCO_TO_OBJECTS365,
    OBJECTS365_SLOTS,
)
from ..core.errors import CheckpointError
from ..detection.class_names import known_names, match_names
from ..detection.fitting import (
    completed,
    describe_misfits,
    refuse_factors,
    refuse_other_model,
    with_published_scale,
)
from ..detection.weight_file import WeightFile, class_count
from ..runtime.log import logger

_CLASS_LAYERS = re.compile(
    r"^decoder\.(enc_score_head|dec_score_head\.\d+|denoising_class_embed)\.(weight|bias)$"
)

ClassMap = list[int | None]
"""For each label of the model, the row to copy from the file's class layers, or None to re-initialize it."""


def load_for_tuning(
    model: nn.Module, file: WeightFile, class_names: Sequence[str] | None
) -> None:
    """Load a checkpoint whose classes may differ from those of the model.

    Args:
        model: model to train; class rows that are not copied keep their initial values.
        file: weights to load.
        class_names: classes of the data in the order of their labels, or None if unknown.

    Raises:
        CheckpointError: if anything other than class layers and computed tables does not fit; all keys are
            listed.
    """
    own = model.state_dict()
    refuse_factors(file, own)
    weights = completed(file.weights, model)
    theirs = class_count(weights)
    ours = class_count(own)
    if ours is None:
        raise CheckpointError(
            "-t needs a model with a class head, decoder.dec_score_head; this one has none"
        )
    file.require_class_head()
    assert theirs is not None
    refuse_other_model(file, own)
    weights = with_published_scale(file, weights, own)
    their_names = _names_to_match(file, ours, class_names or ())
    mapping = map_classes(theirs, ours, their_names, class_names)
    layers = list(filter(_CLASS_LAYERS.match, own))
    for key in layers:
        weights[key] = _mapped_rows(weights.get(key), own[key], mapping, theirs)
    for key in list(filter(_CLASS_LAYERS.match, weights)):
        # for example the denoising embedding, if the model has no denoising
        if key not in own:
            del weights[key]
    faults = describe_misfits(weights, own)
    if faults:
        raise CheckpointError(
            f"{file.path} does not fit this model: {faults}; -t changes the classes, not the architecture"
        )
    model.load_state_dict(weights)
    kept = len(mapping) - mapping.count(None)
    loaded = len(own) if kept else len(own) - len(layers)
    reset = ""
    if kept != ours:
        reset = (
            f"; re-initialised: {ours - kept} of {ours} classes in {len(layers)} class tensors "
            f"({', '.join(layers[:3])}, ...)"
        )
    logger.info(
        "tuning from %s: loaded %d of %d tensors%s",
        file.path,
        loaded,
        len(own),
        reset,
    )


def _names_to_match(
    file: WeightFile, ours: int, our_names: Sequence[str]
) -> list[str] | None:
    """Return the class names of a file, or None if rows must be matched by the number of classes.

    A published file has no names: it has COCO's or Objects365's classes if it has their number, and these
    names count only if the data has one of them. Objects365's own names are not known.
    """
    if file.classes:
        return known_names(file.classes)
    if ours == OBJECTS365_SLOTS:
        return None
    names = [entry["name"] for entry in file.named_classes]
    known = {name.casefold() for name in names}
    if any(name.casefold() in known for name in our_names):
        return names
    return None


def map_classes(
    theirs: int,
    ours: int,
    their_names: Sequence[str] | None,
    our_names: Sequence[str] | None,
) -> ClassMap:
    """Choose the class rows to copy.

    If both sides have class names, classes are matched by name; an exact match wins over one that differs in
    case. Without names, the published mapping is used between Objects365 and COCO, and an equal number of
    classes is treated as the same classes. Otherwise all rows are re-initialized.

    Args:
        theirs: number of classes in the file.
        ours: number of classes in the model.
        their_names: class names of the file, or None if unknown.
        our_names: class names of the data, or None if unknown.
    """
    if their_names and our_names:
        mapping: ClassMap = match_names(our_names, their_names)
        return mapping + [None] * (ours - len(mapping))
    if (theirs, ours) == (OBJECTS365_SLOTS, len(COCO_NAMES)):
        return [index + 1 for index in COCO_TO_OBJECTS365]
    if (theirs, ours) == (len(COCO_NAMES), OBJECTS365_SLOTS):
        mapping = [None] * ours
        for label, index in enumerate(COCO_TO_OBJECTS365):
            mapping[index + 1] = label
        return mapping
    return list(range(ours)) if theirs == ours else [None] * ours


def _mapped_rows(
    source: Tensor | None, fresh: Tensor, mapping: ClassMap, their_classes: int
) -> Tensor:
    """Copy rows by `mapping`. An embedding has one more row, for padding, which stays the last one."""
    result = fresh.clone()
    if source is None or source.shape[1:] != fresh.shape[1:]:
        return result
    pairs: list[tuple[int, int]] = []
    for label, row in enumerate(mapping):
        if row is not None:
            pairs.append((label, row))
    if len(fresh) == len(mapping) + 1 and len(source) == their_classes + 1:
        pairs.append((len(mapping), their_classes))
    if pairs:
        labels, rows = torch.tensor(pairs).T
        result[labels] = source[rows].to(result.dtype)
    return result
