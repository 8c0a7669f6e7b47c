"""Configurations of the project are found by path and by name, in any folder."""

import pytest

from src.core import ConfigError, YAMLConfig
from src.core.package_configs import (
    configs_by_name,
    configs_folder,
    find_config,
    package_config,
)

NAME = "dfine_dinov3_s_coco"
PATH = f"configs/dfine/{NAME}.yml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("given", [NAME, f"{NAME}.yml", PATH])
def test_a_configuration_is_found_by_name_and_by_path(given):
    assert find_config(given) == package_config(PATH)


def test_a_file_of_the_user_comes_first(tmp_path):
    own = tmp_path / f"{NAME}.yml"
    own.write_text("epochs: 1")
    assert find_config(f"{NAME}.yml").samefile(own)


def test_names_are_unique_and_parts_have_none():
    files = []
    for path in configs_folder().rglob("*.yml"):
        folders = path.relative_to(configs_folder()).parts[:-1]
        if folders and not {"include", "dataset", "ablation"} & set(folders):
            files.append(path)
    assert len(configs_by_name()) == len(files) > 80
    assert "dataloader" not in configs_by_name()
    assert "models" not in configs_by_name()
    assert "adapter_start" not in configs_by_name()


def test_a_similar_name_is_suggested():
    with pytest.raises(
        ConfigError,
        match="^dfine_dinov3_s_cocoo is neither a file nor a .*"
        "did you mean dfine_dinov3_s_coco",
    ):
        find_config("dfine_dinov3_s_cocoo")


def test_a_path_that_does_not_exist_is_reported_as_it_was_given():
    with pytest.raises(
        ConfigError, match="^configuration file not found: my/own.yml"
    ):
        YAMLConfig("my/own.yml")


def test_a_configuration_of_a_user_includes_one_of_the_project(tmp_path):
    own = tmp_path / "own.yml"
    own.write_text(f"__include__: [{NAME}, {PATH}]\nepochs: 3\n")
    cfg = YAMLConfig(own)
    assert cfg.yaml_cfg["epochs"] == 3
    assert cfg.yaml_cfg["DFINE"]["backbone"] == "DINOv3Backbone"
