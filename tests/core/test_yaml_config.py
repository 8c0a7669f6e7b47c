"""One run's configuration."""

import copy
import random
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from src.core import YAMLConfig, register
from src.core.config_file import parse_overrides
from src.core.durations import RunLength
from src.core.errors import ConfigError
from src.core.yaml_text import dump_yaml, parse_yaml
from tests.fixtures.config_files import (
    CONFIGS,
    config_from,
    model_configs,
    write_configs,
)
from tests.fixtures.tiny import ROOT, TINY_MODEL, merged, tiny_config


@pytest.mark.parametrize(
    "path",
    model_configs(),
    ids=lambda path: str(path.relative_to(CONFIGS / "dfine")),
)
def test_every_configuration_of_the_project_is_valid_and_its_resolved_form_loads_to_the_same(
    path, tmp_path
):
    first = YAMLConfig(path)
    first.save(tmp_path / "config.yml")
    assert YAMLConfig(tmp_path / "config.yml").yaml_cfg == first.yaml_cfg


def test_the_29_official_configurations_are_there():
    assert (
        len(
            [
                path
                for path in model_configs()
                if "hgnetv2" in path.name
                and not re.search("scratch|deim", path.name)
            ]
        )
        == 29
    )


def test_settings_have_defaults(tmp_path):
    settings = config_from(tmp_path, "").settings
    assert (
        settings.epochs,
        settings.use_amp,
        settings.seed,
        settings.output_dir,
    ) == (
        72,
        False,
        None,
        "./output",
    )


def test_settings_come_from_the_file(tmp_path):
    settings = config_from(
        tmp_path, "epochs: 7\nuse_ema: True\nclip_max_norm: 0.1\n"
    ).settings
    assert (settings.epochs, settings.use_ema, settings.clip_max_norm) == (
        7,
        True,
        0.1,
    )


def test_overrides_win_over_the_file(tmp_path):
    cfg = config_from(
        tmp_path,
        "epochs: 7\noptimizer: {type: AdamW, lr: 1, eps: 2}\n",
        **parse_overrides(["epochs=3", "optimizer.lr=1e-4"]),
    )
    assert (cfg.settings.epochs, cfg.yaml_cfg["optimizer"]) == (
        3,
        {"type": "AdamW", "lr": 1e-4, "eps": 2},
    )


def test_override_of_the_input_size_reaches_every_place_that_refers_to_it():
    cfg = YAMLConfig(
        CONFIGS / "dfine/dfine_dinov3_s_coco.yml",
        **parse_overrides(["eval_spatial_size=[320, 480]"]),
    )
    loaders = [cfg.yaml_cfg[f"{part}_dataloader"] for part in ("train", "val")]
    sizes = [
        op["size"]
        for loader in loaders
        for op in loader["dataset"]["transforms"]["ops"]
        if op["type"] == "Resize"
    ]
    assert (sizes, loaders[0]["collate_fn"]["base_size"]) == (
        [[320, 480], [320, 480]],
        320,
    )


def test_loading_one_configuration_leaves_the_next_untouched():
    path = CONFIGS / "dfine/dfine_hgnetv2_l_coco.yml"
    alone = YAMLConfig(path).yaml_cfg
    YAMLConfig(
        CONFIGS / "dfine/dfine_hgnetv2_n_coco.yml", epochs=3, num_classes=7
    )
    assert YAMLConfig(path).yaml_cfg == alone


def test_building_does_not_change_the_configuration():
    cfg = tiny_config()
    cfg.resolve_lengths(RunLength(12, 63))
    before = cfg.to_yaml()
    _ = (
        cfg.model,
        cfg.criterion,
        cfg.optimizer,
        cfg.lr_warmup_scheduler,
        cfg.ema,
        cfg.postprocessor,
    )
    assert cfg.to_yaml() == before


def test_nothing_is_built_while_loading(tmp_path):
    built = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "src.core.yaml_config.create",
            lambda *args, **kwargs: built.append(args),
        )
        tiny_config()
    assert built == []


def test_parts_are_built_once():
    cfg = tiny_config()
    assert cfg.model is cfg.model


