"""Phases, accumulation, LoRA, Gram anchoring, distillation and early stopping, as users start them."""

import json

import pytest
import torch
import yaml

from src.inference import Detector
from src.runtime.weight_files import read_tensor_file
from tests.fixtures.commands import read_log, run_python, write_tiny_config
from tests.fixtures.slow import slow
from tests.fixtures.tiny import (
    ROOT,
    TINY_MODEL,
    merged,
    tiny_config,
    write_tiny_teacher,
)
from tests.fixtures.trained_tiny import TRAINED
from tests.fixtures.vits import official_layout

PHASES = {
    "freeze_backbone_epochs": 1,
    "unfreeze_blocks": 1,
    "unfreeze_lr_factor": 0.1,
}


def succeed(*arguments, ranks: int = 1) -> str:
    """Run `train.py` and return what it printed."""
    result = run_python("train.py", *arguments, ranks=ranks)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


def evaluated(config, weights, folder, **options) -> dict:
    succeed(
        "-c",
        config,
        "--test-only",
        "-r",
        weights,
        "--output-dir",
        folder,
        **options,
    )
    return json.loads((folder / "eval.json").read_text())


def weights_of(checkpoint) -> dict[str, torch.Tensor]:
    """Return the trained and the averaged weights of a `last.pth`."""
    content = read_tensor_file(checkpoint)
    return content["model"] | {
        f"average of {name}": value
        for name, value in content["ema"]["module"].items()
    }


@pytest.fixture(scope="module")
def phased(tiny_data, tmp_path_factory):
    """A run on two ranks through phase A, phase B and the clean stage, a step of two batches."""
    folder = tmp_path_factory.mktemp("phased")
    config = write_tiny_config(
        folder,
        tiny_data,
        epochs=3,
        DINOv3Backbone=PHASES,
        grad_accum_steps=2,
        tuning=str(TRAINED),
        optimizer={"lr": 2e-4},
        train_dataloader={"collate_fn": {"stop_epoch": 2}},
    )
    return config, folder / "run", succeed("-c", config, "--seed=1", ranks=2)


@pytest.mark.slow
def test_the_log_reports_each_phase_and_stage(phased):
    assert "epoch 1: 0.11 M of 0.16 M parameters are trainable" in phased[2]
    assert (
        "epoch 2: 0.12 M of 0.16 M parameters are trainable" in phased[2]
        and "x 0.1, from epoch 2" in phased[2]
    )
    assert (
        "stage 2 begins" in phased[2]
        and "batch 8 (2 x 4), 3 steps per epoch" in phased[2]
    )


def test_the_record_of_an_epoch_says_how_many_parameters_trained(phased):
    counts = [record["n_trainable"] for record in read_log(phased[1])]
    assert counts[0] < counts[1] == counts[2]


