"""Checks of all boxes of an annotation file as arrays: which boxes are used, clipped, dropped or ignored.

Malformed records are refused in `coco_records.py`, and references to unknown images or categories in
`coco_format.py`. Boxes that are too small at the training size are dropped by `SanitizeBoundingBoxes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.commands import command_name
from .box_formats import COCO, BoxFormat, Suspicion, suspect, to_coco
from .coco_content import Annotations, CocoContent
from .findings import COMPARED, Findings, Kind
from .label_ledger import LabelLedger

OTHER_AREA = 1.1
"""Areas larger than their box by this factor are reported."""

LARGEST_SIDE = 1e9
"""Limit of numbers in comparisons, whose products would overflow otherwise."""

OUTLINE_IOU = 0.5
"""Boxes whose IoU with the box around their polygon or mask is below this are reported."""


class References(NamedTuple):
    """Images and categories that the M annotations of a file refer to."""

    image_of: np.ndarray
    """`[M]`: positions in the list of images."""
    category_of: np.ndarray
    """`[M]`: positions in the sorted category ids."""
    sound: np.ndarray
    """`[M]` bool: image and category exist, and the image has a valid size."""
    sizes: np.ndarray
    """`[M, 2]` float64, (width, height) of the image in pixels; arbitrary where `sound` is False."""


class CheckedBoxes(NamedTuple):
    """Results of the checks for each of M boxes: `[M]` bool unless another shape is given."""

    xywh: np.ndarray
    """`[M, 4]`, x, y, width, height in pixels, as the file has them."""
    inside: np.ndarray
    """`[M, 4]`, xyxy in pixels, clipped to the image."""
    areas: np.ndarray
    """`[M]`, square pixels."""
    sound: np.ndarray
    """The record is valid, apart from its box."""
    flat: np.ndarray
    """The box has no area."""
    outside: np.ndarray
    """The box lies entirely outside its image."""
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
    other_area: np.ndarray
    """The area is larger than the box."""
    repeated: np.ndarray
    """The box is a duplicate of an earlier one."""


def read_boxes(
    content: CocoContent,
    references: References,
    findings: Findings,
    box_format: BoxFormat | None,
) -> tuple[dict[str, Tensor], LabelLedger]:
    """Clip the boxes to their images, and count what happens to them.

    Returns:
        `starts`, `boxes`, `categories`, `areas` and `crowds` of `CocoLabels`, with rows in the order of
        images; and the ledger.
    """
    bad_masks = _masks_of_another_size(content, references, findings)
    references = references._replace(sound=references.sound & ~bad_masks)
    boxes = _check_boxes(content.annotations, references, box_format or COCO)
    _note_boxes(boxes, content, findings)
    if box_format is None:
        sound = boxes.sound
        suspicion = suspect(boxes.xywh[sound], references.sizes[sound])
        if suspicion is not None:
            findings.fault(Kind.BOX_FORMAT, _describe_format(suspicion))
    if not findings.faults:
        _note_outlines(boxes, content, findings)
    rows = _sorted_rows(boxes, references, len(content.images))
    return rows, _account(boxes, content, findings)


def _check_boxes(
    records: Annotations,
    references: References,
    box_format: BoxFormat,
) -> CheckedBoxes:
    image_of, category_of, sound, sizes = references
    xywh = to_coco(records.bbox, sizes, box_format)
    starts = xywh[:, :2]
    with np.errstate(
        over="ignore"
    ):  # absurd sizes become infinite and are clipped
        ends = starts + xywh[:, 2:]
        corners = np.concatenate([starts, ends], 1)
        corners = corners.astype(np.float32)  # the stored precision
    limits = np.tile(sizes, 2)
    inside = np.clip(corners, 0, limits)
    flat = sound & _is_flat(corners)
    outside = sound & ~flat & _is_flat(inside)
    kept = sound & ~flat & ~outside
    overhang = abs(corners - inside)
    without_area = kept & np.isnan(records.area)
    large_area = kept & (records.area > 1.01 * sizes.prod(1))
    # some tools count the pixels on both edges
    extents = xywh[:, 2:].clip(max=LARGEST_SIDE)
    largest = OTHER_AREA * (extents + 1).prod(1)
    other_area = kept & ~large_area & (records.area > largest)
    areas_inside = (inside[:, 2:] - inside[:, :2]).prod(1)
    compute_area = without_area | large_area
    return CheckedBoxes(
        xywh=xywh,
        inside=inside,
        areas=np.where(compute_area, areas_inside, records.area),
        sound=sound,
        flat=flat,
        outside=outside,
        beyond=kept & (overhang > 0.5).any(1),
        kept=kept,
        without_area=without_area,
        large_area=large_area,
        other_area=other_area,
        crowds=records.iscrowd == 1,
        ignored=records.ignore == 1,
        repeated=_repeated_rows(image_of, category_of, xywh, kept),
    )


def _is_flat(corners: np.ndarray) -> np.ndarray:
    """Return a mask `[M]` of the boxes, xyxy, that have no area."""
    return np.any(corners[:, 2:] <= corners[:, :2], axis=1)


def _note_boxes(
    boxes: CheckedBoxes,
    content: CocoContent,
    findings: Findings,
) -> None:
    """Add a note for each kind of change, with the boxes that are changed or dropped."""
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
        (Kind.OTHER_AREA, boxes.other_area, records.area),
        (Kind.REPEATED_BOX, boxes.repeated, records.bbox),
        (Kind.IGNORED, boxes.kept & boxes.ignored, None),
    ):
        index = np.flatnonzero(mask)
        shown = None if details is None else details[index]
        findings.note(kind, "annotations", places[index], ids[index], shown)


def _note_outlines(
    boxes: CheckedBoxes, content: CocoContent, findings: Findings
) -> None:
    """Add a note about the boxes that hardly overlap with the box around their polygon or mask."""
    outlines = content.outlines
    places = content.places["annotations"]
    if outlines is None or not len(outlines.places) or not len(places):
        return
    rows = np.searchsorted(places, outlines.places).clip(max=len(places) - 1)
    usable = boxes.kept & ~_computed_boxes(content, findings)
    known = (places[rows] == outlines.places) & usable[rows]
    rows = rows[known]
    around = outlines.boxes[known].clip(-LARGEST_SIDE, LARGEST_SIDE)
    given = boxes.xywh[rows].clip(-LARGEST_SIDE, LARGEST_SIDE)
    start = np.maximum(given[:, :2], around[:, :2])
    end = np.minimum(given[:, :2] + given[:, 2:], around[:, :2] + around[:, 2:])
    common = (end - start).clip(0).prod(1)
    union = given[:, 2:].prod(1) + around[:, 2:].prod(1) - common
    differing = np.flatnonzero(common < OUTLINE_IOU * union)
    extent = "" if outlines.all_compared else f", first {COMPARED} compared"
    details = []
    for position in differing.tolist():
        numbers = ", ".join(f"{value:g}" for value in around[position])
        own = ", ".join(f"{value:g}" for value in given[position])
        details.append(f"[{own}], outline [{numbers}]{extent}")
    rows = rows[differing]
    findings.note(
        Kind.OTHER_OUTLINE,
        "annotations",
        places[rows],
        content.annotations.id[rows].clip(min=-1),
        np.array(details, object),
    )


def _account(
    boxes: CheckedBoxes,
    content: CocoContent,
    findings: Findings,
) -> LabelLedger:
    """Count the boxes that are lost, left out and changed."""
    kept = boxes.kept
    crowds = boxes.crowds
    ignored = boxes.ignored
    ledger = LabelLedger(findings.path, content.num_annotations)
    learned = kept & ~crowds & ~ignored
    computed = learned & _computed_boxes(content, findings)
    unusable = ledger.boxes - boxes.sound.sum()
    ledger.add(
        "faulty, or of an image or category that is not listed",
        unusable,
        "lost",
    )
    ledger.add("without area or reversed", boxes.flat.sum(), "lost")
    ledger.add("outside their image", boxes.outside.sum(), "lost")
    ledger.add("crowd regions", (kept & crowds).sum(), "left out")
    ledger.add(
        "flagged to be ignored", (kept & ignored & ~crowds).sum(), "left out"
    )
    ledger.add("computed from a polygon or mask", computed.sum(), "changed")
    ledger.add(
        "clipped to their image", (learned & boxes.beyond).sum(), "changed"
    )
    ledger.add(
        "listed more than once", (learned & boxes.repeated).sum(), "changed"
    )
    return ledger


def _computed_boxes(content: CocoContent, findings: Findings) -> np.ndarray:
    """Return a mask `[M]` of the boxes that were computed from a polygon or mask."""
    places = content.places["annotations"]
    computed = np.zeros(len(places), bool)
    for note in findings.notes:
        if note.kind == Kind.BOX_COMPUTED:
            computed |= np.isin(places, note.index)
    return computed


def _sorted_rows(
    boxes: CheckedBoxes,
    references: References,
    num_images: int,
) -> dict[str, Tensor]:
    """Return the boxes that are used, in the order of their images."""
    kept = np.flatnonzero(boxes.kept)
    image_of = references.image_of[kept]
    order = kept[np.argsort(image_of, kind="stable")]
    counts = np.bincount(image_of, minlength=num_images)
    crowds = boxes.crowds | boxes.ignored
    return {
        "starts": running_total(counts),
        "boxes": torch.from_numpy(boxes.inside[order].astype(np.float32)),
        "categories": torch.from_numpy(references.category_of[order]),
        "areas": torch.from_numpy(boxes.areas[order].astype(np.float32)),
        "crowds": torch.from_numpy(crowds[order]),
    }


def _masks_of_another_size(
    content: CocoContent,
    references: References,
    findings: Findings,
) -> np.ndarray:
    """Return a mask `[M]` of the boxes computed from a segmentation mask whose size differs from its image.

    Each of them is added as a fault.
    """
    places = content.places["annotations"]
    sizes = references.sizes
    bad = np.zeros(len(places), bool)
    if not content.mask_sizes:
        return bad
    for row, place in enumerate(places.tolist()):
        size = content.mask_sizes.get(place)
        if size is None or not references.sound[row]:
            continue
        width, height = map(int, sizes[row])
        if size == (width, height):
            continue
        bad[row] = True
        what = f"no box, and a mask of {size[0]} x {size[1]} pixels for an image of {width} x {height}"
        record_id = int(content.annotations.id[row])
        findings.fault(Kind.BAD_BOX, what, "annotations", place, record_id)
    return bad


def _describe_format(found: Suspicion) -> str:
    if not found.likely:
        return (
            f"{found.what}; COCO has [x, y, width, height] in pixels, and no other format fits either: "
            "were the images resized, or do boxes belong to other images?"
        )
    likely = found.likely[0]
    others = ""
    if len(found.likely) > 1:
        others = f" (or {', '.join(map(str, found.likely[1:3]))})"
    return (
        f"{found.what}, nearly all would fit as {likely}{others}; "
        "COCO has [x, y, width, height] in pixels: convert the file with "
        f"{command_name('check')} --fix DIR --boxes {likely.order} --units {likely.unit}, "
        f"or set dataset.box_order={likely.order} and dataset.box_unit={likely.unit}"
    )


def _repeated_rows(
    image_of: np.ndarray,
    category_of: np.ndarray,
    boxes: np.ndarray,
    considered: np.ndarray,
) -> np.ndarray:
    """Return a mask `[M]` of the boxes that have the image, category and numbers of an earlier one."""
    rows = np.flatnonzero(considered)
    bits = boxes[rows].view(np.int64).reshape(-1, 4)
    columns = np.column_stack([image_of[rows], category_of[rows], bits])
    # hash each row to one number, because sorting numbers is much faster than sorting rows
    key = np.zeros(len(rows), np.uint64)
    for column in columns.view(np.uint64).T:
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    mask = np.zeros(len(considered), bool)
    mask[rows[_repeated(key)]] = True
    return mask


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Return a mask of the ids that occurred before."""
    first = np.unique(ids, return_index=True)[1]
    mask = np.ones(len(ids), bool)
    mask[first] = False
    return mask


def running_total(counts: Iterable[int]) -> Tensor:
    """Return the cumulative sums of counts, beginning with 0: `[N + 1]` int64."""
    total = torch.tensor([0, *counts], dtype=torch.int64)
    return total.cumsum(0)
