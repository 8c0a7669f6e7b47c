"""Start weights are named if they are missing, and loaded once before the training."""

import hashlib
from types import SimpleNamespace

import pytest
import torch

from src.cli.reproduction.weights import (
    check_weights,
    identity_of,
    refuse_missing_weights,
    start_files,
)
from src.core import CheckpointError, YAMLConfig
from src.core.package_configs import package_config
from src.nn.backbone import DINOv3Backbone
from tests.fixtures.reproduction import SMALL
from tests.fixtures.tiny import merged
from tests.fixtures.vits import official_layout, randomize

VIT_S = package_config("configs/dfine/dfine_dinov3_s_coco.yml")
HGNET_N = package_config("configs/dfine/dfine_hgnetv2_n_coco.yml")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def small_config(path):
    own = {"DINOv3Backbone": {"pretrained": True, "checkpoint_path": str(path)}}
    return YAMLConfig(VIT_S, **merged(SMALL, own))


def write_vit(path):
    vit = {"embed_dim": 32, "depth": 2, "num_heads": 2, "tap_blocks": [0, 1]}
    backbone = DINOv3Backbone("dinov3_small", pretrained=False, **vit)
    state = official_layout(randomize(backbone.vit), live_biases=False)
    torch.save(state, path)
    return path


def test_a_missing_file_is_named_with_its_setting():
    files = start_files(YAMLConfig(VIT_S))
    assert [setting for setting, _ in files] == [
        "DINOv3Backbone.checkpoint_path"
    ]
    with pytest.raises(CheckpointError) as error:
        refuse_missing_weights(files)
    assert "dinov3_vits16_pretrain_lvd1689m-08c60483.pth do not exist" in str(
        error.value
    )
    assert "weights/README.md" in str(error.value)


def test_random_weights_and_imagenet_weights_are_not_files_to_look_for():
    random = {"DINOv3Backbone": {"pretrained": False}}
    assert start_files(YAMLConfig(VIT_S, **random)) == []
    assert start_files(YAMLConfig(HGNET_N)) == []


def test_the_file_of_a_teacher_is_needed_too():
    path = package_config("configs/rtv4/rtv4_hgnetv2_s_coco.yml")
    (file,) = start_files(YAMLConfig(path))
    assert file.setting == "distillation.checkpoint_path"


def test_a_detector_that_teaches_is_needed_too():
    block = {"type": "DetectorDistillation", "teacher": "teacher.pth"}
    cfg = SimpleNamespace(
        settings=SimpleNamespace(tuning=None), yaml_cfg={"distillation": block}
    )
    (file,) = start_files(cfg)
    assert file.setting == "distillation.teacher"
    with pytest.raises(CheckpointError, match="-u distillation.teacher=FILE"):
        refuse_missing_weights([file])


def test_a_detector_to_start_from_replaces_the_file_of_the_backbone(here):
    (here / "best.pth").write_bytes(b"")
    (file,) = start_files(YAMLConfig(VIT_S, tuning="best.pth"))
    assert (file.setting, file.path.name) == ("tuning", "best.pth")


def test_a_run_folder_stands_for_its_best_checkpoint(here):
    (here / "mine").mkdir()
    (here / "mine/best.pth").write_bytes(b"")
    (file,) = start_files(YAMLConfig(HGNET_N, tuning="mine"))
    assert file.path.as_posix() == "mine/best.pth"


def test_a_published_detector_that_is_missing_is_named_with_its_source():
    with pytest.raises(CheckpointError, match="get the file of D-FINE-S from"):
        start_files(YAMLConfig(HGNET_N, tuning="dfine_s_obj365"))


def test_weights_are_loaded_and_their_digest_is_returned(here, capsys):
    path = write_vit(here / "vit.pth")
    cfg = small_config(path)
    files = start_files(cfg)
    refuse_missing_weights(files)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert check_weights(cfg, files) == {str(path): digest}
    assert f"vit.pth: sha256 {digest}" in capsys.readouterr().out


def test_a_file_that_is_not_what_its_name_says_is_refused(here):
    path = write_vit(here / "vit-08c60483.pth")
    cfg = small_config(path)
    with pytest.raises(CheckpointError, match="not what its name says"):
        check_weights(cfg, start_files(cfg))


def test_a_damaged_detector_is_refused(here):
    (here / "best.pth").write_bytes(b"no checkpoint")
    cfg = YAMLConfig(HGNET_N, tuning="best.pth")
    with pytest.raises(CheckpointError, match="best.pth"):
        check_weights(cfg, start_files(cfg))


def test_a_file_that_is_replaced_is_verified_again(here):
    path = write_vit(here / "vit.pth")
    files = start_files(small_config(path))
    before = identity_of(files)
    assert identity_of(files) == before
    path.write_bytes(path.read_bytes() + b" ")
    assert identity_of(files) != before
