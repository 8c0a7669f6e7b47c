"""A published detector of each family goes the whole way: evaluate, fine-tune, resume, export, predict."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from src.detection.transformers_layout import to_transformers
from src.inference import Detector
from tests.fixtures.golden import coco_config
from tests.fixtures.published import write_published
from tests.fixtures.slow import slow
from tests.fixtures.tools_here import tool_here
from tests.fixtures.train_here import train_here
from tests.golden import filler

SMALL = {
    "eval_spatial_size": [64, 64],
    "train_dataloader.total_batch_size": 8,
    "train_dataloader.num_workers": 0,
    "val_dataloader.total_batch_size": 8,
    "val_dataloader.num_workers": 0,
}
"""Settings for images of 64 pixels, and three steps an epoch on 24 images."""

NAMES = ["disc", "square", "triangle", "ring"]
"""Classes of the synthetic data."""

ONE_EPOCH = {"epochs": 1, "distillation": None, "pictures": False}
"""RT-DETRv4's recipe would need its teacher."""


def transformers_file(folder):
    """A D-FINE-N in the layout of Hugging Face transformers."""
    from safetensors.torch import save_file

    model = filler.fill(coco_config("n").model, 0)
    weights, _ = to_transformers(model.state_dict())
    path = folder / "model.safetensors"
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, path)
    return path


def dfine_file(folder):
    """D-FINE-N as its trainer writes it."""
    model = filler.fill(coco_config("n").model, 0)
    path = folder / "dfine_n_coco.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


FILES = {
    "D-FINE": dfine_file,
    "transformers": transformers_file,
    "DEIM": lambda folder: write_published(folder, "deim_n"),
    "RT-DETRv4": lambda folder: write_published(folder, "rtv4_s"),
    "DEIMv2 with LiteEncoder": lambda folder: write_published(
        folder, "deimv2_atto"
    ),
    "DEIMv2 with HGNetv2": lambda folder: write_published(folder, "deimv2_n"),
    "DEIMv2 with ViT-Tiny": lambda folder: write_published(folder, "deimv2_s"),
    "DEIMv2 with DINOv3": lambda folder: write_published(folder, "deimv2_l"),
}

FAST = "DEIMv2 with LiteEncoder"


class Tuned(NamedTuple):
    """A published file, and a run of one epoch that started from it."""

    published: Path
    settings: dict[str, Any]
    run: Path


@pytest.fixture(
    scope="module",
    params=[FAST, *slow(*(name for name in FILES if name != FAST))],
)
def tuned(request, tmp_path_factory, tiny_data) -> Tuned:
    folder = tmp_path_factory.mktemp("family")
    published = FILES[request.param](folder)
    settings = settings_of(tiny_data)
    run = folder / "run"
    new = ("-t", published, "--seed", "0", "--output-dir", run)
    train(*new, **(settings | ONE_EPOCH))
    return Tuned(published, settings, run)


def settings_of(data):
    """Return the settings of small runs on a data set."""
    settings = dict(SMALL)
    for part in ("train", "val"):
        dataset = f"{part}_dataloader.dataset"
        settings[f"{dataset}.img_folder"] = str(data.folder / "images")
        settings[f"{dataset}.ann_file"] = str(data.folder / f"{part}.json")
    return settings


def train(*arguments, **settings):
    """Run train.py on the CPU with settings; it must succeed."""
    updates = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    ended = train_here(*arguments, "-d", "cpu", "-u", *updates)
    assert ended.code == 0, ended.err


def test_a_published_detector_is_evaluated_without_a_configuration(
    tuned, tmp_path
):
    train(
        "-r",
        tuned.published,
        "--test-only",
        "--output-dir",
        tmp_path,
        **tuned.settings,
    )
    assert "AP" in json.loads((tmp_path / "eval.json").read_text())


def test_fine_tuning_gives_a_detector_of_the_classes_of_the_data(tuned):
    best = torch.load(tuned.run / "best.pth", weights_only=True)
    assert [entry["name"] for entry in best["meta"]["classes"]] == NAMES
    own = best["model"]["decoder.dec_score_head.2.bias"]
    assert len(own) == len(NAMES)


def test_the_run_is_resumed_without_a_configuration(tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tuned.run, run)
    settings = tuned.settings | ONE_EPOCH | {"epochs": 2}
    resume = ("-r", run / "last.pth", "--override", "--output-dir", run)
    train(*resume, **settings)
    last = torch.load(run / "last.pth", weights_only=True)
    assert last["progress"]["epoch"] == 2


@pytest.mark.slow
def test_the_detector_is_exported_and_predicts_the_same(
    tuned, tiny_data, tmp_path
):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exported = tmp_path / "model.onnx"
    best = tuned.run / "best.pth"
    ended = tool_here(
        "deployment.export_onnx", "-r", best, "--output", exported, "--check"
    )
    assert ended.code == 0, ended.err
    image = tiny_data.folder / "images/val_00000.jpg"
    detector = Detector.from_checkpoint(best, device="cpu")
    ours = detector.predict(image, threshold=0)
    theirs = Detector.from_onnx(exported).predict(image, threshold=0)
    assert set(ours.names) <= set(NAMES)
    assert len(ours) == len(theirs) > 0
