"""Identify the data of a run by a few bytes per image, because a resumed run must have the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..core.counts import counted
from ..core.errors import DataError
from ..runtime.log import logger

SHOWN = 3
"""Maximum number of images in a message."""

Identity = dict[str, Any]
"""Identity of a data set: `names` and `labels`, `[N]` int64 each, and `classes`."""


def data_identity(data_sets: Mapping[str, Any]) -> dict[str, Identity]:
    """Return the identity of each data set by part, "train" or "val"."""
    return {part: data.identity() for part, data in data_sets.items()}


def digest(identities: Mapping[str, Identity]) -> str:
    """Return a hexadecimal digest of all identities, by which ranks compare their data."""
    sha256 = hashlib.sha256()
    for part, identity in sorted(identities.items()):
        sha256.update(part.encode())
        for key in ("names", "labels"):
            sha256.update(identity[key].numpy().tobytes())
        sha256.update(repr(identity["classes"]).encode())
    return sha256.hexdigest()[:16]


def check_same_data(
    saved: Mapping[str, Identity] | None,
    data_sets: Mapping[str, Any],
    *,
    override: bool,
) -> bool:
    """Compare the data of a resumed run with the data it started with.

    Args:
        saved: identities from `last.pth`; None if the file was written by a version that did not store them.
        data_sets: present data sets by part.
        override: accept changes and log them.

    Returns:
        Whether the data has changed.

    Raises:
        DataError: if the data has changed and `override` is False; the message lists the changes.
    """
    if saved is None:
        logger.warning(
            "last.pth was written by a version that did not record the data: cannot tell if they changed"
        )
        return False
    changes: list[str] = []
    for part, identity in data_identity(data_sets).items():
        data = data_sets[part]
        if part in saved:
            for change in _changes(saved[part], identity, data):
                changes.append(f"{data.ann_file}: {change}")
    if not changes:
        return False
    listed = "; ".join(changes)
    if not override:
        raise DataError(
            f"the data differs from that of the run to resume: {listed}; restore it, resume anyway with "
            "--override (the epoch restarts and the best score is reset), or start a new run from the "
            "weights with -t"
        )
    logger.warning("resuming with changed data: %s", listed)
    return True


def _changes(before: Identity, now: Identity, data: Any) -> Iterator[str]:
    """Yield a description of each difference between two identities of a data set."""
    if before["classes"] != now["classes"]:
        yield f"classes were {_listed(before['classes'])}, are {_listed(now['classes'])}"
    old = dict(zip(before["names"].tolist(), before["labels"].tolist()))
    new = dict(zip(now["names"].tolist(), now["labels"].tolist()))
    index_of = {name: index for index, name in enumerate(new)}
    added: list[int] = []
    changed: list[int] = []
    for name, labels in new.items():
        if name not in old:
            added.append(name)
        elif old[name] != labels:
            changed.append(name)
    removed = len(old.keys() - new.keys())
    if added:
        yield f"{counted(len(added), 'image')} added ({_shown(added, index_of, data)})"
    if removed:
        yield f"{counted(removed, 'image')} removed"
    if changed:
        yield (
            f"labels or size of {counted(len(changed), 'image')} changed "
            f"({_shown(changed, index_of, data)})"
        )
    if not (added or removed) and not torch.equal(
        before["names"], now["names"]
    ):
        yield "the order of the images has changed"


def _shown(names: Sequence[int], index_of: Mapping[int, int], data: Any) -> str:
    """Return the names of the first images."""
    files = [data.image_name(index_of[name]) for name in names[:SHOWN]]
    if len(names) > SHOWN:
        files.append("...")
    return ", ".join(files)


def _listed(classes: Sequence[Sequence[Any]]) -> str:
    """Return names and ids of the first classes."""
    if not classes:
        return "none"
    return ", ".join(f"{name} ({category})" for category, name in classes[:20])
