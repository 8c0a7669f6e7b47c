"""Start epoch and rate of each parameter in the groups of an optimizer."""

import pytest
import torch

from src.core.contracts import Learning
from src.optim.freezing import FROM_THE_START, learning_plan
from src.optim.param_groups import build_param_groups
from tests.fixtures.tiny import tiny_config

PHASES = {
    "freeze_backbone_epochs": 2,
    "unfreeze_blocks": 1,
    "unfreeze_lr_factor": 0.1,
}


@pytest.fixture(scope="module")
def phased():
    """A detector whose ViT is frozen at first."""
    return tiny_config(
        DINOv3Backbone=PHASES,
        optimizer={
            "params": [{"params": r"^backbone\.vit\.", "lr": 1e-3}],
            "decay_matrices_only": True,
            "lr": 0.01,
        },
    )


def group_of(groups) -> dict[int, dict]:
    return {id(p): group for group in groups for p in group["params"]}


def test_what_is_not_phased_learns_from_the_start_at_the_rate_of_its_group(
    phased,
):
    plan = learning_plan(phased.model)
    assert {
        plan[name] for name in plan if not name.startswith("backbone.vit.")
    } == {FROM_THE_START}


def test_blocks_that_unfreeze_later_are_in_the_optimizer_from_the_start(phased):
    groups = group_of(phased.optimizer.param_groups)
    thawing = [
        p
        for name, p in phased.model.named_parameters()
        if name.startswith(("backbone.vit.blocks.1.", "backbone.vit.norm."))
    ]
    assert thawing and not any(p.requires_grad for p in thawing)
    assert {
        (groups[id(p)]["thaw_epoch"], round(groups[id(p)]["lr"], 9))
        for p in thawing
    } == {(2, 1e-4)}


def test_blocks_that_never_unfreeze_are_not_in_the_optimizer(phased):
    groups = group_of(phased.optimizer.param_groups)
    assert not [
        name
        for name, p in phased.model.named_parameters()
        if name.startswith("backbone.vit.blocks.0.") and id(p) in groups
    ]


def test_groups_of_phases_are_disjoint_and_named_by_when_they_begin(phased):
    groups = phased.optimizer.param_groups
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members))
    assert [group["name"] for group in groups] == [
        r"^backbone\.vit\., x 0.1, from epoch 3",
        r"^backbone\.vit\., not decayed, x 0.1, from epoch 3",
        "the rest",
        "the rest, not decayed",
    ]


def test_groups_without_a_rate_of_their_own_scale_the_optimizers():
    model = tiny_config(DINOv3Backbone={"layer_decay": 0.5}).model
    groups = group_of(build_param_groups(model, None, lr=0.01))
    assert groups[id(model.backbone.vit.blocks[0].attn.qkv.weight)][
        "lr"
    ] == pytest.approx(0.01 * 0.5**2)
    assert groups[id(model.backbone.vit.blocks[1].attn.qkv.weight)][
        "lr"
    ] == pytest.approx(0.01 * 0.5)
    assert "lr" not in groups[id(model.decoder.dec_score_head[0].weight)]


def test_a_module_of_a_users_own_may_have_phases_too():
    class Late(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)

        def set_epoch(self, epoch):
            self.weight.requires_grad_(epoch >= 4)

        def learning_plan(self):
            return {"weight": Learning(4, 0.5)}

    model = torch.nn.ModuleDict(
        {"late": Late(), "early": torch.nn.Linear(2, 2)}
    )
    assert learning_plan(model) == {
        "early.weight": FROM_THE_START,
        "early.bias": FROM_THE_START,
        "late.weight": (4, 0.5),
    }


def test_an_optimizer_step_leaves_frozen_weights_bit_identical_although_they_are_in_a_group_with_decay():
    cfg = tiny_config(
        DINOv3Backbone=PHASES, optimizer={"lr": 0.1, "weight_decay": 0.5}
    )
    model, optimizer = cfg.model.train(), cfg.optimizer
    before = {name: p.clone() for name, p in model.named_parameters()}
    outputs = model(
        torch.rand(2, 3, 64, 64),
        targets=[
            {
                "labels": torch.tensor([0]),
                "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]),
            }
        ]
        * 2,
    )
    outputs["pred_logits"].sum().backward()
    optimizer.step()
    moved = {
        name
        for name, p in model.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert moved and not [
        name for name in moved if name.startswith("backbone.vit.")
    ]
