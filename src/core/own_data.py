"""Check the return values of a user's own data set; faults are reported with class, method and index."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

from .counts import counted
from .errors import ConfigError, DataError, RunError, first_line
from .fault_lists import listed

DATA_GUIDE = "'A data set of your own' in docs/data.md"
"""Where a user reads what a data set needs."""

_SYSTEM_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
"""Errors of the machine, not of the data set."""

Result = TypeVar("Result")


def call(data: object, method: Callable[[int], Result], index: int) -> Result:
    """Call a method of a data set for an image.

    Raises:
        DataError: with the class, the method and the index, if the method raises another exception than this
            project's own.
    """
    try:
        return method(index)
    except (RunError, MemoryError):  # these have their own exit codes
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _SYSTEM_LIMITS:
            raise
        raise DataError(
            f"{place(data, method.__name__, index)} raised {type(error).__name__}: {first_line(error)}; "
            f"see {DATA_GUIDE}"
        ) from error


def place(data: object, method: str, index: int) -> str:
    """Return the name of a call in messages, such as `TableDetection.objects(3)`."""
    return f"{type(data).__name__}.{method}({index})"


def check_class_names(data: object, names: Any) -> None:
    """Check that class names are a list of different texts.

    Raises:
        ConfigError: if they are not.
    """
    who = f"{type(data).__name__}.class_names"
    if not isinstance(names, Sequence) or isinstance(names, str):
        raise ConfigError(
            f"{who} is a {type(names).__name__}, expected a list of names in the order of the labels"
        )
    wrong = [
        repr(name) for name in names if not isinstance(name, str) or not name
    ]
    if wrong or not names:
        raise ConfigError(
            f"{who} has {listed(wrong, ', ') if wrong else 'no name'}, expected texts; see {DATA_GUIDE}"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"{who} has {listed(repeated, ', ')} more than once; names identify classes"
        )


def check_category_ids(data: object, ids: Any, names: Sequence[str]) -> None:
    """Check that each class has its own category id.

    Raises:
        ConfigError: if it does not.
    """
    found = list(ids)
    are_different = len(set(found)) == len(found)
    are_integers = all(map(_is_integer, found))
    if not are_integers or not are_different or len(found) != len(names):
        raise ConfigError(
            f"{type(data).__name__}.category_ids is {found[:10]}, expected {len(names)} different integers, "
            "one for each name in class_names"
        )


def check_length(data: Any) -> None:
    """Check that a data set has images.

    Raises:
        DataError: if `__len__` does not return an integer above 0.
    """
    count = data.__len__()
    if not isinstance(count, Integral) or count < 1:
        raise DataError(
            f"{type(data).__name__}.__len__ returned {count!r}, expected the number of images, at least 1; "
            f"see {DATA_GUIDE}"
        )


def check_objects(
    where: str, objects: Any, kind: type, num_classes: int
) -> None:
    """Check that the objects of an image have the types and shapes of the contract.

    Args:
        where: the call that returned the objects, used in messages.
        objects: the returned value.
        kind: `core.ground_truth.Objects`.
        num_classes: number of names in `class_names`.

    Raises:
        DataError: with the value that was found and the expected one.
    """
    if not isinstance(objects, kind):
        _refuse(where, f"a {type(objects).__name__}", "Objects(boxes, labels)")
    parts = {"boxes": objects.boxes, "labels": objects.labels}
    for name in ("ignored", "areas"):
        value = getattr(objects, name)
        if value is not None:
            parts[name] = value
    for name, value in parts.items():
        if not isinstance(value, Tensor):
            _refuse(
                where,
                f"{name} as a {type(value).__name__}",
                f"{name} as a torch.Tensor",
            )
    count = len(objects.boxes)
    if objects.boxes.ndim != 2 or objects.boxes.shape[1] != 4:
        _refuse(
            where,
            f"boxes of shape {list(objects.boxes.shape)}",
            "[T, 4]: x1, y1, x2, y2 in pixels ([0, 4] without objects)",
        )
    for name in ("labels", "ignored", "areas"):
        value = parts.get(name)
        if value is not None and value.shape != (count,):
            _refuse(
                where,
                f"{name} of shape {list(value.shape)} for {counted(count, 'box', 'boxes')}",
                f"[{count}]",
            )
    _check_types(where, parts)
    _check_values(where, objects, num_classes)


def _check_types(where: str, parts: dict[str, Tensor]) -> None:
    labels = parts["labels"]
    ignored = parts.get("ignored")
    if len(labels) and (
        labels.is_floating_point() or labels.dtype == torch.bool
    ):
        _refuse(
            where,
            f"labels of type {labels.dtype}",
            "integers, positions in class_names",
        )
    if ignored is not None and ignored.dtype != torch.bool:
        _refuse(where, f"ignored of type {ignored.dtype}", "torch.bool")


def _check_values(where: str, objects: Any, num_classes: int) -> None:
    boxes = objects.boxes.detach().double()
    labels = objects.labels
    if not bool(torch.isfinite(boxes).all()):
        _refuse(where, "boxes with NaN or infinity", "x1, y1, x2, y2 in pixels")
    _check_label_range(where, labels, num_classes)
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if bool(flat.any()):
        _refuse(
            where,
            f"the box {boxes[flat][0].tolist()}",
            "x1, y1, x2, y2 with x2 > x1 and y2 > y1, in pixels: are these x, y, width, height?",
        )


def check_boxes_inside(
    where: str, boxes: Tensor, width: int, height: int
) -> None:
    """Check that boxes are inside their image; a tenth of its size is tolerated on each side.

    Args:
        where: the call that returned the boxes, used in messages.
        boxes: `[T, 4]` xyxy in pixels.
        width: width of the image in pixels.
        height: height of the image in pixels.

    Raises:
        DataError: if a box extends further beyond its image, or all boxes are fractions.
    """
    if not len(boxes):
        return
    values = boxes.detach().double()
    are_small = float(values.abs().max()) <= 1.01
    has_fractions = bool((values % 1 != 0).any())
    if are_small and has_fractions and min(width, height) > 4:
        _refuse(
            where,
            f"boxes with numbers from 0 to 1, such as {values[0].tolist()}",
            "pixels of the image file",
        )
    size = torch.tensor([width, height], dtype=torch.float64)
    over = torch.maximum(-values[:, :2], values[:, 2:] - size)
    outside = (over > 0.1 * size + 1).any(1)
    if bool(outside.any()):
        _refuse(
            where,
            f"the box {values[outside][0].tolist()}",
            f"x1, y1, x2, y2 within the image of {width} x {height} pixels",
        )


def check_image(where: str, image: Any) -> None:
    """Check that `load_image` returned `[3, H, W]` uint8.

    Raises:
        DataError: if it did not.
    """
    expected = (
        "a torch.Tensor [3, H, W] uint8 with the channels red, green, blue"
    )
    if not isinstance(image, Tensor):
        _refuse(where, f"a {type(image).__name__}", expected)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        _refuse(
            where,
            f"a tensor {list(image.shape)} of type {image.dtype}",
            expected,
        )


def check_item(
    where: str, item: Any, num_classes: int, *, training: bool
) -> None:
    """Check that an item of a data set can be put into a batch.

    Args:
        where: the call that returned the item, used in messages.
        item: return value of `__getitem__`.
        num_classes: C.
        training: whether boxes must be cxcywh in 0..1.

    Raises:
        DataError: with the value that was found and the expected one.
    """
    if (
        not isinstance(item, tuple)
        or len(item) != 2
        or not isinstance(item[1], dict)
    ):
        _refuse(
            where,
            f"a {type(item).__name__}",
            "an image and its target, a dict with boxes and labels",
        )
    image, target = item
    expected = "a torch.Tensor [3, H, W] of floats from 0 to 1"
    if not isinstance(image, Tensor):
        _refuse(where, f"an image as a {type(image).__name__}", expected)
    if not image.is_floating_point() or image.ndim != 3 or image.shape[0] != 3:
        _refuse(
            where,
            f"an image {list(image.shape)} of type {image.dtype}",
            expected,
        )
    if float(image.max()) > 32:
        _refuse(
            where,
            f"an image with values up to {float(image.max()):g}",
            expected,
        )
    needed = ["boxes", "labels"]
    if not training:
        needed += ["image_id", "orig_size"]
    for key in needed:
        if not isinstance(target.get(key), Tensor):
            _refuse(
                where,
                f"a target whose {key} is {type(target.get(key)).__name__}",
                f"a torch.Tensor {key}",
            )
    boxes = target["boxes"]
    labels = target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != (len(boxes),):
        _refuse(
            where,
            f"boxes {list(boxes.shape)} and labels {list(labels.shape)}",
            "[T, 4] and [T]",
        )
    _check_label_range(where, labels, num_classes)
    if training and len(boxes) and float(boxes.max()) > 2:
        _refuse(
            where,
            f"the box {boxes[0].tolist()}",
            "center x, center y, width, height in 0..1 of the image",
        )


def _check_label_range(where: str, labels: Tensor, num_classes: int) -> None:
    if not len(labels):
        return
    lowest = int(labels.min())
    highest = int(labels.max())
    if lowest < 0 or highest >= num_classes:
        _refuse(
            where,
            f"labels from {lowest} to {highest}",
            f"0 to {num_classes - 1}, positions in class_names",
        )


def _refuse(where: str, found: str, expected: str) -> None:
    raise DataError(
        f"{where} returned {found}, expected {expected}; see {DATA_GUIDE}"
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
