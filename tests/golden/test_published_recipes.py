"""The recipes of DEIM, DEIMv2 and RT-DETRv4 have the published values, as far as these are known here."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from src.core import YAMLConfig
from tests.fixtures.golden import ROOT


class Recipe(NamedTuple):
    """Published values of one size."""

    epochs: int
    flat_epochs: int
    stop_epoch: int
    """First epoch of the final stage without strong augmentation."""
    lr: float
    backbone_lr: float
    weight_decay: float
    change_epoch: int | None = None
    """First epoch of the late matching cost."""


RECIPES = {
    "deim/deim_hgnetv2_s": Recipe(132, 64, 120, 4e-4, 2e-4, 1e-4),
    "deim/deim_hgnetv2_l": Recipe(58, 29, 50, 5e-4, 2.5e-5, 1.25e-4),
    "rtv4/rtv4_hgnetv2_s": Recipe(132, 64, 120, 4e-4, 2e-4, 1e-4),
    "rtv4/rtv4_hgnetv2_l": Recipe(58, 29, 50, 5e-4, 2.5e-5, 1.25e-4),
    "deimv2/deimv2_dinov3_s": Recipe(132, 64, 120, 5e-4, 2.5e-5, 1e-4, 100),
    "deimv2/deimv2_dinov3_m": Recipe(102, 49, 90, 5e-4, 2.5e-5, 1e-4, 80),
    "deimv2/deimv2_dinov3_l": Recipe(68, 34, 60, 5e-4, 1.25e-5, 1.25e-4, 50),
    "deimv2/deimv2_dinov3_x": Recipe(58, 29, 50, 5e-4, 1e-5, 1.25e-4, 45),
}

DISTILLATION = {
    "s": (5, 11, 1, 20),
    "m": (5, 3.5, 0.25, 15),
    "l": (15, 2, 0.1, 15),
    "x": (20, 2, 0.25, 20),
}
"""Start weight, share of the gradient in percent, its tolerance, and weight in the final stage."""


def settings(name: str, kind: str = "coco") -> dict[str, Any]:
    return YAMLConfig(ROOT / f"configs/{name}_{kind}.yml").yaml_cfg


@pytest.mark.parametrize("name", RECIPES)
def test_lengths_and_rates_are_the_published_ones(name):
    values = settings(name)
    optimizer = values["optimizer"]
    collate = values["train_dataloader"]["collate_fn"]
    matcher = values["DFINECriterion"]["matcher"]
    assert (
        Recipe(
            values["epochs"],
            values["lr_scheduler"]["flat_epochs"],
            collate["stop_epoch"],
            optimizer["lr"],
            optimizer["params"][0]["lr"],
            optimizer["weight_decay"],
            matcher["matcher_change_epoch"],
        )
        == RECIPES[name]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_mixing_ends_with_the_flat_part_and_strong_augmentation_with_stage_1(
    name,
):
    recipe = RECIPES[name]
    data = settings(name)["train_dataloader"]
    collate = data["collate_fn"]
    mixing = [4, recipe.flat_epochs]
    assert collate["mixup_epochs"] == mixing
    policy = data["dataset"]["transforms"]["policy"]
    assert policy["epoch"] == [*mixing, recipe.stop_epoch]
    assert data["total_batch_size"] == 32


@pytest.mark.parametrize("name", RECIPES)
def test_copyblend_with_expansion_is_part_of_deimv2_only(name):
    recipe = RECIPES[name]
    collate = settings(name)["train_dataloader"]["collate_fn"]
    if not name.startswith("deimv2"):
        assert collate["copyblend_prob"] == 0
        return
    assert collate["copyblend_prob"] == 0.5
    assert collate["copyblend_epochs"] == [4, recipe.stop_epoch]
    assert collate["with_expand"] is True
    assert collate["expand_ratios"] == [0.1, 0.25]


@pytest.mark.parametrize("name", RECIPES)
def test_the_class_loss_is_the_matchability_aware_loss(name):
    criterion = settings(name)["DFINECriterion"]
    assert criterion["losses"] == ["mal", "boxes", "local"]
    assert criterion["gamma"] == 1.5
    assert criterion["weight_dict"] == {
        "loss_vfl": None,
        "loss_mal": 1,
        "loss_bbox": 5,
        "loss_giou": 2,
        "loss_fgl": 0.15,
        "loss_ddf": 1.5,
    }


@pytest.mark.parametrize("size", "nsmlx")
def test_deim_trains_all_norms_and_has_silu_in_the_decoder(size):
    values = settings(f"deim/deim_hgnetv2_{size}")
    assert values["HGNetv2"]["freeze_at"] == -1
    assert values["HGNetv2"]["freeze_norm"] is False
    assert values["DFINETransformer"]["activation"] == "silu"
    assert values["DFINETransformer"]["mlp_act"] == "silu"


@pytest.mark.parametrize(
    ("size", "rescale"), [("s", None), ("l", 2.0), ("x", 2.0)]
)
def test_positions_of_the_vit_are_rescaled_in_l_and_x_only(size, rescale):
    backbone = settings(f"deimv2/deimv2_dinov3_{size}")["DINOv3Backbone"]
    assert backbone.get("rope_rescale_coords") == rescale


@pytest.mark.parametrize("size", ["pico", "femto", "atto"])
def test_the_small_models_have_neither_local_losses_nor_a_union_of_matchings(
    size,
):
    criterion = settings(f"deimv2/deimv2_hgnetv2_{size}")["DFINECriterion"]
    assert criterion["losses"] == ["mal", "boxes"]
    assert criterion["use_uni_set"] is False


@pytest.mark.parametrize("size", DISTILLATION)
def test_rt_detrv4_has_the_published_weights_of_its_distillation(size):
    block = settings(f"rtv4/rtv4_hgnetv2_{size}")["distillation"]
    keys = ("weight", "share", "tolerance", "default_weight")
    assert tuple(block[key] for key in keys) == DISTILLATION[size]
    assert block["teacher"] == "dinov3_base"


@pytest.mark.parametrize("name", RECIPES)
def test_all_lengths_of_a_recipe_for_own_data_follow_the_number_of_epochs(name):
    values = settings(name, "custom")
    collate = values["train_dataloader"]["collate_fn"]
    policy = values["train_dataloader"]["dataset"]["transforms"]["policy"]
    lengths = [
        *policy["epoch"],
        *collate["mixup_epochs"],
        *collate["copyblend_epochs"],
        collate["stop_epoch"],
        values["lr_scheduler"]["flat_epochs"],
        values["lr_scheduler"]["end_epoch"],
        values["lr_warmup_scheduler"]["warmup_duration"],
        values["DFINECriterion"]["matcher"]["matcher_change_epoch"] or 0.0,
    ]
    assert all(isinstance(length, float) for length in lengths)
    assert all(0 <= length < 1 for length in lengths)
    assert values["ema"]["decay"] is None
    assert values["ema"]["warmups"] is None
