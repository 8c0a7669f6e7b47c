"""Rows 5 and 6: CPU time of a training step, relative to one image through a bare ViT-S/16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ...core.contracts import Target
from .figures import OF_A_VIT, Figure, Settings, least_cpu_seconds

BATCH = 2
BOXES = 15
"""Objects per image."""

IMAGE_SIZE = 640
"""Height and width in pixels."""

REPEATS = 3
"""Most measured steps of a model; a step takes seconds."""

_ALL_TRAINED = {
    "DINOv3Backbone": {
        "pretrained": False,
        "freeze_backbone_epochs": 0,
        "unfreeze_blocks": None,
    }
}


class Trained(NamedTuple):
    """A model whose training step is measured."""

    row: int
    work: str
    config: str
    overrides: Mapping[str, Any]
    target: float


MODELS = (
    Trained(
        5,
        "training step of two images, DINOv3-S, all trained",
        "dfine_dinov3_s_coco",
        _ALL_TRAINED,
        7.2,
    ),
    Trained(
        5,
        "training step of two images, DINOv3-S2 with windows, all trained",
        "dfine_dinov3_s2_windows_coco",
        _ALL_TRAINED,
        5.8,
    ),
    Trained(
        6,
        "training step of two images, HGNetv2-S",
        "dfine_hgnetv2_s_coco",
        {"HGNetv2": {"pretrained": False}},
        1.9,
    ),
)


def measure(
    settings: Settings,
    models: tuple[Trained, ...] = MODELS,
    size: int = IMAGE_SIZE,
) -> Iterator[Figure]:
    """Measure a step of each model: forward, loss, backward, clipping, AdamW and EMA.

    Weights are random and images are noise, on which the time does not depend.

    Args:
        settings: the settings of all measurements.
        models: what is measured.
        size: height and width of the images, in pixels.

    Yields:
        One figure for each model, in forward passes of a bare ViT-S/16 with one image of this size.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        repeats = min(settings.repeats, REPEATS)
        for model in models:
            # one model at a time, since a step needs up to 3 GB
            seconds = least_cpu_seconds(
                {"vit": vit_forward(size), "step": training_step(model, size)},
                repeats,
            )
            yield Figure(
                model.row,
                model.work,
                seconds["step"] / seconds["vit"],
                OF_A_VIT,
                target=model.target,
                seconds=seconds["step"],
            )
    finally:
        torch.set_num_threads(threads)


def vit_forward(size: int) -> Callable[[], object]:
    """Return the yardstick: one image through a bare ViT-S/16, in inference mode."""
    import torch

    from ..benchmark import bare_vit

    vit = bare_vit((size, size))
    image = torch.rand(1, 3, size, size)
    return torch.inference_mode()(lambda: vit(image))


def training_step(model: Trained, size: int) -> Callable[[], object]:
    """Return a function that runs one training step of a model on the same batch again."""
    import torch

    from ...core import YAMLConfig
    from ...core.package_configs import find_config
    from ...solver.numerics import NumericsGuard
    from ...solver.training_step import TrainStep

    torch.manual_seed(0)
    cfg = YAMLConfig(
        find_config(model.config),
        eval_spatial_size=[size, size],
        **model.overrides,
    )
    step = TrainStep(
        model=cfg.model.train(),
        criterion=cfg.criterion.train(),
        optimizer=cfg.optimizer,
        ema=cfg.ema,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=cfg.settings.clip_max_norm,
        guard=NumericsGuard(1000),
    )
    images = torch.rand(BATCH, 3, size, size)
    targets = [_noise_target() for _ in range(BATCH)]
    return lambda: step(0, [(images, targets)])


def _noise_target() -> Target:
    """Return objects of 5 to 35 % of the sides of an image, in its middle."""
    import torch

    centers = torch.rand(BOXES, 2) * 0.5 + 0.25
    sides = torch.rand(BOXES, 2) * 0.3 + 0.05
    return {
        "boxes": torch.cat((centers, sides), 1),
        "labels": torch.randint(0, 80, (BOXES,)),
    }
