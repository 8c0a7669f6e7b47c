"""Counts with their nouns, for messages."""

from __future__ import annotations


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun.

    Args:
        count: number of things.
        singular: the noun for one of them.
        plural: the noun for several; None adds an "s".

    Example:
        >>> counted(1, "image"), counted(2_000, "image"), counted(0, "box", "boxes")
        ('1 image', '2,000 images', '0 boxes')
    """
    if count == 1:
        return f"1 {singular}"
    return f"{count:,} {plural or singular + 's'}"
