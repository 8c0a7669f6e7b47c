import pytest
import torch

from src.nn.backbone.detail_branch import DetailBranch


@pytest.mark.parametrize(("deepest", "layers"), [(8, 3), (16, 4), (32, 5)])
def test_detail_branch_is_no_deeper_than_the_coarsest_map(deepest, layers):
    assert len(DetailBranch(4, deepest).layers) == layers


def test_detail_branch_gives_a_map_for_each_halving():
    branch = DetailBranch(4, 32)
    maps = branch(torch.rand(1, 3, 64, 96))
    assert {s: tuple(x.shape[1:]) for s, x in maps.items()} == {
        2: (4, 32, 48),
        4: (8, 16, 24),
        8: (16, 8, 12),
        16: (16, 4, 6),
        32: (16, 2, 3),
    }
