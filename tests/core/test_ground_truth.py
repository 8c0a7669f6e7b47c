"""The records that follow from the objects of an image."""

import torch

from src.core.ground_truth import Objects, coco_rows


def test_areas_of_a_data_set_count_if_it_has_them():
    objects = Objects(
        torch.tensor([[0.0, 0, 2, 2]]),
        torch.tensor([0]),
        areas=torch.tensor([3.0]),
    )
    assert [row["area"] for row in coco_rows(objects)] == [3]
