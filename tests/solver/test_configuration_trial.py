"""A trial knows its batch, its image sizes and its loader without building anything."""

import dataclasses

import pytest
import torch

from src.solver.configuration_trial import Trial
from tests.fixtures.commands import write_tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def trial(tmp_path, tiny_data):
    path = write_tiny_config(tmp_path, tiny_data)
    return Trial(path, {}, CPU, None, ranks=2)


def test_a_trial_has_the_batch_of_one_rank_and_its_needs(trial):
    assert trial.images == 2 and trial.workers == 0
    workers = {"train_dataloader": {"num_workers": 3}}
    busy = dataclasses.replace(trial, overrides=workers)
    assert busy.waiting_batches == 6
    assert busy.sizes() == ((64, 64), (64, 64))
    assert busy.batch_bytes() == 2 * 3 * 64 * 64 * 4
    several = {
        "eval_spatial_size": [160, 320],
        "train_dataloader": {
            "collate_fn": {
                "base_size": 160,
                "base_size_repeat": 1,
                "stop_epoch": 0.9,
            }
        },
    }
    usual, largest = dataclasses.replace(trial, overrides=several).sizes()
    assert usual == (160, 320) and largest[0] > 160 and largest[1] > 320
