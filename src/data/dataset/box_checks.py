"""The boxes of an annotation file, all at once as arrays: which can be used, what is changed, and what becomes of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .box_formats import COCO, BoxFormat, Suspicion, suspect, to_coco
from .coco_records import Annotations, CocoContent
from .findings import Findings, Kind
from .label_ledger import LabelLedger


class References(NamedTuple):
    """What the M annotations of a file refer to."""

    image_of: np.ndarray
    """`[M]`: positions in the list of images."""
    category_of: np.ndarray
    """`[M]`: positions in the sorted category ids."""
    sound: np.ndarray
    """`[M]` bool: both are there, and the image has a size."""
    sizes: np.ndarray
    """`[M, 2]` float64, (width, height) of the image in pixels; of an unsound one any."""


class CheckedBoxes(NamedTuple):
    """What is wrong with each of M boxes: `[M]` bool unless another shape is given."""

    xywh: np.ndarray
    """`[M, 4]`, x, y, width, height in pixels, as the file has them."""
    inside: np.ndarray
    """`[M, 4]`, xyxy in pixels, clipped to the image."""
    areas: np.ndarray
    """`[M]`, square pixels."""
    sound: np.ndarray
    """The record can be used, whatever its box is like."""
    flat: np.ndarray
    """The box has no area."""
    outside: np.ndarray
    """The box lies wholly outside its image."""
    beyond: np.ndarray
    """The box reaches beyond its image."""
    kept: np.ndarray
    """The box is used."""
    without_area: np.ndarray
    large_area: np.ndarray
    """The area is larger than the image."""
    crowds: np.ndarray
    ignored: np.ndarray
    """The object is flagged to be ignored."""
    repeated: np.ndarray
    """Another box before is the same."""


def read_boxes(
    content: CocoContent, references: References, findings: Findings, box_format: BoxFormat | None
) -> tuple[dict[str, Tensor], LabelLedger]:
    """Bring the boxes into their images, and keep account of what becomes of them.

    Returns:
        `starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`, the rows in the order of images; and the account.
    """
    references = references._replace(
        sound=references.sound & ~_masks_of_another_size(content, references, findings)
    )
    boxes = _check_boxes(content.annotations, references, box_format or COCO)
    _note_boxes(boxes, content, findings)
    sound = boxes.sound
    if box_format is None and (found := suspect(boxes.xywh[sound], references.sizes[sound])):
        findings.fault(Kind.BOX_FORMAT, _describe_format(found))
    return _sorted_rows(boxes, references, len(content.images)), _account(boxes, content, findings)


def _check_boxes(records: Annotations, references: References, box_format: BoxFormat) -> CheckedBoxes:
    image_of, category_of, sound, sizes = references
    xywh = to_coco(records.bbox, sizes, box_format)
    with np.errstate(over="ignore"):  # absurd sizes become infinite, and are clipped
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        corners = corners.astype(np.float32)  # as they will be stored
    inside = np.clip(corners, 0, np.tile(sizes, 2))
    flat = sound & (corners[:, 2:] <= corners[:, :2]).any(1)
    outside = sound & ~flat & (inside[:, 2:] <= inside[:, :2]).any(1)
    kept = sound & ~flat & ~outside
    without_area = kept & np.isnan(records.area)
    large_area = kept & (records.area > 1.01 * sizes.prod(1))
    return CheckedBoxes(
        xywh,
        inside,
        np.where(without_area | large_area, (inside[:, 2:] - inside[:, :2]).prod(1), records.area),
        sound,
        flat,
        outside,
        kept & (abs(corners - inside) > 0.5).any(1),
        kept,
        without_area,
        large_area,
        records.iscrowd == 1,
        records.ignore == 1,
        _repeated_rows(image_of, category_of, xywh, kept),
    )


def _note_boxes(boxes: CheckedBoxes, content: CocoContent, findings: Findings) -> None:
    """Note the boxes that are changed or dropped, by kind."""
    records = content.annotations
    places = content.places["annotations"]
    ids = records.id.clip(min=-1)
    for kind, mask, details in (
        (Kind.REPEATED_ANNOTATION, _repeated(ids) & (ids >= 0), None),
        (Kind.FLAT, boxes.flat, records.bbox),
        (Kind.OUTSIDE, boxes.outside, records.bbox),
        (Kind.BEYOND, boxes.beyond, records.bbox),
        (Kind.NO_AREA, boxes.without_area, None),
        (Kind.LARGE_AREA, boxes.large_area, None),
        (Kind.REPEATED_BOX, boxes.repeated, records.bbox),
        (Kind.IGNORED, boxes.kept & boxes.ignored, None),
    ):
        index = np.flatnonzero(mask)
        shown = None if details is None else details[index]
        findings.note(kind, "annotations", places[index], ids[index], shown)


def _account(boxes: CheckedBoxes, content: CocoContent, findings: Findings) -> LabelLedger:
    kept, crowds, ignored = boxes.kept, boxes.crowds, boxes.ignored
    ledger = LabelLedger(findings.path, content.num_annotations)
    unusable = ledger.boxes - boxes.sound.sum()
    ledger.add("faulty, or of an image or category that is not listed", unusable, "lost")
    ledger.add("without area or reversed", boxes.flat.sum(), "lost")
    ledger.add("outside their image", boxes.outside.sum(), "lost")
    ledger.add("crowd regions", (kept & crowds).sum(), "left out")
    ledger.add("flagged to be ignored", (kept & ignored & ~crowds).sum(), "left out")
    learned = kept & ~crowds & ~ignored
    places = content.places["annotations"]
    computed = [note.index for note in findings.notes if note.kind == Kind.BOX_COMPUTED]
    from_segmentation = np.isin(places, np.concatenate(computed)) if computed else np.zeros(len(places), bool)
    ledger.add("computed from a polygon or mask", (learned & from_segmentation).sum(), "changed")
    ledger.add("clipped to their image", (learned & boxes.beyond).sum(), "changed")
    ledger.add("listed more than once", (learned & boxes.repeated).sum(), "changed")
    return ledger


def _sorted_rows(boxes: CheckedBoxes, references: References, num_images: int) -> dict[str, Tensor]:
    """Return the boxes that are used, in the order of their images."""
    order = np.flatnonzero(boxes.kept)
    order = order[np.argsort(references.image_of[order], kind="stable")]
    counts = np.bincount(references.image_of[order], minlength=num_images)
    return {
        "starts": running_total(counts),
        "boxes": torch.from_numpy(boxes.inside[order].astype(np.float32)),
        "categories": torch.from_numpy(references.category_of[order]),
        "areas": torch.from_numpy(boxes.areas[order].astype(np.float32)),
        "crowds": torch.from_numpy((boxes.crowds | boxes.ignored)[order]),
    }


def _masks_of_another_size(content: CocoContent, references: References, findings: Findings) -> np.ndarray:
    """Return which boxes `[M]` were computed from a mask that has not the size of its image; each is a fault."""
    places = content.places["annotations"]
    sound, sizes = references.sound, references.sizes
    bad = np.zeros(len(places), bool)
    for row, place in enumerate(places.tolist()) if content.mask_sizes else ():
        size = content.mask_sizes.get(place)
        if size is not None and sound[row] and size != tuple(sizes[row]):
            bad[row] = True
            width, height = map(int, sizes[row])
            what = f"no box, and a mask of {size[0]} x {size[1]} pixels for an image of {width} x {height}"
            findings.fault(Kind.BAD_BOX, what, "annotations", place, int(content.annotations.id[row]))
    return bad


def _describe_format(found: Suspicion) -> str:
    if not found.likely:
        return (
            f"{found.what}; COCO has [x, y, width, height] in pixels, and no other format fits either: were the images "
            "resized, or do boxes belong to other images?"
        )
    likely = found.likely[0]
    others = f" (or {', '.join(map(str, found.likely[1:3]))})" if len(found.likely) > 1 else ""
    return (
        f"{found.what}, nearly all would fit as {likely}{others}; COCO has [x, y, width, height] in pixels: convert the "
        f"file with tools/dataset/check.py --fix DIR --boxes {likely.order} --units {likely.unit}, or set "
        f"dataset.box_order={likely.order} and dataset.box_unit={likely.unit}"
    )


def _repeated_rows(
    image_of: np.ndarray, category_of: np.ndarray, boxes: np.ndarray, considered: np.ndarray
) -> np.ndarray:
    """Return which boxes `[M]` another one before repeats exactly: same image, category and numbers."""
    rows = np.flatnonzero(considered)
    columns = np.column_stack([image_of[rows], category_of[rows], boxes[rows].view(np.int64).reshape(-1, 4)])
    key = np.zeros(len(rows), np.uint64)
    for column in columns.view(
        np.uint64
    ).T:  # one number for each row: sorting those is far quicker than sorting rows
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    mask = np.zeros(len(considered), bool)
    mask[rows[_repeated(key)]] = True
    return mask


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Return which ids have come before."""
    first = np.unique(ids, return_index=True)[1]
    mask = np.ones(len(ids), bool)
    mask[first] = False
    return mask


def running_total(counts: Iterable[int]) -> Tensor:
    """Return 0 and the sums of the first one, two ... counts: `[N + 1]` int64."""
    return torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.tensor(list(counts), dtype=torch.int64).cumsum(0)]
    )
