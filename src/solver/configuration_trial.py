"""A configuration that is tried on this machine, and the training step that is built for it.

Weights are random and images are noise, so that neither a download nor data is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..core.build import create
from ..core.durations import RunLength
from ..core.loader_contracts import MultiScaleCollate
from ..core.yaml_config import YAMLConfig
from .automatic_batch import AUTO
from .building import build_model, build_step
from .numerics import NumericsGuard
from .phases import Phases
from .run_estimate import COCO_IMAGES
from .start_weights import Start
from .training_step import TrainStep

DEFAULT_SIZE = (640, 640)
DEFAULT_CLASSES = 80


@dataclass(frozen=True)
class Trial:
    """A configuration that is tried on this machine."""

    path: Path
    overrides: Mapping[str, Any]
    device: torch.device
    amp_dtype: torch.dtype | None
    ranks: int
    """Ranks of the run, also before they have joined."""

    def config(self) -> YAMLConfig:
        """Return the configuration, with random weights and the batch of one rank; nothing is built yet."""
        cfg = YAMLConfig(self.path, **copy.deepcopy(dict(self.overrides)))
        cfg.without_pretrained()
        loader = cfg.yaml_cfg.get("train_dataloader")
        if isinstance(loader, dict):
            own = {"batch_size": self.images, "total_batch_size": None}
            cfg.set("train_dataloader", own, "doctor.py")
        return cfg

    @cached_property
    def loader_settings(self) -> dict[str, Any]:
        """Return the settings of the training loader; empty if the configuration has none."""
        cfg = YAMLConfig(self.path, **copy.deepcopy(dict(self.overrides)))
        return dict(cfg.yaml_cfg.get("train_dataloader") or {})

    @cached_property
    def images(self) -> int:
        """Images of one rank in a batch."""
        loader = self.loader_settings
        if loader.get("batch_size"):
            return int(loader["batch_size"])
        total = loader.get("total_batch_size") or 1
        if total == AUTO:  # how many fit is estimated from one and two
            return 1
        return max(1, int(total) // self.ranks)

    @property
    def workers(self) -> int:
        """Loader workers of one rank."""
        return int(self.loader_settings.get("num_workers") or 0)

    @property
    def waiting_batches(self) -> int:
        """Batches of one rank that wait in shared memory at a time."""
        prefetch = self.loader_settings.get("prefetch_factor") or 2
        return self.workers * int(prefetch)

    def folder(self) -> Path | None:
        """Return the folder of the training images, or None if the data set names none."""
        data = self.loader_settings.get("dataset")
        if not isinstance(data, dict) or not data.get("img_folder"):
            return None
        return Path(data["img_folder"])

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the usual and the largest (height, width) of training images, in pixels."""
        cfg = self.config()
        height, width = cfg.yaml_cfg.get("eval_spatial_size") or DEFAULT_SIZE
        size = (int(height), int(width))
        resolved = cfg.resolved_cfg
        loader = resolved.get("train_dataloader") or {}
        spec = loader.get("collate_fn")
        collate = create(spec, resolved) if spec else None
        if isinstance(collate, MultiScaleCollate):
            return size, collate.largest_size(size)
        return size, size

    def batch_bytes(self) -> int:
        """Return the bytes of the images of a batch of the largest size, as float32."""
        _, (height, width) = self.sizes()
        return 4 * 3 * self.images * height * width


@dataclass(frozen=True)
class Built:
    """A training step that was built for a trial, in the last phase of its run."""

    step: TrainStep
    phases: Phases
    num_classes: int
    last_epoch: int


def build_trial(
    trial: Trial,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    data: Mapping[str, Any],
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Built:
    """Build model, loss and optimizer of a trial with random weights.

    Args:
        trial: what is tried.
        device: device of the model.
        amp_dtype: dtype for autocast, or None for float32.
        data: numbers of `check_loader`; empty without data.
        changes: settings that differ from the configuration, by section; other sections are left out.
    """
    cfg = trial.config()
    classes = data.get("classes", DEFAULT_CLASSES)
    if cfg.yaml_cfg.get("num_classes") is None:
        cfg.set("num_classes", classes, "doctor.py")
    for section, settings in (changes or {}).items():
        known = cfg.yaml_cfg.get(section)
        if isinstance(known, dict):
            cfg.set(section, dict(settings), "doctor.py")
    images = data.get("images", COCO_IMAGES)
    window = trial.images * trial.ranks * cfg.settings.grad_accum_steps
    epochs = cfg.settings.epochs
    cfg.resolve_lengths(RunLength(epochs, max(1, images // window)))
    model, _ = build_model(cfg, Start(), [], 0, device)
    scaler = cfg.scaler(device.type) if amp_dtype == torch.float16 else None
    guard = NumericsGuard(max(1, images // window))
    step = build_step(cfg, model.train(), guard, scaler, device, amp_dtype)
    phases = Phases(
        step, find_unused_parameters=cfg.settings.find_unused_parameters
    )
    return Built(step, phases, int(cfg.yaml_cfg["num_classes"]), epochs - 1)
