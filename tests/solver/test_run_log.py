"""Log lines, records and pictures of a run."""

import pytest
import torch
from torch import nn

from src.solver.epoch_meter import EpochMeter
from src.solver.model_selection import BestModel
from src.solver.plan import Progress, TrainingPlan
from src.solver.run_log import (
    RunLog,
    boxes_record,
    by_class_name,
    epoch_record,
    horizon_warning,
    log_data,
    log_plan,
    log_step,
    log_teacher,
)

PLAN = TrainingPlan(
    epochs=10, steps_per_epoch=100, window=2, batch_size=16, stop_epoch=8
)


class Collecting:
    """A writer that keeps what it gets."""

    def __init__(self) -> None:
        self.steps, self.epochs, self.pictures, self.closed = [], [], [], False

    def write_step(self, step, scalars):
        self.steps.append((step, scalars))

    def write_epoch(self, epoch, record):
        self.epochs.append((epoch, record))

    def write_picture(self, epoch, name, picture):
        self.pictures.append((epoch, name, picture.dtype))

    def close(self):
        self.closed = True


def meter_of(
    seconds: float, images: int = 0, waited: float = 0.0
) -> EpochMeter:
    """Return the meter of an epoch that has taken so long."""
    meter = EpochMeter(steps=10, images=images, waited=waited)
    meter.started -= seconds
    return meter


def record(**changes) -> dict:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[1].requires_grad_(False)
    values = {
        "epoch": 3,
        "next_epoch": 4,
        "plan": PLAN,
        "meter": meter_of(60.0, images=600, waited=15.0),
        "losses": {"loss": 3.0, "loss_a": 1.0, "loss_b": 2.0},
        "metrics": {
            "AP": 0.5,
            "AP50": None,
            "F1": 0.7,
            "AR1": 0.3,
            "AP_of_class": {7: 0.5},
        },
        "best": BestModel("AP", 0.6, 1),
        "highest_rate": 1e-3,
        "rates": {"backbone": 1e-4, "default": 1e-3},
        "class_names": {7: "cat"},
        "peak_memory_mb": 512.0,
        "model": model,
    }
    return epoch_record(**values | changes)


def test_the_record_of_an_epoch_has_losses_metrics_and_the_best_score():
    made = record()
    assert (made["epoch"], made["epochs"], made["stage"]) == (3, 10, 1)
    assert (made["train_loss"], made["train_loss_a"], made["train_loss_b"]) == (
        3.0,
        1.0,
        2.0,
    )
    assert (made["AP"], made["AP50"], made["AP_of_class"]) == (
        0.5,
        None,
        {"7": 0.5},
    )
    assert made["AP_by_class_name"] == {"cat": 0.5}
    assert made["learning_rates"] == {"backbone": 1e-4, "default": 1e-3}
    assert made["test_coco_eval_bbox"] == [0.5, -1, 0.3]
    assert (made["best_metric"], made["best_score"], made["best_epoch"]) == (
        "AP",
        0.6,
        1,
    )
    assert (made["n_parameters"], made["n_trainable"]) == (13, 9)


def test_speed_and_waiting_are_those_of_the_epoch():
    made = record()
    assert made["images_per_second"] == pytest.approx(10.0, rel=0.01)
    assert made["data_wait"] == pytest.approx(0.25, rel=0.01)


def test_the_time_left_is_that_of_the_epochs_to_come():
    assert record()["seconds_left"] == pytest.approx(6 * 60.0, rel=0.01)
    assert record(next_epoch=8)["seconds_left"] == pytest.approx(
        2 * 60.0, rel=0.01
    )
    assert record(epoch=9, next_epoch=10)["seconds_left"] == 0.0


def test_a_step_line_has_progress_speed_time_left_and_memory(caplog):
    meter = meter_of(20.0, images=160)
    with caplog.at_level("INFO", "dfine"):
        log_step(
            Progress(epoch=3, step=10, total_steps=310),
            PLAN,
            2.5,
            1e-3,
            meter,
            memory=2.14e9,
        )
    assert caplog.messages == [
        "epoch 4/10  step 10/100  loss 2.500  lr 1.00e-03  8.0 images/s  left 0:23:00  memory 2.1 GB"
    ]


def test_a_step_is_written_with_each_loss_their_sums_and_each_rate():
    writer = Collecting()
    losses = {"loss_vfl": 1.0, "loss_vfl_aux_0": 2.0, "loss_bbox": 0.5}
    rates = {"backbone": 1e-4, "default": 1e-3}
    RunLog([writer], PLAN).step(7, losses, rates)
    expected = {
        "loss/total": 3.5,
        "loss/vfl": 3.0,
        "loss/bbox": 0.5,
        "loss_terms/vfl": 1.0,
        "loss_terms/vfl_aux_0": 2.0,
        "loss_terms/bbox": 0.5,
        "lr/backbone": 1e-4,
        "lr/default": 1e-3,
    }
    assert writer.steps == [(7, expected)]


def test_a_step_is_written_with_the_weight_of_a_term_that_changes():
    writer = Collecting()
    weights = {"loss_distill": 7.5}
    RunLog([writer], PLAN).step(7, {"loss_distill": 1.0}, {}, weights)
    (_, values) = writer.steps[0]
    assert values["loss_weight/distill"] == 7.5


