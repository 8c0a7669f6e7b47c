"""The epochs in which blocks of a DINOv3 backbone unfreeze, and their learning rates."""

import pytest
import torch

from src.core.durations import RunLength
from src.core.errors import ConfigError
from tests.fixtures.lengths import resolve_specification
from tests.fixtures.vits import GATED, small_backbone

RUN = RunLength(epochs=20, steps_per_epoch=10)
EMBEDDING = {
    "cls_token",
    "reg_token",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
}


def backbone(**settings):
    """A backbone with four blocks, all of them read, whose lengths are those of a configuration."""
    resolved = resolve_specification(
        {"type": "DINOv3Backbone", **settings}, RUN
    )
    return small_backbone(
        depth=4,
        tap_blocks=[1, 2, 3],
        **{k: v for k, v in resolved.items() if k != "type"},
    )


def blocks_by_epoch(made, epochs=20) -> list[int]:
    blocks = []
    for epoch in range(epochs):
        made.set_epoch(epoch)
        blocks.append(made.trainable_blocks)
    return blocks


def trained(made) -> set[str]:
    return {name for name, p in made.vit.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        ({}, [4] * 20),
        ({"freeze_backbone": True}, [0] * 20),
        ({"freeze_backbone_epochs": 0}, [4] * 20),
        ({"freeze_backbone_epochs": 0, "unfreeze_blocks": 2}, [4] * 20),
        ({"freeze_backbone_epochs": 10}, [0] * 10 + [4] * 10),
        (
            {"freeze_backbone_epochs": 10, "unfreeze_blocks": 2},
            [0] * 10 + [2] * 10,
        ),
        (
            {"freeze_backbone_epochs": 0.25, "unfreeze_blocks": 1},
            [0] * 5 + [1] * 15,
        ),
        (
            {"freeze_backbone_epochs": "30 steps", "unfreeze_blocks": 1},
            [0] * 3 + [1] * 17,
        ),
        (
            {"unfreeze_plan": [[2, 1], [0.5, 3], ["15 epochs", 4]]},
            [0] * 2 + [1] * 8 + [3] * 5 + [4] * 5,
        ),
        ({"unfreeze_plan": [[0, 2], [5, 4]]}, [2] * 5 + [4] * 15),
        (
            {"unfreeze_plan": [[0.01, 1], [0.02, 2], [1, 3]]},
            [0] + [3] * 19,
        ),  # all of them begin with epoch 1
    ],
)
def test_blocks_that_train_in_each_epoch(settings, blocks):
    assert blocks_by_epoch(backbone(**settings)) == blocks


def test_phase_b_thaws_the_last_blocks_and_the_final_norm_but_no_embedding():
    made = backbone(freeze_backbone_epochs=1, unfreeze_blocks=2)
    assert trained(made) == set()
    made.set_epoch(1)
    assert {
        name.split(".")[1]
        for name in trained(made)
        if name.startswith("blocks.")
    } == {"2", "3"}
    assert {
        name for name in trained(made) if not name.startswith("blocks.")
    } == {
        "norm.weight",
        "norm.bias",
    }


def test_embedding_and_tokens_thaw_with_the_first_block():
    made = backbone(unfreeze_plan=[[1, 3], [2, 4]])
    made.set_epoch(1)
    assert not trained(made) & EMBEDDING
    made.set_epoch(2)
    assert trained(made) >= EMBEDDING


def test_frozen_blocks_stay_in_eval_mode_when_the_model_is_put_in_training_mode():
    made = backbone(freeze_backbone_epochs=1, unfreeze_blocks=2).train()
    assert (
        not any(module.training for module in made.vit.modules())
        and made.adapter.training
    )
    made.set_epoch(1)
    assert [block.training for block in made.train().vit.blocks] == [
        False,
        False,
        True,
        True,
    ]


def test_a_frozen_vit_builds_no_graph_and_a_thawed_one_only_behind_the_frozen_blocks():
    made = backbone(freeze_backbone_epochs=1, unfreeze_blocks=1).train()
    depends = []
    made.vit.blocks[2].register_forward_hook(
        lambda module, inputs, output: depends.append(output.requires_grad)
    )
    made.vit.blocks[3].register_forward_hook(
        lambda module, inputs, output: depends.append(output.requires_grad)
    )
    made(torch.rand(1, 3, 64, 64))
    made.set_epoch(1)
    made(torch.rand(1, 3, 64, 64))
    assert depends == [False, False, False, True]


def test_the_plan_has_start_and_rate_of_every_trainable_parameter():
    plan = backbone(
        unfreeze_plan=[[5, 1], [10, 2]], unfreeze_lr_factor=0.1
    ).learning_plan()
    assert {
        name.split(".")[2] for name in plan if name.startswith("vit.blocks.")
    } == {
        "2",
        "3",
    }
    assert {
        tuple(learning)
        for name, learning in plan.items()
        if name.startswith(("vit.blocks.3.", "vit.norm."))
    } == {(5, 0.1)}
    assert {
        tuple(learning)
        for name, learning in plan.items()
        if name.startswith("vit.blocks.2.")
    } == {(10, 0.1)}


