"""Files of a trained teacher."""

import pytest
import torch

from src.cli.ablation.teachers import write_vit
from src.core.errors import CheckpointError
from src.detection.weight_file import read_weights
from src.nn.distillation import FeatureTeacher
from tests.fixtures.small_dfine import SMALL, filled
from tests.fixtures.tiny import TINY_MODEL
from tests.fixtures.trained_tiny import TRAINED


def test_the_vit_of_a_detector_becomes_a_teacher_of_features(tmp_path):
    path = tmp_path / "vit.pth"
    write_vit(TRAINED, path)
    settings = TINY_MODEL["DINOv3Backbone"]
    shape = {key: settings[key] for key in ("embed_dim", "depth", "num_heads")}
    teacher = FeatureTeacher("dinov3_small", init_values=1.0, **shape)
    teacher.load(str(path))
    loaded = teacher.backbone.vit.state_dict()
    weights = read_weights(TRAINED).weights
    name = "blocks.1.attn.qkv.weight"
    assert torch.equal(loaded[name], weights[f"backbone.vit.{name}"])


def test_a_detector_without_a_vit_is_refused(tmp_path):
    path = tmp_path / "best.pth"
    torch.save({"model": filled("n", **SMALL)[1].state_dict()}, path)
    with pytest.raises(CheckpointError, match="has no tensors backbone.vit"):
        write_vit(path, tmp_path / "vit.pth")
