"""The recipes for detectors with a DINOv3 ViT have the values that were published for a ViT of the same size.

Sources of the values: the configurations of DEIMv2 (S, L and X) and of TinyFormer (Objects365).
"""

from __future__ import annotations

import re
import shlex
from typing import Any, NamedTuple

import pytest
import torch

from src.core import YAMLConfig
from src.core.config_file import parse_overrides
from src.core.durations import RunLength
from src.data.transforms import Mosaic
from tests.fixtures.golden import ROOT
from tests.fixtures.lengths import built_for

VIT = r"^backbone\.vit\."


class Recipe(NamedTuple):
    """Epochs and learning rates of a recipe."""

    epochs: int
    strong: int
    """First epoch of strong augmentation; before, images are only flipped."""
    mosaic_stop: int
    """First epoch without mosaic and mixup, and first one in which the rates decrease."""
    clean: int
    """First epoch of the final stage without strong augmentation."""
    lr: float
    vit_lr: float
    change_epoch: int | None = None
    """First epoch of the late matching cost."""


RECOMMENDED = Recipe(72, 4, 36, 64, 5e-4, 1.25e-5, 53)

RECIPES = {
    "dfine_dinov3_s2_coco": RECOMMENDED,
    "dfine_dinov3_s2_windows_coco": RECOMMENDED,
    "dfine_dinov3_s2_distill_coco": RECOMMENDED,
    "deim/dfine_dinov3_s_deim_coco": RECOMMENDED,
    "dfine_dinov3_t_coco": Recipe(132, 4, 64, 120, 5e-4, 2.5e-5, 100),
    "objects365/dfine_dinov3_s2_obj2coco": Recipe(24, 2, 12, 20, 2.5e-4, 5e-6),
    "deim/dfine_dinov3_s_deim_obj2coco": Recipe(24, 2, 12, 20, 2.5e-4, 5e-6),
    "custom/dfine_dinov3_s2_custom": Recipe(50, 2, 25, 45, 2.5e-4, 1e-5),
    "custom/dfine_dinov3_t_custom": Recipe(50, 2, 25, 45, 2.5e-4, 2e-5),
}

OBJECTS365 = (
    "objects365/dfine_dinov3_s2_obj365",
    "deim/dfine_dinov3_s_deim_obj365",
)

STRONG = ["RandomPhotometricDistort", "RandomZoomOut", "RandomIoUCrop"]


def settings(name: str) -> dict[str, Any]:
    return YAMLConfig(ROOT / f"configs/dfine/{name}.yml").yaml_cfg


def vit_rate(values: dict[str, Any]) -> float:
    (group,) = values["optimizer"]["params"]
    assert group["params"] == VIT
    return group["lr"]


