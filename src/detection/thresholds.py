"""The score threshold of pictures, reports and predictions: one rule for all of them."""

from __future__ import annotations

DEFAULT_THRESHOLD = 0.4
"""Minimum score if no better one is known, as in D-FINE's tools."""


def drawing_threshold(best_f1: float | None) -> float:
    """Return the minimum score of detections that are shown, unless the user chooses one.

    Example:
        >>> drawing_threshold(0.62), drawing_threshold(None)
        (0.62, 0.4)

    Args:
        best_f1: score threshold with the highest F1 on the validation data: that of the evaluation in a run,
            which is stored with its checkpoint, and the stored one afterwards. None if it is not known.
    """
    return DEFAULT_THRESHOLD if best_f1 is None else best_f1