def test_asking_for_the_plan_changes_nothing():
    made = backbone(freeze_backbone_epochs=1).train()
    before = [
        (p.requires_grad, m.training)
        for m in made.modules()
        for p in m.parameters(recurse=False)
    ]
    made.learning_plan()
    assert [
        (p.requires_grad, m.training)
        for m in made.modules()
        for p in m.parameters(recurse=False)
    ] == before


def test_what_trains_from_the_start_knows_no_thawing_factor():
    plan = backbone(
        unfreeze_plan=[[0, 2], [5, 4]], unfreeze_lr_factor=0.1
    ).learning_plan()
    assert plan["vit.blocks.3.norm1.weight"] == (0, 1.0) and plan[
        "vit.blocks.0.norm1.weight"
    ] == (5, 0.1)


def test_layer_wise_decay_slows_each_block_by_one_factor_more_than_the_next():
    plan = backbone(layer_decay=0.5).learning_plan()
    factors = [
        plan[f"vit.blocks.{block}.norm1.weight"].factor for block in range(4)
    ]
    assert factors == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert plan["vit.norm.weight"].factor == 1.0
    assert {plan[f"vit.{name}"].factor for name in EMBEDDING} == {0.5**5}


def test_layer_wise_decay_counts_from_the_last_block_that_runs():
    made = small_backbone(depth=4, tap_blocks=[0, 1], layer_decay=0.5)
    plan = made.learning_plan()
    assert (
        plan["vit.blocks.1.norm1.weight"].factor == 0.5
        and "vit.blocks.2.norm1.weight" not in plan
    )


def test_layer_wise_decay_and_the_thawing_factor_multiply():
    plan = backbone(
        freeze_backbone_epochs=3, unfreeze_lr_factor=0.1, layer_decay=0.5
    ).learning_plan()
    assert plan["vit.blocks.2.norm1.weight"] == (3, pytest.approx(0.025))


def test_gated_mlps_thaw_too():
    made = backbone(
        model_name=GATED, freeze_backbone_epochs=1, unfreeze_blocks=1
    )
    made.set_epoch(1)
    assert {name for name in trained(made) if "fc1_g" in name} == {
        "blocks.3.mlp.fc1_g.weight",
        "blocks.3.mlp.fc1_g.bias",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"freeze_backbone": True, "freeze_backbone_epochs": 3},
            "each say when the ViT trains; give one of them",
        ),
        (
            {"freeze_backbone_epochs": 3, "unfreeze_plan": [[3, 2]]},
            "each say when the ViT trains; give one of them",
        ),
        (
            {"unfreeze_plan": [[3, 2]], "unfreeze_blocks": 2},
            "unfreeze_blocks has no meaning",
        ),
        (
            {"freeze_backbone_epochs": 3, "unfreeze_blocks": 5},
            r"\[0, 5\] trainable blocks in turn, expected numbers from 0 to 4",
        ),
        ({"unfreeze_plan": [[3, 2], [5, 1]]}, "that do not fall"),
        (
            {"unfreeze_plan": [[3]]},
            "expected pairs of when and how many of the last blocks",
        ),
        ({"unfreeze_plan": []}, "expected pairs"),
        (
            {"unfreeze_plan": [[5, 1], [5, 2]]},
            r"phases begin in epochs \[0, 5, 5\] \(from 0\), expected each after the one before",
        ),
        (
            {"freeze_backbone_epochs": 1.5},
            "freeze_backbone_epochs is 1.5, expected an integer number of epochs",
        ),
        (
            {"unfreeze_lr_factor": 0.0},
            "unfreeze_lr_factor is 0.0, expected above 0",
        ),
        (
            {"unfreeze_plan": [[5, 1], [0.2, 2]]},
            r"phases begin in epochs \[0, 5, 4\] \(from 0\), expected each after the one before",
        ),
        ({"layer_decay": 1.1}, "layer_decay is 1.1"),
        ({"lora_rank": 2, "freeze_backbone": True}, "no block is ever trained"),
        (
            {"lora_rank": 2, "unfreeze_plan": [[0, 0]]},
            "no block is ever trained",
        ),
    ],
)
def test_an_invalid_plan_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        backbone(**settings)


@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_gradient_checkpointing_gives_the_same_gradients_in_every_phase(blocks):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        made = backbone(
            unfreeze_plan=[[0, blocks]], gradient_checkpointing=checkpointing
        ).train()
        sum(
            level.square().sum()
            for level in made(
                torch.rand(
                    2, 3, 64, 64, generator=torch.Generator().manual_seed(1)
                )
            )
        ).backward()
        gradients.append(
            {
                name: p.grad
                for name, p in made.named_parameters()
                if p.grad is not None
            }
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert all(
        torch.equal(gradients[0][name], gradient)
        for name, gradient in gradients[1].items()
    )


def test_phases_that_a_short_run_lays_together_learn_from_one_epoch_on():
    made = backbone(unfreeze_plan=[[0.01, 1], [0.02, 2]])
    assert {
        learning.thaw_epoch for learning in made.learning_plan().values()
    } == {1}
    assert {
        name.split(".")[2]
        for name in made.learning_plan()
        if ".blocks." in name
    } == {"2", "3"}
