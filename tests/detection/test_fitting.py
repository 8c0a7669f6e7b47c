"""Weights of a file in a model: what fits, what is completed and what is refused."""

import pytest
import torch
from torch import nn

from src.core import CheckpointError
from src.detection.fitting import load_strictly
from src.detection.weight_file import read_weights


class Model(nn.Module):
    """Has the two kinds of entries that matter: class heads and a table made for an input size."""

    def __init__(self, classes: int = 3, tokens: int = 4) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.dec_score_head = nn.ModuleList([nn.Linear(2, classes)])
        self.decoder.register_buffer(
            "anchors", torch.full((1, tokens, 4), float("inf"))
        )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def test_strict_loading_lists_missing_and_unexpected_keys(path):
    weights = Model().state_dict()
    weights["extra"] = weights.pop("decoder.dec_score_head.0.weight")
    torch.save({"model": weights}, path)
    with pytest.raises(
        CheckpointError,
        match=r"1 missing \(decoder\.dec_score_head\.0\.weight\), 1 unexpected \(extra\)",
    ):
        load_strictly(Model(), read_weights(path))


def test_another_number_of_classes_is_named_with_the_way_out(path):
    torch.save({"model": Model(classes=80).state_dict()}, path)
    with pytest.raises(
        CheckpointError,
        match="has 80 classes, the configuration has 3; use -t to start from its weights with new classes",
    ):
        load_strictly(Model(), read_weights(path))


def test_stored_tables_are_kept_at_their_size_and_left_out_at_another(path):
    stored = Model()
    stored.decoder.anchors.fill_(1.0)
    torch.save({"model": stored.state_dict()}, path)
    same, other = Model(), Model(tokens=9)
    load_strictly(same, read_weights(path))
    load_strictly(other, read_weights(path))
    assert (
        same.decoder.anchors == 1
    ).all() and other.decoder.anchors.isinf().all()
