"""Measurement of training steps, with a small model and few pixels."""

import torch

from src.cli.everything.figures import OF_A_VIT, Settings
from src.cli.everything.training import (
    MODELS,
    Trained,
    measure,
    training_step,
)

SMALL = Trained(
    6,
    "training step, small",
    "dfine_hgnetv2_n_coco",
    {
        "HGNetv2": {"pretrained": False},
        "DFINETransformer": {"num_queries": 10},
    },
    1.9,
)


def test_each_model_gives_one_figure_with_its_target(tmp_path):
    threads = torch.get_num_threads()
    settings = Settings(tmp_path, repeats=1)
    (figure,) = measure(settings, models=(SMALL,), size=64)
    assert (figure.row, figure.work) == (6, "training step, small")
    assert figure.unit == OF_A_VIT
    assert figure.value > 0
    assert figure.target == 1.9
    assert not figure.at_least
    assert torch.get_num_threads() == threads


def test_a_measured_step_is_a_whole_step():
    step = training_step(SMALL, 64)
    first = step()
    second = step()
    assert first.keys() == second.keys() and "loss_giou" in first
    changed = [name for name in first if first[name] != second[name]]
    assert "loss_giou" in changed


def test_the_models_are_those_of_the_table():
    assert [(model.row, model.target) for model in MODELS] == [
        (5, 7.2),
        (5, 5.8),
        (6, 1.9),
    ]
