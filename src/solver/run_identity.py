"""What a run learns from and is scored on, in a few bytes an image: a resumed run must have the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..core.errors import DataError
from ..runtime.log import logger

SHOWN = 3
"""Images that a message names."""

Identity = dict[str, Any]
"""`names` and `labels`, `[N]` int64 each, and `classes`: of a data set (`CocoDetection.identity`)."""


def data_identity(data_sets: Mapping[str, Any]) -> dict[str, Identity]:
    """Return the identity of each data set by its part, "train" or "val"."""
    return {part: data.identity() for part, data in data_sets.items()}


def digest(identities: Mapping[str, Identity]) -> str:
    """Return one hexadecimal number for all of it, by which ranks compare their data."""
    sha256 = hashlib.sha256()
    for part, identity in sorted(identities.items()):
        sha256.update(part.encode())
        for key in ("names", "labels"):
            sha256.update(identity[key].numpy().tobytes())
        sha256.update(repr(identity["classes"]).encode())
    return sha256.hexdigest()[:16]


def check_same_data(
    saved: Mapping[str, Identity] | None, data_sets: Mapping[str, Any], *, override: bool
) -> bool:
    """Compare the data of a run with what it began with.

    Args:
        saved: from `last.pth`; None in files that were written before data were noted.
        data_sets: by part.
        override: changes are wanted.

    Returns:
        Whether the data has changed.

    Raises:
        DataError: with what has changed, unless that is wanted.
    """
    if saved is None:
        logger.warning("last.pth was written before data were noted in it: whether they changed is not known")
        return False
    present = data_identity(data_sets)
    changes = [
        f"{data_sets[part].ann_file}: {change}"
        for part in present
        if part in saved
        for change in _changes(saved[part], present[part], data_sets[part])
    ]
    if not changes:
        return False
    told = "; ".join(changes)
    if not override:
        raise DataError(
            f"the data is not that of the run to resume: {told}; restore it, resume all the same with --override (the "
            "epoch restarts and the best score is forgotten), or start a new run from the weights with -t"
        )
    logger.warning("resuming with changed data: %s", told)
    return True


def _changes(before: Identity, now: Identity, data: Any) -> Iterator[str]:
    """Yield what differs between two identities of one data set."""
    if before["classes"] != now["classes"]:
        yield f"classes were {_listed(before['classes'])}, are {_listed(now['classes'])}"
    old = dict(zip(before["names"].tolist(), before["labels"].tolist()))
    new = dict(zip(now["names"].tolist(), now["labels"].tolist()))
    index_of = {name: index for index, name in enumerate(new)}
    added = [name for name in new if name not in old]
    changed = [name for name in new if name in old and old[name] != new[name]]
    removed = len(old.keys() - new.keys())
    if added:
        yield f"{_images(len(added))} added ({_shown(added, index_of, data)})"
    if removed:
        yield f"{_images(removed)} removed"
    if changed:
        yield f"labels or size of {_images(len(changed))} changed ({_shown(changed, index_of, data)})"
    if not (added or removed) and not torch.equal(before["names"], now["names"]):
        yield "the images come in another order"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _shown(names: Sequence[int], index_of: Mapping[int, int], data: Any) -> str:
    files = [data.image_name(index_of[name]) for name in names[:SHOWN]]
    return ", ".join(files) + (", ..." if len(names) > SHOWN else "")


def _listed(classes: Sequence[Sequence[Any]]) -> str:
    return ", ".join(f"{name} ({category})" for category, name in classes[:20]) or "none"
