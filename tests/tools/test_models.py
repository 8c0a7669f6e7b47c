"""`tools/models.py` lists the published detectors and says which one a file holds."""

from __future__ import annotations

import hashlib

import pytest
import torch

from src.core import YAMLConfig
from tests.fixtures.tiny import ROOT
from tests.fixtures.tools_here import tool_here
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture(scope="module")
def atto(tmp_path_factory):
    """A file in DEIMv2's form with the smallest published model."""
    model = YAMLConfig(
        ROOT / "configs/deimv2/deimv2_hgnetv2_atto_coco.yml",
        HGNetv2={"pretrained": False},
    ).model
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


def test_list_has_a_line_for_each_model():
    lines = tool_here("models", "list").out.splitlines()
    assert lines[0].split()[0] == "name"
    assert "dfine_l_coco" in [line.split()[0] for line in lines]


def test_show_prints_the_facts_and_commands_of_a_model():
    ended = tool_here("models", "show", "deimv2_l_coco")
    assert ended.code == 0
    assert "DEIMv2-L" in ended.out
    assert "56.0 (README of DEIMv2)" in ended.out
    assert (
        "python train.py -c configs/deimv2/deimv2_dinov3_l_custom.yml --use-amp --seed=0 -t deimv2_l_coco"
        in ended.out
    )


def test_show_suggests_a_name_that_is_close():
    ended = tool_here("models", "show", "deimv2_l_coc")
    assert ended.code == 2
    assert (
        "deimv2_l_coc is not a model of configs/models.yml; did you mean deimv2_l_coco"
        in ended.err
    )


def test_check_names_the_model_of_a_file_whatever_its_name_is(atto):
    ended = tool_here("models", "check", atto)
    assert ended.code == 0, ended.err
    digest = hashlib.sha256(atto.read_bytes()).hexdigest()
    assert f"{atto}: DEIMv2-Atto" in ended.out
    assert "493 tensors, 493 loaded" in ended.out
    assert "complete: every tensor of the model is in the file" in ended.out
    assert "classes: 80 (person, bicycle, car," in ended.out
    assert f"sha256: {digest} (no digest is published)" in ended.out
    assert f"--test-only -r {atto}\n" in ended.out
    assert f"--seed=0 -t {atto}\n" in ended.out


def test_check_prints_commands_that_a_shell_can_run(atto, tmp_path):
    path = tmp_path / "my weights.pth"
    path.symlink_to(atto)
    ended = tool_here("models", "check", path)
    assert f"--test-only -r '{path}'" in ended.out


def test_check_accepts_a_checkpoint_of_this_project():
    ended = tool_here("models", "check", TRAINED)
    assert ended.code == 0, ended.err
    assert "complete: every tensor of the model is in the file" in ended.out


def test_check_refuses_a_file_that_lacks_tensors(atto, tmp_path):
    weights = torch.load(atto)["model"]
    for key in [key for key in weights if "encoder.fpn_block" in key]:
        del weights[key]
    path = tmp_path / "part.pth"
    torch.save({"model": weights}, path)
    ended = tool_here("models", "check", path)
    assert ended.code == 4
    assert ended.err.count("\n") == 1
    assert str(path) in ended.err
    assert "DEIMv2-Atto" in ended.err


def test_check_refuses_a_file_without_a_detector(tmp_path):
    path = tmp_path / "linear.pth"
    torch.save({"model": {"fc.weight": torch.zeros(2, 3)}}, path)
    ended = tool_here("models", "check", path)
    assert ended.code == 4
    assert "no class head found" in ended.err


def test_push_and_pull_share_a_detector_in_a_folder(tmp_path):
    shared = tmp_path / "shared"
    pushed = tool_here("models", "push", TRAINED, shared, "--licence", "mit")
    assert pushed.code == 0, pushed.err
    assert f"shared: {shared}" in pushed.out
    fetched = tmp_path / "the fetched one"
    pulled = tool_here("models", "pull", shared, fetched)
    assert pulled.code == 0, pulled.err
    assert f"fetched: {fetched}" in pulled.out
    assert f"-r '{fetched}' --input IMAGE" in pulled.out
    checked = tool_here("models", "check", fetched)
    assert "complete: every tensor of the model is in the file" in checked.out


def test_an_address_on_the_hub_is_fetched_before_it_is_used():
    ended = tool_here("models", "check", "hf://me/shapes")
    assert ended.code == 4
    assert "fetch it first: dfine models pull hf://me/shapes" in ended.err
