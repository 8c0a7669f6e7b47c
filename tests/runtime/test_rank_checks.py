"""Checks of the connection between ranks."""

import pytest
import torch
import torch.distributed as dist

from src.core.errors import RankError
from src.runtime import rank_checks
from src.runtime.checks import Skipped
from src.runtime.distributed import rank
from src.runtime.rank_checks import check_ranks
from tests.fixtures.processes import on_ranks

CPU = torch.device("cpu")


def test_a_single_process_has_nothing_to_connect(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(Skipped, match="torchrun --nproc_per_node=4 tools"):
        check_ranks(CPU)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(rank_checks, "_BYTES", {"cpu": 4096})
    monkeypatch.setattr(rank_checks, "_REPEATS", {"cpu": 2})


def test_every_pair_is_measured_and_all_ranks_know_the_result(small):
    found = on_ranks(3, lambda: check_ranks(CPU).numbers)
    for numbers in found:
        pairs = numbers["pairs_gb_per_second"]
        assert sorted(pairs) == ["0-1", "0-2", "1-2"]
        assert min(pairs.values()) > 0 and numbers["ranks"] == 3
    assert found[0]["pairs_gb_per_second"] == found[2]["pairs_gb_per_second"]


def test_with_many_ranks_only_neighbours_are_measured(small, monkeypatch):
    monkeypatch.setattr(rank_checks, "MOST_PAIRS", 2)
    (numbers, *_) = on_ranks(3, lambda: check_ranks(CPU).numbers)
    assert sorted(numbers["pairs_gb_per_second"]) == ["0-1", "1-2"]


def test_a_wrong_sum_and_values_that_change_on_the_way_are_reported(
    small, monkeypatch
):
    def wrong_sum():
        all_reduce = dist.all_reduce

        def add(values, **settings):
            all_reduce(values, **settings)
            values += 1

        dist.all_reduce = add
        with pytest.raises(RankError, match="expected 3") as caught:
            check_ranks(CPU)
        return str(caught.value)

    assert "the sum over 2 ranks is wrong" in on_ranks(2, wrong_sum)[0]

    def changed():
        send = dist.send
        if rank() == 1:
            dist.send = lambda values, other: send(values + 1, other)
        with pytest.raises(RankError, match="ranks 0-1 exchanged"):
            check_ranks(CPU)

    on_ranks(2, changed)
