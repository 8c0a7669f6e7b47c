"""The arguments of `train.py`."""

import json
import sys

import pytest

import train
from tests.fixtures.commands import write_tiny_config
from tests.fixtures.train_here import train_here
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture
def parse(monkeypatch):
    """Return a function that parses arguments beside a configuration."""

    def parse(*arguments: str):
        monkeypatch.setattr(
            sys, "argv", ["train.py", "-c", "config.yml", *arguments]
        )
        return train.parse_arguments()

    return parse


@pytest.mark.parametrize(
    ("level", "use_amp"), [("O0", False), ("O1", True), ("O2", True)]
)
def test_apex_levels_become_mixed_precision_or_none(parse, level, use_amp):
    assert parse("--opt-level", level).use_amp is use_amp


def test_without_a_level_the_configuration_decides_about_mixed_precision(parse):
    assert parse().use_amp is None
    assert parse("--use-amp").use_amp is True


@pytest.mark.parametrize(
    "arguments", [("--opt-level", "O3"), ("--opt-level", "O0", "--use-amp")]
)
def test_levels_that_mean_nothing_here_or_contradict_are_refused(
    parse, arguments, capsys
):
    with pytest.raises(SystemExit) as end:
        parse(*arguments)
    assert end.value.code == 2
    assert "--opt-level" in capsys.readouterr().err


def test_an_apex_level_is_logged_with_its_meaning():
    ended = train_here("-c", "none.yml", "--opt-level", "O1")
    assert ended.code == 2
    assert "--opt-level O1 means --use-amp" in ended.out


@pytest.mark.parametrize(
    "arguments", [("--val-fraction", "1"), ("--data-format", "csv")]
)
def test_invalid_flags_of_the_data_set_are_named(parse, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_folder_without_labels_ends_with_code_3(tmp_path):
    config = "configs/dfine/custom/dfine_dinov3_tiny_scratch.yml"
    ended = train_here("-c", config, "--data", tmp_path)
    assert ended.code == 3
    assert f"{tmp_path} has no labels in a known layout" in ended.err


def test_a_required_ap_needs_an_evaluation(parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse("--min-ap", "0.5")
    assert end.value.code == 2
    assert "--min-ap is only used with --test-only" in capsys.readouterr().err


@pytest.mark.parametrize(("minimum", "code"), [("0.01", 0), ("0.999", 5)])
def test_an_evaluation_ends_with_code_5_below_the_required_ap(
    tiny_data, tmp_path, minimum, code
):
    config = write_tiny_config(tmp_path, tiny_data)
    evaluation = ("--test-only", "-r", TRAINED, "--output-dir", tmp_path)
    ended = train_here("-c", config, *evaluation, f"--min-ap={minimum}")
    assert (ended.code or 0) == code, ended.err
    status = json.loads((tmp_path / "run_status.json").read_text())
    assert status["exit_code"] == code
    assert json.loads((tmp_path / "eval.json").read_text())["AP"] > 0
    assert ("--min-ap requires at least 0.999" in ended.err) == (code == 5)
