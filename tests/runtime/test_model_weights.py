from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from src.core import CheckpointError
from src.core.errors import NumericsError
from src.runtime.model_weights import class_count, find_labels, load_strictly, read_weights


class Model(nn.Module):
    """Has the two kinds of entries that matter: class heads and a table made for an input size."""

    def __init__(self, classes: int = 3, tokens: int = 4) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.dec_score_head = nn.ModuleList([nn.Linear(2, classes)])
        self.decoder.register_buffer("anchors", torch.full((1, tokens, 4), float("inf")))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model": w},
        lambda w: w,
        lambda w: {"model": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {
            "ema": {"module": w, "updates": 5},
            "model": {k: torch.zeros_like(v) for k, v in w.items()},
        },
        lambda w: {"ema": {"module": {f"module.{k}": v for k, v in w.items()}}},
        lambda w: {"ema": None, "model": w},
    ],
    ids=["model", "bare", "module prefix", "ema over model", "ema with prefix", "no ema"],
)
def test_every_form_of_official_checkpoint_is_read(path, wrap):
    weights = Model().state_dict()
    torch.save(wrap(weights), path)
    read = read_weights(path).weights
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[k], weights[k]) for k in weights)


@pytest.mark.parametrize("content", [{}, [1, 2], {"foo": 1}, {"model": {}}, {"model": {"w": "text"}}])
def test_what_is_no_checkpoint_is_told_so(path, content):
    torch.save(content, path)
    with pytest.raises(
        CheckpointError,
        match="expected a checkpoint with 'model' or 'ema'|none of the keys 'model' and 'ema'",
    ):
        read_weights(path)


def test_weights_that_are_not_finite_are_refused_by_name(path):
    weights = Model().state_dict()
    weights["decoder.dec_score_head.0.weight"][0, 0] = float("nan")
    torch.save({"model": weights}, path)
    with pytest.raises(
        NumericsError, match=r"tensor decoder\.dec_score_head\.0\.weight holds values that are not finite"
    ):
        read_weights(path)


def test_strict_loading_lists_missing_and_unexpected_keys(path):
    weights = Model().state_dict()
    weights["extra"] = weights.pop("decoder.dec_score_head.0.weight")
    torch.save({"model": weights}, path)
    with pytest.raises(
        CheckpointError, match=r"1 missing \(decoder\.dec_score_head\.0\.weight\), 1 unexpected \(extra\)"
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
    assert (same.decoder.anchors == 1).all() and other.decoder.anchors.isinf().all()


def test_class_count_is_none_without_a_class_head():
    assert class_count({"w": torch.ones(3)}) is None


def known(*classes: tuple[int, str]) -> list[dict]:
    return [{"id": i, "name": n} for i, n in classes]


def labelled(categories: dict[int, str]) -> SimpleNamespace:
    """What `find_labels` looks at in a data set."""
    return SimpleNamespace(
        ann_file="labels.json",
        class_names=list(categories.values()),
        labels=SimpleNamespace(category_ids=list(categories)),
    )


def test_classes_that_a_checkpoint_does_not_know_are_named():
    with pytest.raises(
        CheckpointError,
        match=r"has classes that best\.pth was not trained with: dog \(id 7\); it knows cat, cow; use -t",
    ):
        find_labels(known((3, "cat"), (9, "cow")), Path("best.pth"), labelled({3: "cat", 7: "dog"}))


def test_names_that_repeat_are_told_apart_by_id():
    assert find_labels(
        known((3, "part"), (7, "part")), Path("best.pth"), labelled({3: "part", 7: "part"})
    ) == [0, 1]
