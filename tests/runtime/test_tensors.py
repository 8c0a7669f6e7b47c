import torch

from src.runtime.tensors import group_by_dtype


def test_pairs_are_grouped_by_type_in_their_order():
    floats = [torch.zeros(2), torch.ones(3)]
    count = torch.zeros((), dtype=torch.int64)
    pairs = [(floats[0], 1), (count, 2), (floats[1], 3)]
    groups = group_by_dtype(pairs)
    assert [group.sources for group in groups] == [[1, 3], [2]]
    assert groups[0].targets[1] is floats[1]


def test_no_pairs_give_no_groups():
    assert group_by_dtype([]) == []