@pytest.mark.slow
def test_best_pth_of_a_phased_run_scores_as_logged(phased, tmp_path):
    config, run, _ = phased
    logged = max(read_log(run), key=lambda record: record["AP"])
    assert logged["AP"] > 0.1
    assert evaluated(config, run / "best.pth", tmp_path, ranks=2)[
        "AP"
    ] == pytest.approx(logged["AP"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("epochs_done", [1, *slow(2)])
def test_a_run_resumed_at_a_phase_or_stage_ends_with_the_same_weights(
    phased, tmp_path, epochs_done
):
    config, run, _ = phased
    succeed(
        "-c",
        config,
        "--seed=1",
        "--output-dir",
        tmp_path,
        "-u",
        f"epochs={epochs_done}",
        ranks=2,
    )
    succeed(
        "-c",
        config,
        "-r",
        tmp_path / "last.pth",
        "--output-dir",
        tmp_path,
        "--override",
        ranks=2,
    )
    ours, theirs = (
        weights_of(tmp_path / "last.pth"),
        weights_of(run / "last.pth"),
    )
    assert ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def test_a_run_with_lora_saves_plain_weights_that_score_as_logged(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        DINOv3Backbone={"lora_rank": 2},
        optimizer={"lr": 2e-4},
    )
    out = succeed("-c", config, "-t", TRAINED, "--seed=1")
    plain = tiny_config(tiny_data, num_classes=4).model.state_dict()
    best = read_tensor_file(tmp_path / "run/best.pth")["model"]
    assert {name: value.shape for name, value in best.items()} == {
        name: value.shape for name, value in plain.items()
    }
    assert any(
        ".lora_up" in name
        for name in read_tensor_file(tmp_path / "run/last.pth")["model"]
    )
    logged = max(read_log(tmp_path / "run"), key=lambda record: record["AP"])
    assert logged["AP50"] > 0.1
    assert evaluated(config, tmp_path / "run/best.pth", tmp_path / "with")[
        "AP50"
    ] == pytest.approx(logged["AP50"], abs=1e-4)
    without = write_tiny_config(tmp_path, tiny_data)
    assert evaluated(without, tmp_path / "run/best.pth", tmp_path / "without")[
        "AP50"
    ] == pytest.approx(logged["AP50"], abs=1e-4)
    assert "parameters are trainable" in out


@pytest.mark.parametrize("ranks", [1, *slow(2)])
def test_gram_anchoring_adds_its_loss_and_leaves_no_trace_in_what_is_saved(
    tiny_data, tmp_path, ranks
):
    torch.save(
        official_layout(
            tiny_config(num_classes=4).model.backbone.vit, live_biases=False
        ),
        tmp_path / "dinov3.pth",
    )
    settings = {
        "pretrained": True,
        "checkpoint_path": str(tmp_path / "dinov3.pth"),
    }
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        DINOv3Backbone=settings,
        gram_anchoring={
            "type": "GramAnchoring",
            "weight": [[0, 100], [1.0, 0]],
        },
    )
    succeed("-c", config, "--seed=1", ranks=ranks)
    records = read_log(tmp_path / "run")
    assert all(record["train_loss_gram"] > 0 for record in records)
    last = read_tensor_file(tmp_path / "run/last.pth")
    assert not [
        name
        for name in (*last["model"], *last["ema"]["module"])
        if "teacher" in name or "gram" in name
    ]


@pytest.mark.parametrize("ranks", [1, *slow(2)])
def test_distillation_adds_its_loss_and_leaves_no_trace_in_the_detector(
    tiny_data, tmp_path, ranks
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=3,
        grad_accum_steps=2,
        train_dataloader={"collate_fn": {"stop_epoch": 2}},
        distillation=write_tiny_teacher(tmp_path),
    )
    out = succeed("-c", config, "--seed=1", ranks=ranks)
    records = read_log(tmp_path / "run")
    assert all(record["train_loss_distill"] > 0 for record in records)
    weights = [record["distillation_weight"] for record in records]
    assert weights[0] == 5 and weights[2] == 20
    shares = [record.get("distillation_share") for record in records]
    assert shares[0] > 0 and shares[2] is None
    assert "got" in out and "of the gradient (target 11 +- 1)" in out
    last = read_tensor_file(tmp_path / "run/last.pth")
    best = read_tensor_file(tmp_path / "run/best.pth")
    plain = tiny_config(tiny_data, num_classes=4).model.state_dict()
    for weights in (last["model"], last["ema"]["module"], best["model"]):
        assert list(weights) == list(plain)
    group = last["optimizer"]["param_groups"][-1]
    moments = [last["optimizer"]["state"][i] for i in group["params"]]
    assert group["name"] == "distillation"
    assert [state["exp_avg"].shape for state in moments] == [(48, 32), (48,)]
    assert all(state["exp_avg"].any() for state in moments)
    for name in ("best.pth", "last.pth"):
        detector = Detector.from_checkpoint(tmp_path / "run" / name)
        assert not hasattr(detector.engine.model, "projector")
        assert len(detector.engine.model.state_dict()) <= len(plain)
    evaluated(config, tmp_path / "run/best.pth", tmp_path / "evaluated")


@pytest.mark.slow
def test_when_patience_runs_out_the_clean_stage_runs_and_then_the_run_ends(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=20,
        patience=2,
        best_metric="AR100",
        optimizer={"lr": 0.0},
        train_dataloader={"collate_fn": {"stop_epoch": 15}},
    )
    out = succeed("-c", config, "--seed=1")
    records = read_log(tmp_path / "run")
    assert [record["stage"] for record in records].count(2) == 2
    assert [record["epoch"] for record in records][-2:] == [15, 16] and len(
        records
    ) < 10
    assert (
        "no better AR100 for 2 epochs: stage 2 begins early" in out
        and "no better AR100 for 2 epochs: the run ends early" in out
    )
    assert (
        read_tensor_file(tmp_path / "run/best.pth")["meta"]["metric"] == "AR100"
    )
    assert "this run is complete" in succeed(
        "-c", config, "-r", tmp_path / "run/last.pth"
    )


def test_a_metric_that_the_evaluator_does_not_give_is_named_before_anything_is_built(
    tiny_data, tmp_path
):
    result = run_python(
        "train.py",
        "-c",
        write_tiny_config(tmp_path, tiny_data),
        "-u",
        "best_metric=AP5",
    )
    assert result.returncode == 2
    assert (
        "best_metric is 'AP5', but the evaluator gives AP, AP50, AP75"
        in result.stderr + result.stdout
    )


def test_learning_rates_are_scaled_to_the_effective_batch_and_both_are_logged(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=1,
        lr_base_batch_size=16,
        grad_accum_steps=2,
        optimizer={"lr": 0.008},
    )
    out = succeed("-c", config)
    assert (
        "learning rates are scaled by 0.5: chosen for a batch of 16, used with 8"
        in out
    )
    assert "lr 0.004" in out


@pytest.mark.slow
def test_changing_epochs_alone_keeps_warm_up_phases_and_clean_stage_in_proportion(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=40,
        DINOv3Backbone={"freeze_backbone_epochs": 0.25, "unfreeze_blocks": 1},
        lr_warmup_scheduler={"warmup_duration": 500},
        train_dataloader={"collate_fn": {"stop_epoch": 0.75}},
    )
    out = succeed("-c", config, "-u", "epochs=4")
    assert (
        "warm-up is limited to 2 steps, a tenth of the run, instead of 500"
        in out
    )
    assert "epoch 2: 0.12 M of 0.16 M parameters are trainable" in out
    assert [record["stage"] for record in read_log(tmp_path / "run")] == [
        1,
        1,
        1,
        2,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["dinov3", *slow("hgnetv2")])
def test_what_deim_adds_trains_with_any_backbone_through_all_its_epochs(
    backbone, tiny_data, tmp_path
):
    size = "dinov3_tiny" if backbone == "dinov3" else "hgnetv2_n"
    folder = ROOT / "configs"
    parts = [
        "dataset/synthetic_detection.yml",
        "runtime.yml",
        "dfine/include/dataloader.yml",
        "dfine/include/optimizer.yml",
        f"dfine/include/dfine_{backbone}.yml",
        f"dfine/include/{size}.yml",
        "dfine/include/deim.yml",
    ]
    settings = merged(
        TINY_MODEL
        if backbone == "dinov3"
        else {"eval_spatial_size": [64, 64], "HGNetv2": {"pretrained": False}},
        tiny_data.settings,
        {
            "epochs": 4,
            "output_dir": str(tmp_path / "run"),
            "checkpoint_freq": 0,
            "train_dataloader": {
                "total_batch_size": 4,
                "num_workers": 1,
                "collate_fn": {
                    "stop_epoch": 0.75,
                    "mixup_prob": 1.0,
                    "mixup_epochs": [0.25, 0.5],
                    "copyblend_prob": 1.0,
                },
            },
            "val_dataloader": {"total_batch_size": 4},
        },
    )
    (tmp_path / "deim.yml").write_text(
        yaml.safe_dump(
            {"__include__": [str(folder / part) for part in parts], **settings}
        )
    )
    succeed("-c", tmp_path / "deim.yml", "--seed=1")
    records = read_log(tmp_path / "run")
    assert [record["stage"] for record in records] == [1, 1, 1, 2]
    assert all(
        record["train_loss_mal"] > 0 and "train_loss_vfl" not in record
        for record in records
    )


def test_a_window_longer_than_an_epoch_counts_as_what_it_holds(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=1,
        lr_base_batch_size=48,
        grad_accum_steps=100,
    )
    out = succeed("-c", config)
    assert (
        "learning rates are scaled by 0.5: chosen for a batch of 48, used with 24"
        in out
        and "batch 24 (6 x 4), 1 step per epoch" in out
    )


@pytest.mark.slow
def test_a_phase_that_the_run_does_not_reach_is_logged_and_patience_does_not_wait_for_it(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        epochs=5,
        patience=1,
        optimizer={"lr": 0.0},
        DINOv3Backbone={"freeze_backbone_epochs": 10},
        train_dataloader={"collate_fn": {"stop_epoch": None}},
    )
    out = succeed("-c", config, "--seed=1")
    assert (
        "parameters that are unfrozen in epoch 11 stay frozen: the run has 5 epochs"
        in out
        and "the run ends early" in out
    )


@pytest.mark.slow
def test_a_run_resumed_with_more_epochs_follows_the_new_plan_and_one_with_other_groups_is_refused(
    tiny_data, tmp_path
):
    config = write_tiny_config(
        tmp_path,
        tiny_data,
        DINOv3Backbone={"freeze_backbone_epochs": 0.5, "unfreeze_blocks": 1},
    )
    succeed("-c", config, "--seed=1")
    last = tmp_path / "run/last.pth"
    refused = run_python(
        "train.py",
        "-c",
        config,
        "-r",
        last,
        "--override",
        "-u",
        "epochs=6",
        "DINOv3Backbone.unfreeze_blocks=2",
    )
    assert (
        refused.returncode == 4
        and "was written with other parameter groups" in refused.stderr
    )
    out = succeed("-c", config, "-r", last, "--override", "-u", "epochs=6")
    assert "from epoch 4" in out and "from epoch 2" not in out
