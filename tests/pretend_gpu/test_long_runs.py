"""Longer runs on pretended GPUs, started as users start them: `make test-slow`."""

import json

import pytest
import torch

from tests.fixtures.commands import read_log, run_python, write_tiny_config
from tests.fixtures.tiny import (
    merged,
    tiny_config,
    write_tiny_data,
    write_tiny_teacher,
)
from tests.fixtures.trained_tiny import DETECTOR_TEACHER
from tests.fixtures.vits import official_layout

pytestmark = pytest.mark.slow

RUN = {
    "use_amp": True,
    "epochs": 2,
    "optimizer": {"lr": 2e-4},
    "train_dataloader": {"total_batch_size": 4},
}


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """16 training and four validation scenes: four batches of four images."""
    return write_tiny_data(tmp_path_factory.mktemp("data"), train=16, val=4)


@pytest.fixture
def train(gpu, small_data, tmp_path):
    """Return a function that trains in `tmp_path / "run"`, under torchrun for several ranks."""

    def run(*arguments, settings=None, ranks=1, capability=90):
        overrides = merged(RUN, settings or {})
        config = write_tiny_config(tmp_path, small_data, **overrides)
        result = run_python(
            "tests/pretend_gpu/run.py",
            f"--devices={ranks}",
            f"--capability={capability}",
            f"--report={tmp_path / 'report.json'}",
            *("train.py", "-c", config, "--seed=1", *arguments),
            ranks=ranks,
        )
        assert result.returncode == 0, result.stderr + result.stdout
        reports = sorted(tmp_path.glob("report*.json"))
        assert len(reports) == ranks
        for path in reports:
            assert json.loads(path.read_text())["launches"] == 0
            path.unlink()
        return result.stdout

    return run


def test_two_ranks_with_everything_that_the_main_run_uses(train, tmp_path):
    settings = {
        "sync_bn": True,
        "grad_accum_steps": 2,
        "DINOv3Backbone": {"freeze_backbone_epochs": 1, "unfreeze_blocks": 1},
        "train_dataloader": {
            "num_workers": 1,
            "collate_fn": {
                "mixup_prob": 0.5,
                "base_size": 64,
                "base_size_repeat": 1,
            },
        },
    }
    printed = train(settings=settings, ranks=2)
    assert "stage 2 begins" in printed
    records = read_log(tmp_path / "run")
    assert records[0]["n_trainable"] < records[1]["n_trainable"]
    # on an older GPU, and on one rank
    settings |= {"epochs": 3}
    last = tmp_path / "run/last.pth"
    printed = train("-r", last, "--override", settings=settings, capability=75)
    assert "float16" in printed
    assert len(read_log(tmp_path / "run")) == 3


@pytest.mark.parametrize("capability", [75, 80, 90])
def test_lora_with_gram_anchoring_on_each_generation(
    train, tmp_path, capability
):
    vit = tiny_config(num_classes=4).model.backbone.vit
    weights = tmp_path / "dinov3.pth"
    torch.save(official_layout(vit, live_biases=False), weights)
    train(
        settings={
            "DINOv3Backbone": {
                "pretrained": True,
                "checkpoint_path": str(weights),
                "lora_rank": 2,
            },
            "gram_anchoring": {
                "type": "GramAnchoring",
                "weight": [[0, 100], [1.0, 0]],
            },
        },
        capability=capability,
    )
    records = read_log(tmp_path / "run")
    assert all(record["train_loss_gram"] > 0 for record in records)


@pytest.mark.parametrize(
    ("ranks", "capability"), [(1, 75), (1, 80), (1, 90), (2, 90)]
)
def test_distillation_on_each_generation_and_two_ranks(
    train, tmp_path, ranks, capability
):
    train(
        settings={
            "grad_accum_steps": 2,
            "distillation": write_tiny_teacher(tmp_path),
        },
        ranks=ranks,
        capability=capability,
    )
    records = read_log(tmp_path / "run")
    assert all(record["train_loss_distill"] > 0 for record in records)
    assert records[0]["distillation_share"] > 0


@pytest.mark.parametrize(("ranks", "capability"), [(1, 75), (2, 90)])
def test_a_detector_as_teacher_in_fp16_and_on_two_ranks(
    train, tmp_path, ranks, capability
):
    train(
        settings={
            "grad_accum_steps": 2,
            "distillation": DETECTOR_TEACHER | {"min_score": 0.0},
        },
        ranks=ranks,
        capability=capability,
    )
    records = read_log(tmp_path / "run")
    assert all(record["train_loss_distill"] > 0 for record in records)
    assert records[0]["train_loss_soft_cls"] > 0


@pytest.mark.parametrize("capability", [75, 80, 90])
def test_mosaic_with_workers_and_accumulation_on_each_generation(
    train, capability
):
    mosaic = {"type": "Mosaic", "output_size": 32}
    operations = tiny_config().yaml_cfg["train_dataloader"]["dataset"]
    operations = operations["transforms"]["ops"]
    train(
        settings={
            "grad_accum_steps": 2,
            "train_dataloader": {
                "num_workers": 1,
                "dataset": {"transforms": {"ops": [mosaic, *operations]}},
            },
        },
        capability=capability,
    )


@pytest.mark.parametrize("capability", [75, 80, 90])
def test_phase_a_on_each_generation_of_gpus(train, capability):
    train(
        settings={
            "epochs": 1,
            "DINOv3Backbone": {"freeze_backbone": True},
        },
        capability=capability,
    )