def test_optimizer_is_over_the_parameters_of_the_model():
    cfg = tiny_config()
    learning = {
        id(p) for group in cfg.optimizer.param_groups for p in group["params"]
    }
    assert learning == {
        id(p) for p in cfg.model.parameters() if p.requires_grad
    }


def test_average_is_left_out_by_default():
    assert tiny_config(use_ema=False).ema is None


def test_part_that_no_block_describes_is_none(tmp_path):
    cfg = config_from(tmp_path, "epochs: 3\n")
    assert (cfg.lr_warmup_scheduler, cfg.scaler("cpu")) == (None, None)


@pytest.mark.parametrize("key", ["train_dataloader", "val_dataloader"])
def test_a_loader_that_is_missing_is_named(tmp_path, key):
    with pytest.raises(
        ConfigError,
        match=f"has no '{key}', a loader such as DataLoader with a dataset$",
    ):
        getattr(config_from(tmp_path, "epochs: 3\n"), key)


def test_a_checkpoint_with_a_data_set_that_is_not_imported_can_be_used(
    tmp_path,
):
    text = "train_dataloader: {type: DataLoader, dataset: {type: NotImported, table: a.csv}}\nepochs: 3\n"
    assert YAMLConfig.from_text(text, "best.pth").yaml_cfg == {"epochs": 3}


def test_a_checkpoint_cannot_run_python_files():
    with pytest.raises(
        ConfigError,
        match="^best.pth contains __import__, which is allowed only in configuration files",
    ):
        YAMLConfig.from_text("__import__: [my_data.py]\n", "best.pth")


@pytest.mark.parametrize("key", ["model", "criterion", "postprocessor"])
def test_missing_part_is_named_when_requested(tmp_path, key):
    cfg = config_from(tmp_path, "epochs: 3\n")
    with pytest.raises(ConfigError) as caught:
        getattr(cfg, key)
    assert (
        str(caught.value)
        == f"{tmp_path / 'config.yml'} names no '{key}'; set it to a registered class such as DFINE"
    )


def test_model_that_is_not_registered_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match="^'DFNE' is not registered; did you mean 'DFINE'\\?$"
    ):
        _ = config_from(tmp_path, "model: DFNE\n").model


def test_value_found_by_the_program_is_set_with_its_reason(tmp_path):
    cfg = config_from(tmp_path, "epochs: 3\n")
    cfg.set("num_classes", 5, "counted in labels.json")
    assert (cfg.yaml_cfg["num_classes"], cfg.origin("num_classes")) == (
        5,
        "counted in labels.json",
    )


def test_start_weights_can_be_switched_off():
    cfg = YAMLConfig(CONFIGS / "dfine/dfine_hgnetv2_n_coco.yml")
    cfg.without_pretrained()
    assert (
        cfg.yaml_cfg["HGNetv2"]["pretrained"],
        cfg.yaml_cfg["HGNetv2"]["name"],
    ) == (
        False,
        "B0",
    )


def test_resolved_configuration_keeps_words_that_look_like_numbers(tmp_path):
    first = config_from(
        tmp_path, "exp_name: '1e-4'\nproject_name: 'yes'\noutput_dir: '012'\n"
    )
    assert config_from(tmp_path, first.to_yaml()).settings == first.settings


def test_resolved_configuration_holds_no_references():
    assert (
        "${"
        not in YAMLConfig(CONFIGS / "dfine/dfine_dinov3_s_coco.yml").to_yaml()
    )


