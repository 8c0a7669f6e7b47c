"""The plan of when, and at which rates, blocks of a ViT train, tested without a model."""

import pytest

from src.core.errors import ConfigError
from src.nn.backbone.thaw_plan import ThawPhase, ThawPlan, read_phases

EMBEDDING, NORM = "patch_embed.proj.weight", "norm.weight"


def plan(*phases, depth=4, **settings) -> ThawPlan:
    return ThawPlan(
        depth,
        tuple(ThawPhase(*phase) for phase in phases),
        **settings,
    )


def weight(block: int) -> str:
    return f"blocks.{block}.norm1.weight"


def settings(**given):
    return {
        "frozen": False,
        "frozen_epochs": 0,
        "blocks": None,
        "plan": None,
    } | given


@pytest.mark.parametrize(
    ("given", "phases"),
    [
        ({}, [(0, 4)]),
        ({"frozen": True}, [(0, 0)]),
        ({"frozen_epochs": 10}, [(0, 0), (10, 4)]),
        ({"frozen_epochs": 10, "blocks": 2}, [(0, 0), (10, 2)]),
        ({"blocks": 2}, [(0, 4)]),
        ({"plan": [[2, 1], [5, 3]]}, [(0, 0), (2, 1), (5, 3)]),
        ({"plan": [[0, 2], [5, 4]]}, [(0, 2), (5, 4)]),
    ],
)
def test_settings_describe_phases_that_begin_in_epoch_0(given, phases):
    assert list(read_phases(4, **settings(**given))) == phases


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"frozen": True, "frozen_epochs": 3},
            "each say when the ViT trains; give one of them",
        ),
        (
            {"frozen_epochs": 3, "plan": [[3, 2]]},
            "each say when the ViT trains; give one of them",
        ),
        ({"plan": [[3, 2]], "blocks": 2}, "unfreeze_blocks has no meaning"),
        (
            {"plan": []},
            "expected pairs of when and how many of the last blocks",
        ),
        (
            {"plan": [[3]]},
            "expected pairs of when and how many of the last blocks",
        ),
        (
            {"plan": [[3, 0.5]]},
            "expected pairs of when and how many of the last blocks",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        read_phases(4, **settings(**given))


@pytest.mark.parametrize(
    ("phases", "given", "message"),
    [
        (
            [(0, 0), (5, 2), (5, 3)],
            {},
            r"phases begin in epochs \[0, 5, 5\] \(from 0\)",
        ),
        (
            [(0, 0), (5, 2), (4, 3)],
            {},
            r"phases begin in epochs \[0, 5, 4\] \(from 0\)",
        ),
        (
            [(0, 3), (5, 2)],
            {},
            r"\[3, 2\] trainable blocks in turn, expected numbers from 0 to 4 that do not fall",
        ),
        ([(0, 5)], {}, r"\[5\] trainable blocks in turn"),
        ([(0, -1)], {}, r"\[-1\] trainable blocks in turn"),
        (
            [(0, 4)],
            {"lr_factor": 0.0},
            "unfreeze_lr_factor is 0.0, expected above 0",
        ),
        (
            [(0, 4)],
            {"layer_decay": 1.1},
            "layer_decay is 1.1, expected above 0, at most 1",
        ),
    ],
)
def test_invalid_plans_are_refused(phases, given, message):
    with pytest.raises(ConfigError, match=message):
        plan(*phases, **given)


@pytest.mark.parametrize(
    ("given", "reported"),
    [
        (
            {"blocks": 2},
            "unfreeze_blocks is 2, but freeze_backbone_epochs is 0, so all 4 blocks of the ViT are trained "
            "from the start; to train only the last 2, remove unfreeze_blocks and set unfreeze_plan to "
            "[[0, 2]]",
        ),
        (
            {"blocks": 2, "frozen": True},
            "unfreeze_blocks is 2, but freeze_backbone is set, so no block of the ViT is ever trained",
        ),
        ({"blocks": 4}, None),
        ({"blocks": 2, "frozen_epochs": 10}, None),
    ],
)
def test_a_number_of_blocks_without_effect_is_logged(given, reported, caplog):
    with caplog.at_level("WARNING"):
        read_phases(4, **settings(**given))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (reported is not None)
    assert reported is None or reported in messages[0]


def test_blocks_of_each_epoch():
    assert [
        plan((0, 0), (2, 1), (4, 3)).blocks_in(epoch) for epoch in range(6)
    ] == [
        0,
        0,
        1,
        1,
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("phases", "ever"),
    [([(0, 0)], False), ([(0, 0), (5, 1)], True), ([(0, 4)], True)],
)
def test_a_plan_states_whether_anything_is_ever_trained(phases, ever):
    assert plan(*phases).ever_learns is ever


@pytest.mark.parametrize(
    ("blocks", "trained"),
    [
        (0, []),
        (1, [weight(3), NORM]),
        (4, [EMBEDDING, *map(weight, range(4)), NORM]),
    ],
)
def test_the_last_blocks_train_with_the_norm_and_the_embedding_with_the_first(
    blocks, trained
):
    names = [EMBEDDING, *map(weight, range(4)), NORM]
    assert [
        name for name in names if plan((0, 4)).trains(name, blocks)
    ] == trained


def test_a_norm_that_is_not_used_never_trains():
    made = plan((0, 4), uses_final_norm=False)
    assert made.trains(weight(3), 4)
    assert not made.trains(NORM, 4)


def test_with_lora_only_the_factors_train():
    made = plan((0, 0), (1, 1), lora_only=True)
    names = [
        "blocks.3.attn.qkv.lora_up",
        "blocks.2.attn.qkv.lora_up",
        "blocks.3.attn.qkv.weight",
        NORM,
    ]
    assert [made.trains(name, 1) for name in names] == [
        True,
        False,
        False,
        False,
    ]


def test_what_thaws_learns_at_a_fraction_of_the_rate_and_what_trains_from_the_start_does_not():
    made = plan((0, 2), (5, 4), lr_factor=0.1)
    assert (made.learning(weight(3)), made.learning(weight(0))) == (
        (0, 1.0),
        (5, 0.1),
    )


def test_parameters_that_never_train_are_not_in_the_plan():
    assert plan((0, 0), (5, 2)).learning(weight(1)) is None


def test_layer_wise_decay_counts_from_the_last_block():
    made = plan((0, 3), depth=3, layer_decay=0.5)
    factors = [
        made.depth_factor(name)
        for name in (NORM, weight(2), weight(0), EMBEDDING)
    ]
    assert factors == [1.0, 0.5, 0.5**3, 0.5**4]


def test_layer_wise_decay_and_unfreeze_factor_multiply():
    assert plan((0, 0), (3, 4), lr_factor=0.1, layer_decay=0.5).learning(
        weight(2)
    ) == (
        3,
        pytest.approx(0.025),
    )
