"""One rule for the score threshold."""

from src.detection.thresholds import DEFAULT_THRESHOLD, drawing_threshold


def test_the_threshold_with_the_best_f1_is_used_if_it_is_known():
    assert drawing_threshold(0.62) == 0.62 and drawing_threshold(0.0) == 0.0


def test_without_one_the_threshold_is_0_4():
    assert drawing_threshold(None) == DEFAULT_THRESHOLD == 0.4
