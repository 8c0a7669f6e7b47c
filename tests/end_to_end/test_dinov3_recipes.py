"""The recipes for detectors with a DINOv3 ViT: start weights of each layout, training, evaluation, export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from src.core import YAMLConfig
from src.inference import Detector
from tests.fixtures.slow import slow
from tests.fixtures.tiny import ROOT, write_tiny_data
from tests.fixtures.tools_here import tool_here
from tests.fixtures.train_here import train_here
from tests.fixtures.vits import (
    deimv2_layout,
    hugging_face_layout,
    official_layout,
    timm_layout,
)

LAYOUTS = {
    "official": official_layout,
    "timm": timm_layout,
    "Hugging Face": hugging_face_layout,
}

SMALL = {
    "eval_spatial_size": [64, 64],
    "epochs": 1,
    "num_classes": 4,
    "remap_mscoco_category": False,
    "pictures": False,
    "report": False,
    "train_dataloader.total_batch_size": 8,
    "train_dataloader.num_workers": 0,
    "val_dataloader.total_batch_size": 8,
    "val_dataloader.num_workers": 0,
}
"""Settings for images of 64 pixels, and three steps an epoch on 24 images."""

EXPORTED = (
    "dfine_dinov3_s2_coco",
    "dfine_dinov3_s2_windows_coco",
    "dfine_dinov3_t_coco",
)

FAST = ("dfine_dinov3_t_coco",)

NAMES = (
    "dfine_dinov3_s2_coco",
    "dfine_dinov3_s2_windows_coco",
    "dfine_dinov3_t_coco",
    "custom/dfine_dinov3_s2_custom",
    "custom/dfine_dinov3_t_custom",
    "objects365/dfine_dinov3_s2_obj365",
    "objects365/dfine_dinov3_s2_obj2coco",
    "deim/dfine_dinov3_s_deim_coco",
    "deim/dfine_dinov3_s_deim_obj365",
    "deim/dfine_dinov3_s_deim_obj2coco",
)


class Run(NamedTuple):
    """A run of one epoch that started from a file with weights of the ViT."""

    name: str
    folder: Path
    log: str


def config_of(name: str) -> Path:
    return ROOT / f"configs/dfine/{name}.yml"


def train(*arguments: Any, data: Any, **settings: Any) -> str:
    """Run train.py on the CPU and return what it logged; it must succeed."""
    values = SMALL | settings
    for part in ("train", "val"):
        dataset = f"{part}_dataloader.dataset"
        values[f"{dataset}.img_folder"] = str(data.folder / "images")
        values[f"{dataset}.ann_file"] = str(data.folder / f"{part}.json")
    updates = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    ended = train_here(*arguments, "-d", "cpu", "-u", *updates)
    assert ended.code == 0, ended.err
    return ended.out + ended.err


def vit_of(name: str) -> torch.nn.Module:
    """Return the ViT of a configuration with random weights."""
    cfg = YAMLConfig(config_of(name), DINOv3Backbone={"pretrained": False})
    return cfg.model.backbone.vit


def write_start(name: str, path: Path) -> str:
    """Write random weights of a configuration's ViT as they are published, and return the file's name."""
    vit = vit_of(name)
    small = "_t_" in name
    state = (
        deimv2_layout(vit) if small else official_layout(vit, live_biases=False)
    )
    torch.save(state, path)
    return str(path)


@pytest.fixture(
    scope="module",
    params=[*FAST, *slow(*(name for name in NAMES if name not in FAST))],
)
def run(request, tmp_path_factory, tiny_data) -> Run:
    folder = tmp_path_factory.mktemp("recipe")
    name = request.param
    start = write_start(name, folder / "vit.pth")
    log = train(
        "-c",
        config_of(name),
        "--seed",
        "0",
        "--output-dir",
        folder / "run",
        data=tiny_data,
        **{"DINOv3Backbone.checkpoint_path": start},
    )
    return Run(name, folder / "run", log)


def test_the_vit_starts_from_the_file_in_full(run):
    layout = "DEIMv2" if "_t_" in run.name else "official"
    assert re.search(
        rf"DINOv3: .*vit\.pth: {layout} layout, (\d+) of \1 tensors", run.log
    )


def test_rates_are_scaled_to_the_smaller_batch_by_its_square_root(run):
    base = 16 if run.name.startswith("custom") else 32
    factor = f"{(8 / base) ** 0.5:.3g}"
    assert (
        f"scaled by {factor}: chosen for a batch of {base}, used with 8 (lr_scaling: sqrt)"
        in run.log
    )


def test_every_parameter_is_trained(run):
    assert re.search(r"epoch 1: ([\d.]+) M of \1 M parameters", run.log)


def test_the_checkpoint_is_evaluated_without_a_configuration(
    run, tiny_data, tmp_path
):
    train(
        "-r",
        run.folder / "best.pth",
        "--test-only",
        "--output-dir",
        tmp_path,
        data=tiny_data,
    )
    assert "AP" in json.loads((tmp_path / "eval.json").read_text())


@pytest.mark.slow
def test_the_detector_is_exported_and_predicts_the_same(
    run, tiny_data, tmp_path
):
    if run.name not in EXPORTED:
        pytest.skip("its architecture is that of another configuration")
    export_and_compare(
        run.folder / "best.pth",
        tiny_data.folder / "images/val_00000.jpg",
        tmp_path / "model.onnx",
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [512, 576, 640, 768])
def test_each_input_size_is_trained_and_evaluated_by_one_setting(
    size, tmp_path
):
    data = write_tiny_data(tmp_path / "data", train=2, val=1, size=128)
    train(
        "-c",
        config_of("dfine_dinov3_t_coco"),
        "--seed",
        "0",
        "--output-dir",
        tmp_path / "run",
        data=data,
        **{
            "DINOv3Backbone.pretrained": False,
            "eval_spatial_size": [size, size],
            "train_dataloader.total_batch_size": 2,
            "train_dataloader.collate_fn.mixup_epochs": [0, 1],
            "train_dataloader.collate_fn.stop_epoch": 1,
            "lr_scheduler.flat_epochs": 1,
            "train_dataloader.dataset.transforms.mosaic_prob": 1.0,
        },
    )
    best = torch.load(tmp_path / "run/best.pth", weights_only=True)
    assert tuple(best["meta"]["input_size"]) == (size, size)
    if size == 768:
        export_and_compare(
            tmp_path / "run/best.pth",
            data.folder / "images/val_00000.jpg",
            tmp_path / "model.onnx",
        )


def export_and_compare(best: Path, image: Path, exported: Path) -> None:
    """Export a checkpoint with `--check`; the exported model must find as many objects in an image."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    ended = tool_here(
        "deployment.export_onnx", "-r", best, "--output", exported, "--check"
    )
    assert ended.code == 0, ended.err
    detector = Detector.from_checkpoint(best, device="cpu")
    ours = detector.predict(image, threshold=0)
    theirs = Detector.from_onnx(exported).predict(image, threshold=0)
    assert len(ours) == len(theirs) > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", ["dfine_dinov3_s2_coco", "dfine_dinov3_s2_windows_coco"]
)
def test_published_weights_of_each_layout_are_loaded(name, layout, tmp_path):
    source = vit_of(name)
    path = tmp_path / "vit.pth"
    torch.save(LAYOUTS[layout](source), path)
    start = {"checkpoint_path": str(path)}
    cfg = YAMLConfig(config_of(name), DINOv3Backbone=start)
    loaded = cfg.model.backbone.vit.state_dict()
    for key, value in source.state_dict().items():
        torch.testing.assert_close(loaded[key], value, msg=key)
