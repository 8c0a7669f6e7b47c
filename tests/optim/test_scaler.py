"""Loss scaling for fp16."""

import torch

from src.core.build import create


def test_scaler_takes_torchs_settings_and_the_device_of_the_run():
    scaler = create(
        {
            "type": "GradScaler",
            "enabled": True,
            "init_scale": 8.0,
            "growth_interval": 7,
        },
        device="cpu",
    )
    assert (
        scaler.get_scale(),
        scaler.get_growth_interval(),
        scaler.is_enabled(),
    ) == (
        8.0,
        7,
        True,
    )


def test_scaler_that_is_switched_off_leaves_losses_alone():
    assert (
        create({"type": "GradScaler", "enabled": False}, device="cpu")
        .scale(torch.tensor(3.0))
        .item()
        == 3.0
    )