def test_classes_of_the_same_name_are_told_apart_by_their_ids():
    values = by_class_name({1: 0.5, 2: None, 9: 0.25}, {1: "a", 2: "a"})
    assert values == {"a": 0.5, "a (2)": None, "9": 0.25}


def test_an_epoch_goes_to_every_writer_and_all_are_closed():
    writers = [Collecting(), Collecting()]
    log = RunLog(writers, PLAN)
    log.epoch({"epoch": 2})
    log.close()
    assert all(
        writer.epochs == [(2, {"epoch": 2})] and writer.closed
        for writer in writers
    )


@pytest.mark.parametrize(
    ("pictures", "epoch", "count"), [(True, 0, 1), (False, 0, 0)]
)
def test_training_images_are_shown_if_pictures_are_wanted(
    pictures, epoch, count
):
    writer = Collecting()
    target = {
        "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]),
        "labels": torch.tensor([0]),
    }
    log = RunLog([writer], PLAN, pictures=pictures)
    log.show_training(epoch, torch.rand(1, 3, 32, 32), [target], {0: "cat"})
    assert writer.pictures == [(epoch, "training", torch.uint8)] * count


def test_the_plan_is_logged_with_the_horizon_of_the_ema(caplog):
    with caplog.at_level("INFO", "dfine"):
        log_plan(PLAN, 50.0)
    assert caplog.messages == ["EMA horizon: 50 of 1,000 steps"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"stop_epoch": 12},
            "stage 2 never starts: stop_epoch is 12 but the run has 10 epochs",
        ),
        (
            {"thaws": frozenset({0, 10})},
            "parameters that are unfrozen in epoch 11 stay frozen: the run has 10 epochs",
        ),
        (
            {"ema_restart_decay": 0.9999},
            "horizon of 10,000 steps is more than a fifth of this run's 1,000",
        ),
    ],
)
def test_what_a_run_does_not_reach_is_warned_about(changes, text, caplog):
    log_plan(TrainingPlan(**vars(PLAN) | changes), 50.0)
    assert text in caplog.text


def test_a_phase_that_is_not_reached_is_advised_about_in_its_own_setting(
    caplog,
):
    log_plan(TrainingPlan(**vars(PLAN) | {"thaws": frozenset({0, 10})}), 50.0)
    assert (
        "let the phase begin earlier (DINOv3Backbone.freeze_backbone_epochs or unfreeze_plan), for example "
        "after a fraction of the run, 0.125" in caplog.text
    )


def test_the_data_are_logged_with_their_numbers(caplog):
    class Data(list):
        def boxes_per_image(self):
            return torch.tensor([2, 0, 30])

    train, val = Data(range(3)), Data(range(2))
    with caplog.at_level("INFO", "dfine"):
        log_data(train, val, 4, PLAN, queries=20)
    assert caplog.messages == [
        "3 training images (1 without objects, used as negatives), 2 for evaluation, 4 classes, "
        "batch 16 (2 x 8), 100 steps per epoch, 10 epochs",
        "an image has 30 objects, but at most 20 can be detected in one image (num_queries)",
    ]


@pytest.mark.parametrize(
    ("horizon", "steps", "warned"),
    [
        (10_000, 2480, True),
        (50, 2480, False),
        (497, 2480, True),
        (496, 2480, False),
        (10_000, 250, False),
    ],
)
def test_a_horizon_above_a_fifth_of_a_run_is_warned_about_unless_the_run_is_short(
    horizon, steps, warned
):
    text = horizon_warning(horizon, steps)
    assert (text is not None) == warned
    if warned:
        assert (
            f"horizon of {horizon:,} steps is more than a fifth of this run's {steps:,}"
            in text
        )
        assert "ema.decay=~" in text


def test_the_record_of_an_epoch_holds_the_boxes_that_were_read_and_lost(caplog):
    assert boxes_record(3, 100, {"RandomIoUCrop": 30}) == {
        "boxes_read": 100,
        "boxes_lost": {"RandomIoUCrop": 30},
    }
    assert caplog.text == ""


def test_an_epoch_whose_augmentation_drops_most_boxes_is_warned_about(caplog):
    boxes_record(3, 100, {"SanitizeBoundingBoxes": 20, "RandomIoUCrop": 31})
    assert (
        "epoch 4: 51 of 100 boxes did not reach the loss: RandomIoUCrop dropped 31, "
        "SanitizeBoundingBoxes dropped 20"
    ) in caplog.text


def test_a_step_line_has_the_speed_without_the_teacher(caplog):
    with caplog.at_level("INFO", "dfine"):
        log_step(
            Progress(epoch=3, step=10, total_steps=310),
            PLAN,
            2.5,
            1e-3,
            meter_of(20.0, images=160),
            memory=2.14e9,
            teacher_seconds=10.0 / meter_of(20.0, images=160).steps,
        )
    assert "8.0 images/s (16.0 without the teacher)  left" in caplog.text


def test_an_epoch_with_a_teacher_reports_its_part_of_the_time(caplog):
    meter = meter_of(20.0, images=160)
    with caplog.at_level("INFO", "dfine"):
        log_teacher(meter, None)
        log_teacher(meter, 5.0 / meter.steps)
    assert caplog.messages == [
        "training at 8.0 images/s (10.7 without the teacher): the teacher takes 25 % of the time"
    ]
