"""Names of losses and parameter groups that people recognize."""

import pytest
import torch
from torch import nn

from src.core.coco_metrics import METRICS
from src.solver.curve_names import (
    AP_TAGS,
    epoch_scalars,
    group_names,
    kind_of,
    sums_by_kind,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("loss_vfl", "vfl"),
        ("loss_mal_aux_0", "mal"),
        ("loss_bbox_pre", "bbox"),
        ("loss_giou_enc_0", "giou"),
        ("loss_fgl_dn_2", "fgl"),
        ("loss_ddf_dn_pre", "ddf"),
        ("loss_gram", "gram"),
        ("my_term", "my_term"),
        ("loss_", "loss_"),
    ],
)
def test_a_term_belongs_to_the_kind_of_all_its_layers(name, kind):
    assert kind_of(name) == kind


def test_the_kinds_add_up_to_the_loss():
    losses = {"loss_vfl": 1.0, "loss_vfl_dn_0": 2.0, "loss_bbox_aux_1": 4.0}
    assert sums_by_kind(losses) == {"vfl": 3.0, "bbox": 4.0}


def test_every_coco_metric_has_a_tag_of_its_own():
    assert set(METRICS) <= set(AP_TAGS)
    assert len(set(AP_TAGS.values())) == len(AP_TAGS)


def test_undefined_metrics_have_no_point():
    assert epoch_scalars({"AP50": None, "AP": 0.5}) == {"AP/50-95": 0.5}


class Parts(nn.Module):
    """A model with the parts of a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"vit": nn.Linear(2, 2), "adapter": nn.Linear(2, 2)}
        )
        self.encoder = nn.Linear(2, 2)
        self.decoder = nn.Linear(2, 2)


def names_of(model, *groups) -> list[str]:
    return group_names(model, groups)


def test_a_group_is_called_after_the_module_that_owns_its_parameters():
    model = Parts()
    names = names_of(
        model,
        {"params": list(model.backbone["vit"].parameters())},
        {"params": list(model.backbone.parameters())},
        {"params": [model.encoder.weight, model.decoder.weight]},
    )
    assert names == ["backbone.vit", "backbone", "encoder_decoder"]


def test_the_group_of_all_other_parameters_is_called_default():
    model = Parts()
    group = {"params": [model.encoder.weight], "name": "the rest, x 0.5"}
    assert names_of(model, group) == ["default"]


def test_groups_of_the_same_module_differ_by_decay_epoch_or_number():
    model = Parts()
    weight = {"params": [model.encoder.weight], "weight_decay": 0.1}
    bias = {"params": [model.encoder.bias], "weight_decay": 0.0}
    late = weight | {"thaw_epoch": 10}
    assert names_of(model, weight, bias, late, weight) == [
        "encoder",
        "encoder_no_decay",
        "encoder_from_epoch_11",
        "encoder_2",
    ]


def test_groups_of_a_projector_outside_the_model_have_a_name():
    group = {"params": [nn.Parameter(torch.ones(1))]}
    assert names_of(Parts(), group, group) == ["other", "other_2"]
