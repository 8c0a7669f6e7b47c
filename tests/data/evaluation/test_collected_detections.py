"""Detections in arrays: they come back as they were given."""

import numpy as np
import pytest
import torch

from src.data.evaluation.collected_detections import CollectedDetections


def found(boxes, labels, dtype=torch.float32) -> dict:
    boxes = torch.tensor(boxes, dtype=dtype).reshape(-1, 4)
    return {
        "boxes": boxes,
        "scores": torch.linspace(1, 0.5, len(boxes), dtype=dtype),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


BATCH = {
    7: found([[1, 2, 4, 8], [0, 0, 1, 1]], [3, 5]),
    9: found([], []),
    8: found([[5, 5, 6, 7]], [3]),
}


def test_rows_have_start_size_score_and_category():
    collected = CollectedDetections()
    collected.add_predictions(BATCH)
    assert list(collected) == [7, 9, 8]
    assert collected[7].tolist() == [[1, 2, 3, 6, 1, 3], [0, 0, 1, 1, 0.5, 5]]
    assert collected[9].shape == (0, 6)
    assert collected[8].tolist() == [[5, 5, 1, 2, 1, 3]]
    assert collected[8].dtype == np.float64
    assert 10 not in collected
    with pytest.raises(KeyError):
        collected[10]


def test_an_image_that_was_added_before_is_skipped():
    collected = CollectedDetections()
    collected.add_predictions({8: BATCH[8]})
    collected.add_predictions({8: BATCH[7], 9: BATCH[9], 7: BATCH[7]})
    assert collected[8].tolist() == [[5, 5, 1, 2, 1, 3]]
    assert len(collected[7]) == 2
    arrays = CollectedDetections()
    arrays.add(collected.arrays())
    arrays.add(collected.arrays())
    assert len(arrays.arrays().values) == 3


def test_arrays_of_all_batches_are_in_the_order_in_which_they_came():
    collected = CollectedDetections()
    for image_id, one in BATCH.items():
        collected.add_predictions({image_id: one})
    arrays = collected.arrays()
    assert arrays.image_ids.tolist() == [7, 9, 8]
    assert arrays.counts.tolist() == [2, 0, 1]
    assert arrays.categories.tolist() == [3, 5, 3]
    assert collected[8].tolist() == [[5, 5, 1, 2, 1, 3]]


def test_without_images_the_arrays_are_empty():
    arrays = CollectedDetections().arrays()
    assert arrays.boxes_xywh.shape == (0, 4)
    assert len(arrays.scores) == len(arrays.image_ids) == 0


def test_float64_boxes_and_large_category_ids_are_kept_exactly():
    collected = CollectedDetections()
    one_third = 1 / 3
    boxes = [[one_third, 0, 1, 1]]
    collected.add_predictions({1: found(boxes, [2**40 + 1], torch.float64)})
    collected.add_predictions({2: BATCH[8]})
    assert collected.arrays().values.dtype == np.float64
    assert collected[1][0, 0] == one_third
    assert collected[1][0, 5] == 2**40 + 1


def test_float32_detections_need_28_bytes_each():
    collected = CollectedDetections()
    collected.add_predictions(BATCH)
    arrays = collected.arrays()
    assert arrays.values.nbytes + arrays.categories.nbytes == 3 * 28


def test_a_box_in_double_precision_keeps_it_beside_others_in_single():
    exact = 0.1 + 2**-40
    collected = CollectedDetections()
    collected.add_predictions(
        {
            1: found([[0, 0, 1, 1]], [3]),
            2: found([[0, 0, exact, 1]], [3], torch.float64),
        }
    )
    assert collected[2][0, 2] == exact