@pytest.mark.parametrize("name", RECIPES)
def test_lengths_and_rates_of_a_recipe(name):
    values = settings(name)
    collate = values["train_dataloader"]["collate_fn"]
    run = RunLength(values["epochs"])
    change = values["DFINECriterion"]["matcher"]["matcher_change_epoch"]
    assert (
        Recipe(
            run.epochs,
            run.in_epochs(collate["mixup_epochs"][0], "start"),
            run.in_epochs(values["lr_scheduler"]["flat_epochs"], "flat"),
            run.in_epochs(collate["stop_epoch"], "stop"),
            values["optimizer"]["lr"],
            vit_rate(values),
            None if change is None else run.in_epochs(change, "change"),
        )
        == RECIPES[name]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_mosaic_mixup_and_copyblend_end_with_their_stages(name):
    data = settings(name)["train_dataloader"]
    collate = data["collate_fn"]
    start, stop = collate["mixup_epochs"]
    policy = data["dataset"]["transforms"]["policy"]
    assert policy["epoch"] == [start, stop, collate["stop_epoch"]]
    assert policy["ops"] == ["Mosaic", *STRONG]
    assert collate["copyblend_epochs"] == [start, collate["stop_epoch"]]
    assert data["dataset"]["transforms"]["mosaic_prob"] == 0.5
    assert collate["mixup_prob"] == 0.5


@pytest.mark.parametrize("name", RECIPES)
def test_copyblend_expands_what_it_copies_and_is_left_out_on_own_data(name):
    collate = settings(name)["train_dataloader"]["collate_fn"]
    assert collate["copyblend_prob"] == (
        0 if name.startswith("custom") else 0.5
    )
    assert collate["with_expand"] is True
    assert collate["expand_ratios"] == [0.1, 0.25]


@pytest.mark.parametrize("name", [*RECIPES, *OBJECTS365])
def test_all_blocks_of_the_vit_are_trained_from_the_first_step(name):
    backbone = settings(name)["DINOv3Backbone"]
    phases = ("freeze_backbone", "freeze_backbone_epochs", "unfreeze_plan")
    assert not [key for key in phases if backbone.get(key)]


@pytest.mark.parametrize("name", [*RECIPES, *OBJECTS365])
def test_the_class_loss_is_the_matchability_aware_loss(name):
    criterion = settings(name)["DFINECriterion"]
    assert criterion["losses"] == ["mal", "boxes", "local"]
    assert criterion["gamma"] == 1.5
    assert criterion["weight_dict"]["loss_mal"] == 1
    assert criterion["weight_dict"]["loss_vfl"] is None


@pytest.mark.parametrize("name", [*RECIPES, *OBJECTS365])
def test_rates_follow_the_square_root_of_the_batch_for_which_they_were_chosen(
    name,
):
    values = settings(name)
    batch = 16 if name.startswith("custom") else 32
    assert values["lr_scaling"] == "sqrt"
    assert values["lr_base_batch_size"] == batch
    assert values["train_dataloader"]["total_batch_size"] == batch


@pytest.mark.parametrize("name", OBJECTS365)
def test_objects365_is_trained_at_constant_rates_without_mixing_images(name):
    values = settings(name)
    data = values["train_dataloader"]
    ops = [op["type"] for op in data["dataset"]["transforms"]["ops"]]
    assert values["epochs"] == 24
    assert (values["optimizer"]["lr"], vit_rate(values)) == (5e-4, 1e-5)
    assert values["lr_scheduler"]["milestones"][0] > values["epochs"]
    assert ops[:3] == STRONG
    assert data["collate_fn"]["stop_epoch"] is None
    assert not {"mixup_prob", "copyblend_prob"} & set(data["collate_fn"])
    assert "matcher_change_epoch" not in values["DFINECriterion"]["matcher"]


@pytest.mark.parametrize("name", [name for name in RECIPES if "2coco" in name])
def test_coco_after_objects365_has_constant_rates_from_the_first_step(name):
    values = settings(name)
    assert values["lr_scheduler"]["lr_gamma"] == 1.0
    assert values["lr_warmup_scheduler"]["warmup_duration"] == 0
    assert values["ema"]["warmups"] == 0


@pytest.mark.parametrize("name", [name for name in RECIPES if "custom" in name])
def test_own_data_has_smaller_rates_in_earlier_blocks_and_an_ema_that_follows_the_run(
    name,
):
    values = settings(name)
    assert values["DINOv3Backbone"]["layer_decay"] == 0.8
    assert values["ema"]["decay"] is values["ema"]["warmups"] is None
    assert values.get("num_classes") is None


def test_the_command_for_lora_on_own_data_gives_its_factors_the_rate_of_the_rest():
    comment = (ROOT / "configs/dfine/include/own_data.yml").read_text()
    (command,) = re.findall(r"^# +-u (.*lora_rank.*)$", comment, re.MULTILINE)
    settings = [*shlex.split(command), "DINOv3Backbone.pretrained=False"]
    cfg = YAMLConfig(
        ROOT / "configs/dfine/custom/dfine_dinov3_s2_custom.yml",
        num_classes=3,
        **parse_overrides(settings),
    )
    cfg.resolve_lengths(RunLength(50, 10))
    with torch.device("meta"):
        optimizer = cfg.optimizer
    assert {group["lr"] for group in optimizer.param_groups} == {2.5e-4}


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("dfine_dinov3_l_coco", 0.025),
        ("objects365/dfine_dinov3_l_obj365", 0.025),
        ("objects365/dfine_dinov3_l_obj2coco", 0.025),
        ("dfine_dinov3_x_coco", 0.02),
        ("objects365/dfine_dinov3_x_obj365", 0.02),
        ("objects365/dfine_dinov3_x_obj2coco", 0.02),
        ("dfine_dinov3_vitsplus_coco", 0.02),
        ("dfine_dinov3_vitb_coco", 0.02),
        ("dfine_dinov3_vitl_coco", 0.01),
    ],
)
def test_the_rate_of_a_vit_is_the_published_fraction_of_the_other_rate(
    name, ratio
):
    values = settings(name)
    assert vit_rate(values) / values["optimizer"]["lr"] == pytest.approx(ratio)


def test_the_plan_of_phases_ends_with_all_blocks_and_has_layer_decay(tmp_path):
    folder = ROOT / "configs/dfine"
    file = tmp_path / "plan.yml"
    file.write_text(
        f"__include__: ['{folder}/dfine_dinov3_s_finetune_coco.yml', "
        f"'{folder}/include/dinov3_phase_plan.yml']\n"
    )
    cfg = YAMLConfig(
        file,
        DINOv3Backbone={"pretrained": False, "embed_dim": 24, "num_heads": 2},
    )
    plan = cfg.model.backbone.learning_plan()
    factors = [plan[f"vit.blocks.{block}.mlp.fc1.weight"] for block in (0, 11)]
    assert (factors[0].thaw_epoch, factors[1].thaw_epoch) == (4, 1)


@pytest.mark.parametrize("size", [512, 576, 640, 768])
@pytest.mark.parametrize(
    "name", ["dfine_dinov3_s2_coco", "dfine_dinov3_t_coco"]
)
def test_one_setting_changes_the_input_size_everywhere(name, size):
    cfg = YAMLConfig(
        ROOT / f"configs/dfine/{name}.yml",
        eval_spatial_size=[size, size],
        DINOv3Backbone={"pretrained": False},
    )
    values = cfg.yaml_cfg
    run = RunLength(values["epochs"])
    for part in ("train", "val"):
        transforms = values[f"{part}_dataloader"]["dataset"]["transforms"]
        compose = built_for(run, transforms)
        assert compose.output_size == (size, size)
        for op in compose.ops:
            if isinstance(op, Mosaic):
                assert op.output_size == size // 2
    assert values["train_dataloader"]["collate_fn"]["base_size"] == size
    with torch.device("meta"):
        model = cfg.model
    assert model.decoder.eval_spatial_size == (size, size)
    anchors = sum((size // stride) ** 2 for stride in (8, 16, 32))
    assert model.decoder.anchors.shape == (1, anchors, 4)
