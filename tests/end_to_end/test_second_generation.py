"""The second-generation architectures, S2 and T, do all that the first S does; their ViTs are small here."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src.core import YAMLConfig
from src.inference import Detector
from src.nn.backbone import DINOv3Backbone
from src.runtime.weight_files import read_tensor_file
from tests.fixtures.commands import read_log
from tests.fixtures.golden import ROOT
from tests.fixtures.tiny import DEMO_CONFIG, TINY_MODEL, SyntheticData, merged
from tests.fixtures.tools_here import tool_here
from tests.fixtures.train_here import train_here
from tests.fixtures.vits import official_layout, randomize

SMALL_VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}
LAYER_SCALE = {"dinov3_s2": 1.0, "dinov3_t": None}
"""Values of the layer scales of each ViT; the published ViT-Tiny has none."""

NAMES = ["dinov3_s2", "dinov3_t"]
RUN: dict[str, Any] = {
    "epochs": 2,
    "pictures": False,
    "report": False,
    "train_dataloader": {
        "total_batch_size": 8,
        "collate_fn": {"stop_epoch": 1},
    },
    "val_dataloader": {"total_batch_size": 8},
}


def published_vit(name: str, folder: Path) -> Path:
    """Write random weights of the small ViT in the layout in which those of the real ViT are published."""
    path = folder / "vit.pth"
    if name == "dinov3_s2":
        vit = DINOv3Backbone("dinov3_small", pretrained=False, **SMALL_VIT).vit
        torch.save(official_layout(randomize(vit), live_biases=False), path)
        return path
    source = DINOv3Backbone(
        "deimv2_tiny", pretrained=False, rope_periods="stored", **SMALL_VIT
    )
    state = {}
    for key, value in randomize(source.vit).state_dict().items():
        state[key.replace("rope.periods", "rope_embed.periods")] = value
    torch.save(state, path)
    return path


def write_config(
    name: str, folder: Path, data: SyntheticData, **overrides: Any
) -> Path:
    """Write a configuration with the settings of an architecture and sizes for tests, and return its path."""
    sizes = merged(
        TINY_MODEL,
        {
            "DINOv3Backbone": {
                **SMALL_VIT,
                "init_values": LAYER_SCALE[name],
                "tap_blocks": [0, 1, 2],
                "pretrained": True,
                "checkpoint_path": str(published_vit(name, folder)),
            }
        },
    )
    settings = merged(
        sizes,
        RUN,
        data.settings,
        {"output_dir": str(folder / "run")},
        overrides,
    )
    include = ROOT / f"configs/dfine/include/{name}.yml"
    settings["__include__"] = [str(DEMO_CONFIG), str(include)]
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


def train(config: Path) -> Path:
    """Train on the CPU and return the run folder."""
    ended = train_here("-c", config, "--seed=1", "-d", "cpu")
    assert ended.code == 0, ended.err
    return config.parent / "run"


@pytest.fixture(scope="module", params=NAMES)
def phased(request, tiny_data, tmp_path_factory) -> Path:
    """Return the folder of a run with a frozen epoch, an epoch of one block, and Gram anchoring."""
    folder = tmp_path_factory.mktemp(request.param)
    config = write_config(
        request.param,
        folder,
        tiny_data,
        DINOv3Backbone={"unfreeze_plan": [[1, 1]]},
        gram_anchoring={"type": "GramAnchoring"},
    )
    return train(config)


def test_phases_and_gram_anchoring_act(phased):
    first, second = read_log(phased)
    assert first["n_trainable"] < second["n_trainable"]
    assert second["train_loss_gram"] > 0


@pytest.mark.slow
def test_the_exported_detector_predicts_the_same(phased, tiny_data, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exported = tmp_path / "model.onnx"
    best = phased / "best.pth"
    ended = tool_here(
        "deployment.export_onnx", "-r", best, "--output", exported, "--check"
    )
    assert ended.code == 0, ended.err
    image = tiny_data.folder / "images/val_00000.jpg"
    ours = Detector.from_checkpoint(best, device="cpu")
    theirs = Detector.from_onnx(exported)
    assert len(ours.predict(image, threshold=0)) > 0
    assert len(theirs.predict(image, threshold=0)) > 0


def test_the_deployed_model_predicts_the_same(phased):
    cfg = YAMLConfig(phased.parent / "config.yml", num_classes=4)
    model = cfg.model.eval()
    model.load_state_dict(read_tensor_file(phased / "best.pth")["model"])
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        expected = model(images)
        found = model.deploy()(images)
    for key in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(
            found[key], expected[key], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_lora_saves_plain_weights(name, tiny_data, tmp_path):
    config = write_config(
        name, tmp_path, tiny_data, epochs=1, DINOv3Backbone={"lora_rank": 2}
    )
    best = read_tensor_file(train(config) / "best.pth")["model"]
    published = read_tensor_file(tmp_path / "vit.pth")
    assert not [key for key in best if "lora" in key]
    weight = "blocks.2.mlp.fc1.weight"
    change = best[f"backbone.vit.{weight}"] - published[weight]
    assert torch.linalg.matrix_rank(change, atol=1e-6) == 2
    embedding = "patch_embed.proj.weight"
    assert torch.equal(best[f"backbone.vit.{embedding}"], published[embedding])
