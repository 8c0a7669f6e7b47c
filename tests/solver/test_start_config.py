"""The configuration of a run without -c: that of the file it starts from, or that of a published model."""

import logging

import pytest
import torch
import yaml

from src.core.errors import CheckpointError, ConfigError
from src.solver.start_config import open_configuration
from tests.fixtures.published import write_published
from tests.fixtures.tiny import ROOT, tiny_config
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture(scope="module")
def atto(tmp_path_factory):
    return str(write_published(tmp_path_factory.mktemp("atto"), "deimv2_atto"))


def test_a_given_configuration_is_used(tmp_path):
    path = tmp_path / "tiny.yml"
    tiny_config(num_classes=4).save(path)
    cfg = open_configuration(str(path), {"epochs": 7, "tuning": "none.pth"})
    assert cfg.path == path and cfg.settings.epochs == 7


@pytest.mark.parametrize("given", [{}, {"resume": "auto"}])
def test_without_a_file_a_configuration_is_needed(given):
    with pytest.raises(ConfigError, match="-c is needed unless -r or -t names"):
        open_configuration(None, given)


def test_a_published_file_is_tuned_with_the_configuration_for_own_data(
    atto, caplog
):
    with caplog.at_level(logging.INFO, "dfine"):
        cfg = open_configuration(None, {"tuning": atto})
    assert cfg.path.name == "deimv2_hgnetv2_atto_custom.yml"
    assert f"{atto} is DEIMv2-Atto, using configs" in caplog.text
    assert cfg.settings.tuning == atto


def test_a_published_file_is_evaluated_with_the_configuration_of_coco(atto):
    given = {"resume": atto, "test_only": True}
    cfg = open_configuration(None, given)
    assert cfg.path.name == "deimv2_hgnetv2_atto_coco.yml"
    assert cfg.yaml_cfg["num_classes"] == 80
    assert cfg.yaml_cfg["remap_mscoco_category"] is True


def test_a_file_with_other_classes_is_evaluated_with_its_number_of_classes(
    atto, tmp_path
):
    state = torch.load(atto, weights_only=True)["model"]
    for key in state:
        if "score_head" in key:
            state[key] = state[key][:3]
    path = tmp_path / "three.pth"
    torch.save(state, path)
    cfg = open_configuration(None, {"resume": str(path), "test_only": True})
    assert cfg.yaml_cfg["num_classes"] == 3
    assert cfg.yaml_cfg["remap_mscoco_category"] is False


@pytest.mark.parametrize(
    "given", [{"tuning": str(TRAINED)}, {"resume": str(TRAINED)}]
)
def test_a_file_of_this_project_brings_the_configuration_of_its_run(given):
    cfg = open_configuration(
        None, {**given, "test_only": "resume" in given, "seed": 3}
    )
    assert not cfg.is_from_checkpoint
    assert str(TRAINED) in str(cfg.path)
    assert cfg.settings.seed == 3
    assert cfg.yaml_cfg["DINOv3Backbone"]["embed_dim"] == 32


def test_weights_cannot_be_resumed(atto):
    with pytest.raises(CheckpointError, match="no training state.*--test-only"):
        open_configuration(None, {"resume": atto})
    with pytest.raises(
        CheckpointError, match="dfine_l_coco is a published model.*--test-only"
    ):
        open_configuration(None, {"resume": "dfine_l_coco"})


def test_a_configuration_is_one_of_the_repository(atto):
    cfg = open_configuration(None, {"tuning": atto})
    assert cfg.path.resolve().is_relative_to(ROOT / "configs")


@pytest.mark.parametrize("use", ["resume", "tuning"])
def test_the_image_cache_of_another_machine_is_not_used(tmp_path, use):
    content = torch.load(TRAINED, weights_only=True)
    content.pop("written_by", None)
    settings = yaml.safe_load(content["meta"]["config"])
    for part in ("train_dataloader", "val_dataloader"):
        cache = {"image_cache": "/home/someone/cache", "image_cache_gb": 2.0}
        settings[part]["dataset"].update(cache)
    content["meta"]["config"] = yaml.safe_dump(settings)
    path = tmp_path / "cached.pth"
    torch.save(content, path)
    overrides = {use: str(path), "test_only": use == "resume"}
    cfg = open_configuration(None, overrides)
    assert "someone" not in cfg.to_yaml()
    assert "image_cache" not in cfg.yaml_cfg["val_dataloader"]["dataset"]
    mine = {"val_dataloader": {"dataset": {"image_cache": "memory"}}}
    own = open_configuration(None, overrides | mine)
    assert own.yaml_cfg["val_dataloader"]["dataset"]["image_cache"] == "memory"