def test_every_class_is_registered_by_the_configuration_alone():
    code = "from src.core import YAMLConfig; import sys; YAMLConfig(sys.argv[1]); print('loaded')"
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            str(CONFIGS / "dfine/dfine_dinov3_s_coco.yml"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "loaded\n", run.stderr


class TestUsersOwnBackbone:
    """A backbone file of a user's drops in by registering a class and naming it in YAML."""

    @pytest.fixture(autouse=True)
    def backbone(self, own_registry):
        @register()
        class OwnBackbone(nn.Module):
            __share__ = ["eval_spatial_size"]

            def __init__(
                self,
                width: int = 16,
                eval_spatial_size: list[int] | None = None,
            ) -> None:
                super().__init__()
                self.sizes = eval_spatial_size
                self.stem = nn.Conv2d(3, width, 8, stride=8)
                self.down = nn.ModuleList(
                    nn.Conv2d(width, width, 2, stride=2) for _ in range(2)
                )

            def forward(self, images):
                maps = [self.stem(images)]
                for layer in self.down:
                    maps.append(layer(maps[-1]))
                return maps

    def config(self, **changes) -> YAMLConfig:
        return tiny_config(
            **merged(
                {
                    "DFINE": {"backbone": "OwnBackbone"},
                    "OwnBackbone": {"width": 24},
                    "HybridEncoder": {"in_channels": [24, 24, 24]},
                },
                changes,
            )
        )

    def test_model_detects_with_it(self):
        output = self.config().model.eval()(torch.rand(2, 3, 64, 64))
        assert output["pred_boxes"].shape == (
            2,
            TINY_MODEL["DFINETransformer"]["num_queries"],
            4,
        )

    def test_shared_value_reaches_it(self):
        assert self.config().model.backbone.sizes == [64, 64]

    def test_misspelt_argument_of_it_is_found(self):
        with pytest.raises(
            ConfigError,
            match="unknown key 'OwnBackbone.widht' \\(command line\\); did you mean 'width'\\?",
        ):
            self.config(OwnBackbone={"widht": 3})


def test_official_style_file_with_unused_sections_loads(tmp_path):
    path = write_configs(
        tmp_path,
        base="use_focal_loss: True\nHungarianMatcher: {alpha: 0.25}\n",
        main="__include__: ['./base.yml']\nnum_classes: 5\n",
    )
    assert parse_yaml(YAMLConfig(path).to_yaml(), "test")[0] == {
        "use_focal_loss": True,
        "HungarianMatcher": {"alpha": 0.25},
        "num_classes": 5,
    }


def test_malformed_configurations_load_or_are_refused(tmp_path):
    """Values and keys changed at random: no exception but a `ConfigError`."""
    rng, refusals = random.Random(0), 0
    junk = [
        None,
        -1,
        0,
        1e30,
        True,
        "x",
        "",
        [],
        [1],
        {},
        {"type": "DFINE"},
        {"type": 5},
        "${epochs}",
        "${nothing}",
        [None],
        [{"type": "Resize"}],
    ]
    for _ in range(80):
        values = copy.deepcopy(tiny_config().yaml_cfg)
        for _ in range(rng.choice([1, 3])):
            place = values
            while True:
                key = (
                    rng.choice(list(place))
                    if isinstance(place, dict)
                    else rng.randrange(len(place))
                )
                if (
                    not isinstance(place[key], (dict, list))
                    or not place[key]
                    or rng.random() < 0.2
                ):
                    break
                place = place[key]
            if isinstance(place, dict) and rng.random() < 0.3:
                place[f"{key}s"] = place.pop(key)
            else:
                place[key] = rng.choice(junk)
        try:
            config_from(tmp_path, dump_yaml(values))
        except ConfigError:
            refusals += 1
    assert refusals > 40


AS_ASKED_FOR = """
__include__: ["{configs}/dfine/dfine_hgnetv2_l_coco.yml"]
DFINE: {{backbone: DINOv3Backbone}}
DINOv3Backbone:
  model_name: dinov3_small
  pretrained: True
  out_channels: {channels}
  feat_strides: [8, 16, 32]
HybridEncoder:
  in_channels: {channels}
  feat_strides: [8, 16, 32]
"""
"""D-FINE-L with another backbone, as one writes it for any backbone that has a width for each stride."""


@pytest.mark.parametrize("channels", [[256, 256, 256], [128, 256, 384]])
def test_a_backbone_with_a_width_for_each_stride_takes_the_place_of_hgnetv2(
    tmp_path, channels
):
    cfg = config_from(
        tmp_path, AS_ASKED_FOR.format(configs=CONFIGS, channels=channels)
    )
    cfg.without_pretrained()
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    cfg.set("DINOv3Backbone", small, "a test")
    cfg.set("num_classes", 80, "a test")
    model = cfg.model.train()
    assert model.backbone.out_channels == channels
    outputs = model(
        torch.rand(1, 3, 640, 640),
        targets=[{"labels": torch.tensor([3]), "boxes": torch.rand(1, 4)}],
    )
    assert outputs["pred_logits"].shape == (1, 300, 80)
    assert sum(
        len(group["params"]) for group in cfg.optimizer.param_groups
    ) == sum(p.requires_grad for p in model.parameters())


def test_the_task_of_official_files_is_accepted_with_a_note_that_it_has_no_effect(
    tmp_path, caplog
):
    with caplog.at_level("DEBUG", logger="dfine"):
        config_from(tmp_path, "epochs: 3\n")
        assert caplog.text == ""
        config_from(tmp_path, "task: detection\n")
    assert (
        "task has no effect, every run is a detection" in caplog.text
        and "config.yml:1" in caplog.text
    )


# ---- lengths ----


def test_lengths_become_whole_numbers_and_the_configuration_keeps_what_was_written():
    cfg = tiny_config(
        ema={"decay": None, "warmups": None},
        lr_warmup_scheduler={"warmup_duration": 0.05},
    )
    before = cfg.to_yaml()
    cfg.resolve_lengths(RunLength(epochs=12, steps_per_epoch=500))
    assert (
        cfg.resolved_cfg["ema"]["horizon"],
        cfg.resolved_cfg["ema"]["warmups"],
    ) == (
        120,
        120,
    )
    assert cfg.resolved_cfg["lr_warmup_scheduler"]["warmup_duration"] == 300
    assert cfg.to_yaml() == before


def test_a_model_needs_no_run_and_phases_in_steps_keep_the_default_of_their_argument():
    cfg = tiny_config(
        DINOv3Backbone={
            "freeze_backbone_epochs": "500 steps",
            "unfreeze_blocks": 1,
        }
    )
    assert cfg.model.backbone.ever_learns
    assert (
        cfg.yaml_cfg["DINOv3Backbone"]["freeze_backbone_epochs"] == "500 steps"
    )


def test_lengths_are_resolved_before_the_model_is_built():
    cfg = tiny_config()
    _ = cfg.model
    with pytest.raises(
        RuntimeError,
        match="the model was built before the lengths were resolved",
    ):
        cfg.resolve_lengths(RunLength(12, 63))


def test_a_part_whose_length_needs_the_number_of_steps_is_not_built_without_it():
    cfg = tiny_config(lr_warmup_scheduler={"warmup_duration": 0.05})
    with pytest.raises(
        ConfigError,
        match="number of steps in the run is known only after the data are read",
    ):
        _ = cfg.lr_warmup_scheduler


def test_what_the_program_sets_itself_leaves_resolved_lengths_as_they_are():
    cfg = tiny_config(epochs=10, DINOv3Backbone={"freeze_backbone_epochs": 0.5})
    cfg.resolve_lengths(RunLength(10, 63))
    cfg.set("num_classes", 7, "counted")
    cfg.without_pretrained()
    assert cfg.resolved_cfg["DINOv3Backbone"]["freeze_backbone_epochs"] == 5
    assert (
        cfg.resolved_cfg["num_classes"],
        cfg.resolved_cfg["DINOv3Backbone"]["pretrained"],
    ) == (7, False)


def test_saved_configuration_lists_what_lengths_became_in_comments_and_loads_to_what_was_written(
    tmp_path,
):
    stop = parse_overrides(["train_dataloader.collate_fn.stop_epoch=0.9"])
    cfg = tiny_config(
        ema={"decay": None},
        DINOv3Backbone={"freeze_backbone_epochs": "1 epoch"},
        **stop,
    )
    cfg.resolve_lengths(RunLength(12, 500))
    cfg.save(tmp_path / "config.yml")
    text = (tmp_path / "config.yml").read_text()
    for line in (
        "#   train_dataloader.collate_fn.stop_epoch: 0.9 -> 10 epochs",
        "#   ema.horizon: ~ -> 120 steps",
        "#   DINOv3Backbone.freeze_backbone_epochs: 1 epoch -> 1 epoch",
    ):
        assert line in text.splitlines()
    assert YAMLConfig(tmp_path / "config.yml").yaml_cfg == cfg.yaml_cfg


def test_a_configuration_of_whole_numbers_needs_no_comment(tmp_path):
    assert config_from(tmp_path, "epochs: 3\n").describe_lengths() == ""
