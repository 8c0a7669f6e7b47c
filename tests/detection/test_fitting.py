"""Weights of a file in a model: what fits, what is completed and what is refused."""

import logging

import pytest
import torch
from torch import nn

from src.core import CheckpointError
from src.detection.fitting import describe_loading, load_strictly
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


class Shared(nn.Module):
    """Has a parameter under two names, norms that count batches, and a frozen norm in its backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.register_buffer("running_var", torch.ones(2))
        self.encoder = nn.BatchNorm1d(2)
        self.decoder = nn.Module()
        self.decoder.dec_score_head = nn.ModuleList([nn.Linear(2, 3)])
        box_head = nn.Linear(2, 2)
        self.decoder.dec_bbox_head = nn.ModuleList([box_head, box_head])


def shared_weights() -> dict[str, torch.Tensor]:
    return {key: value + 1 for key, value in Shared().state_dict().items()}


def test_the_second_name_of_a_parameter_is_filled_in(path):
    weights = shared_weights()
    del weights["decoder.dec_bbox_head.0.weight"]
    torch.save({"model": weights}, path)
    model = Shared()
    load_strictly(model, read_weights(path))
    assert torch.equal(
        model.decoder.dec_bbox_head[0].weight,
        weights["decoder.dec_bbox_head.1.weight"],
    )


def test_a_parameter_that_is_missing_under_all_its_names_is_missing(path):
    weights = shared_weights()
    for index in range(2):
        del weights[f"decoder.dec_bbox_head.{index}.weight"]
    torch.save({"model": weights}, path)
    with pytest.raises(CheckpointError, match="2 missing .decoder.dec_bbox_h"):
        load_strictly(Shared(), read_weights(path))


def test_batch_counts_are_filled_in_and_those_of_frozen_norms_left_out(path):
    weights = shared_weights()
    del weights["encoder.num_batches_tracked"]
    weights["backbone.num_batches_tracked"] = torch.tensor(5)
    torch.save({"model": weights}, path)
    model = Shared()
    load_strictly(model, read_weights(path))
    assert model.encoder.num_batches_tracked == 0


def test_one_line_accounts_for_every_tensor(path):
    weights = shared_weights()
    del weights["encoder.num_batches_tracked"]
    weights["backbone.num_batches_tracked"] = torch.tensor(5)
    weights["encoder.feature_projector.0.weight"] = torch.ones(1)
    weights["decoder.anchors"] = torch.ones(1)
    torch.save({"model": weights}, path)
    total = len(weights)
    line = describe_loading(read_weights(path), Shared(), "some.yml")
    assert "(D-FINE layout, 3 classes, some.yml)" in line
    assert f"{total} tensors, {total - 3} loaded, 3 dropped" in line
    assert "1 of RT-DETRv4's projection to its teacher" in line
    assert "1 batch counts of norms that this configuration freezes" in line
    assert "1 tables for another input size" in line
    assert "1 filled in" in line


def test_class_tensors_of_another_number_of_classes_are_counted_apart(path):
    weights = Model(classes=5).state_dict()
    torch.save({"model": weights}, path)
    line = describe_loading(read_weights(path), Model(classes=3), "some.yml")
    assert "3 tensors, 1 loaded, 2 class tensors loaded by class" in line


def test_another_scale_of_the_boxes_is_reported_and_used(path, caplog):
    models = [Model(), Model()]
    for model, scale in zip(models, (8, 4)):
        model.decoder.register_buffer("reg_scale", torch.tensor([scale]))
    torch.save({"model": models[0].state_dict()}, path)
    with caplog.at_level(logging.WARNING, "dfine"):
        load_strictly(models[1], read_weights(path))
    assert "has reg_scale 8, the configuration has 4" in caplog.text
    assert models[1].decoder.reg_scale == 8
