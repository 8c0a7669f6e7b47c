"""Files that hold no detector, or not the one that was meant: one sentence, code 4."""

import pickle
import sys
import types

import pytest
import torch

from src.core.errors import CheckpointError
from src.inference import Detector
from src.runtime.process import explain
from tests.fixtures.published import write_published
from tests.fixtures.run_here import run_here
from tests.fixtures.tiny import ROOT

CHECKPOINT = 4
"""Exit code of a checkpoint that cannot be used."""


def refusal(path, **options) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        Detector.from_checkpoint(path, device="cpu", **options)
    code, line = explain(caught.value)
    assert code == CHECKPOINT
    assert "\n" not in line and str(path) in line
    return line


@pytest.fixture(scope="module")
def atto(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("atto"), "deimv2_atto")


@pytest.fixture(scope="module")
def deim(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("deim"), "deim_n")


BLOCK = {"blocks.0.attn.qkv.weight": torch.ones(3, 3)}

FOREIGN = {
    "a DINOv3 backbone": (
        BLOCK
        | {
            "cls_token": torch.ones(1, 1, 384),
            "storage_tokens": torch.ones(1, 4, 384),
        },
        "it is a DINOv3 ViT-S backbone without a detector",
    ),
    "a distilled backbone of DEIMv2": (
        BLOCK | {"cls_token": torch.ones(1, 1, 192)},
        "it is a ViT-Tiny backbone without a detector",
    ),
    "a classification model of timm": (
        BLOCK
        | {
            "cls_token": torch.ones(1, 1, 768),
            "head.weight": torch.ones(1000, 768),
        },
        "it is a classification model, ViT with a last layer",
    ),
    "a ResNet of torchvision": (
        {
            "conv1.weight": torch.ones(64, 3, 7, 7),
            "layer1.0.conv1.weight": torch.ones(64, 64, 1, 1),
            "fc.weight": torch.ones(1000, 2048),
        },
        "it is a classification model, ResNet with a last layer",
    ),
    "an HGNetv2 backbone": (
        {"stem.stem1.conv.weight": torch.ones(16, 3, 3, 3)},
        "it is an HGNetv2 backbone without a detector",
    ),
    "the port of DEIMv2 in transformers": (
        {
            "model.backbone.layers.0.weight": torch.ones(3),
            "model.decoder.bbox_embed.0.layers.0.weight": torch.ones(3),
        },
        "a detector of transformers other than D-FINE, such as its own port of DEIMv2",
    ),
    "something else": ({"w": torch.ones(1)}, "a file with 1 tensor, first w"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_without_a_detector_is_described(kind, tmp_path):
    state, message = FOREIGN[kind]
    path = tmp_path / "foreign.pth"
    torch.save(state, path)
    assert message in refusal(path)


def test_a_checkpoint_with_a_state_dict_is_described_as_well(tmp_path):
    path = tmp_path / "resnet.pth"
    state, message = FOREIGN["a ResNet of torchvision"]
    torch.save({"epoch": 3, "state_dict": state}, path)
    line = refusal(path)
    assert "it has epoch, state_dict" in line
    assert message.removeprefix("it is ") in line


def test_a_backbone_is_also_refused_with_a_configuration(tmp_path):
    path = tmp_path / "vit.pth"
    torch.save(FOREIGN["a DINOv3 backbone"][0], path)
    config = ROOT / "configs/dfine/dfine_hgnetv2_n_coco.yml"
    assert "DINOv3 ViT-S backbone" in refusal(path, config=config)


def test_a_pickle_of_yolo_is_never_executed(tmp_path, monkeypatch):
    module = types.ModuleType("ultralytics")
    executed = []

    class DetectionModel:
        def __init__(self):
            self.names = {0: "person"}

        def __setstate__(self, state):
            executed.append(state)

    DetectionModel.__module__ = "ultralytics"
    DetectionModel.__qualname__ = "DetectionModel"
    module.DetectionModel = DetectionModel
    monkeypatch.setitem(sys.modules, "ultralytics", module)
    path = tmp_path / "yolo.pt"
    torch.save({"epoch": -1, "model": DetectionModel()}, path)
    assert "it refers to ultralytics.DetectionModel; it was" in refusal(path)
    with path.with_name("old.pt").open("wb") as file:
        pickle.dump({"model": DetectionModel()}, file)
    refusal(path.with_name("old.pt"))
    assert not executed


def test_a_truncated_file_is_refused(atto, tmp_path):
    content = atto.read_bytes()
    path = tmp_path / "deimv2_atto.pth"
    path.write_bytes(content[: len(content) // 2])
    assert "is damaged" in refusal(path)


def test_a_file_of_another_size_is_refused_with_both_names(atto):
    config = ROOT / "configs/deimv2/deimv2_hgnetv2_femto_coco.yml"
    line = refusal(atto, config=config)
    assert "is DEIMv2-Atto, but the configuration describes DEIMv2-F" in line
    assert "deimv2_hgnetv2_atto_coco.yml" in line


def test_a_file_of_another_family_is_refused_with_both_names(deim):
    config = ROOT / "configs/dfine/dfine_hgnetv2_n_coco.yml"
    line = refusal(deim, config=config)
    assert "is DEIM-N according to its name, with SiLU" in line
    assert "dfine_hgnetv2_n_coco.yml describes a decoder with ReLU" in line


def test_weights_of_deim_are_refused_as_dfine(deim):
    line = refusal(deim, family="dfine")
    assert "which contradicts --family dfine" in line


def test_an_unknown_architecture_is_compared_with_the_known_ones(
    atto, tmp_path
):
    state = torch.load(atto, weights_only=True)["model"]
    state["decoder.extra.weight"] = torch.ones(1)
    path = tmp_path / "other.pth"
    torch.save(state, path)
    line = refusal(path)
    assert "it resembles DEIMv2-Atto most, but its decoder differs" in line


def test_the_commands_end_with_code_4(deim, tmp_path):
    vit = tmp_path / "vit.pth"
    torch.save(FOREIGN["a DINOv3 backbone"][0], vit)
    for arguments in (
        ["train.py", "-t", vit],
        ["train.py", "-r", vit, "--test-only"],
        ["train.py", "-t", deim, "--family", "dfine"],
        ["tools/benchmark/get_info.py", "-r", vit],
    ):
        ended = run_here(*arguments)
        assert ended.code == CHECKPOINT
        assert len(ended.err.strip().splitlines()) == 1
        assert "error[4]" in ended.err
