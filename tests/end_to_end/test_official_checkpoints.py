"""Files in the form that D-FINE publishes: evaluated with -r, used as start weights with -t."""

import json

import pytest
import torch

from src.core import CheckpointError, YAMLConfig
from src.solver import DetSolver
from src.solver.building import build_model
from src.solver.checkpoint import CheckpointFolder
from src.solver.run_data import open_run_data
from src.solver.start_weights import read_start
from tests.fixtures.tiny import ROOT, merged
from tests.golden import filler

DEVICE = torch.device("cpu")


def config(tiny_data, output_dir, **overrides) -> YAMLConfig:
    """D-FINE-N on the tiny data at 64 pixels."""
    small = {
        "eval_spatial_size": [64, 64],
        "output_dir": str(output_dir),
        "HGNetv2": {"pretrained": False},
        "train_dataloader": {"total_batch_size": 4},
        "val_dataloader": {"total_batch_size": 4},
    }
    return YAMLConfig(
        ROOT / "configs/dfine/custom/dfine_hgnetv2_n_custom.yml",
        **merged(small, tiny_data.settings, overrides),
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint of the official trainer, 80 classes, 640 pixels: model and EMA, with the keys of DDP."""
    model = YAMLConfig(
        ROOT / "configs/dfine/dfine_hgnetv2_n_coco.yml",
        HGNetv2={"pretrained": False},
    ).model
    weights = filler.fill(model, 0).state_dict()
    path = tmp_path_factory.mktemp("official") / "dfine_n_coco.pth"
    torch.save(
        {
            "date": "2024-10-20T12:00:00",
            "last_epoch": 159,
            "model": {k: torch.zeros_like(v) for k, v in weights.items()},
            "ema": {
                "module": {f"module.{k}": v for k, v in weights.items()},
                "updates": 100,
            },
        },
        path,
    )
    return path, weights


def test_evaluation_uses_the_average_of_an_official_file(
    tiny_data, tmp_path, published
):
    path, weights = published
    solver = DetSolver(
        config(
            tiny_data,
            tmp_path,
            num_classes=80,
            resume=str(path),
            test_only=True,
        ),
        DEVICE,
    )
    metrics = solver.val()
    own = solver.cfg.model.state_dict()
    assert all(
        torch.equal(own[k], v)
        for k, v in weights.items()
        if k not in ("decoder.anchors", "decoder.valid_mask")
    )
    assert (
        json.loads((tmp_path / "eval.json").read_text())["AP"] == metrics["AP"]
    )


def test_its_labels_are_category_ids_where_it_has_spare_slots(
    tiny_data, tmp_path, published
):
    solver = DetSolver(
        config(
            tiny_data,
            tmp_path,
            num_classes=80,
            resume=str(published[0]),
            test_only=True,
        ),
        DEVICE,
    )
    solver.val()
    assert solver.cfg.val_dataloader.dataset.label_of_category.tolist() == [
        1,
        3,
        7,
        8,
    ]


def test_another_number_of_classes_cannot_be_evaluated(
    tiny_data, tmp_path, published
):
    solver = DetSolver(
        config(
            tiny_data,
            tmp_path,
            num_classes=4,
            resume=str(published[0]),
            test_only=True,
        ),
        DEVICE,
    )
    with pytest.raises(
        CheckpointError, match="has 80 classes, the configuration has 4; use -t"
    ):
        solver.val()


def test_tuning_keeps_everything_but_the_class_layers(
    tiny_data, tmp_path, published
):
    path, weights = published
    cfg = config(tiny_data, tmp_path, num_classes=None, tuning=str(path))
    start = read_start(cfg.settings, CheckpointFolder(tmp_path))
    data = open_run_data(cfg, start, 0, tmp_path)
    own = build_model(cfg, start, data.classes, 0, DEVICE)[0].state_dict()
    changed = {
        k
        for k in own
        if own[k].shape != weights[k].shape
        or not torch.equal(own[k], weights[k])
    }
    heads = {
        f"decoder.{head}.{part}"
        for head in (
            "enc_score_head",
            *(f"dec_score_head.{i}" for i in range(3)),
        )
        for part in ("weight", "bias")
    }
    assert changed == heads | {
        "decoder.denoising_class_embed.weight",
        "decoder.anchors",
        "decoder.valid_mask",
    }
    assert own["decoder.enc_score_head.weight"].shape == (4, 128)


def test_a_file_of_another_size_is_refused_with_its_keys(
    tiny_data, tmp_path, published
):
    cfg = config(
        tiny_data,
        tmp_path,
        num_classes=80,
        resume=str(published[0]),
        test_only=True,
        DFINETransformer={"num_layers": 4},
    )
    with pytest.raises(
        CheckpointError,
        match=r"does not fit this model: \d+ missing \(decoder\.decoder\.layers\.3\.",
    ):
        DetSolver(cfg, DEVICE).val()
