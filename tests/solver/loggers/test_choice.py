"""The loggers of a run, and packages that are missing."""

import importlib.util

import pytest

from src.core import ConfigError
from src.core.yaml_config import RunSettings
from src.solver.loggers import choice
from src.solver.loggers.choice import (
    chosen_loggers,
    require_packages,
    run_name,
)


def test_csv_and_tensorboard_are_on_by_default():
    assert chosen_loggers(RunSettings()) == ["csv", "tensorboard"]


def test_use_wandb_is_another_way_to_write_wandb():
    settings = RunSettings(loggers=["wandb", "csv"], use_wandb=True)
    assert chosen_loggers(settings) == ["wandb", "csv"]
    assert chosen_loggers(RunSettings(use_wandb=True))[-1] == "wandb"


@pytest.mark.parametrize("word", ["wandb", "mlflow", "clearml"])
def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    monkeypatch, word
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        require_packages(["csv", "tensorboard", word])
    assert str(caught.value) == (
        f"the logger {word} is on (--log, loggers or use_wandb), but the package {word} is not installed: "
        f"pip install {word}; or leave the logger out"
    )


def test_an_installed_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(choice, "IS_IN_TREE", False)
    assert choice.install_command("mlflow") == (
        'pip install "dfine-dinov3[mlflow]"'
    )


def test_loggers_of_this_project_need_no_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_packages(["csv", "tensorboard"])


def test_a_run_is_named_by_exp_name_or_by_its_folder():
    assert run_name(RunSettings(output_dir="runs/cats/")) == "cats"
    named = RunSettings(output_dir="runs/cats", exp_name="third")
    assert run_name(named) == "third"
