"""Whole runs in this process or in forked ranks, stopped after any step, and their output files."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from src.core.errors import Preempted
from src.core.yaml_config import YAMLConfig
from src.runtime.stop import StopRequest
from src.runtime.weight_files import read_tensor_file
from src.solver import DetSolver, det_solver
from src.solver.building import Run
from tests.fixtures.processes import on_ranks
from tests.fixtures.tiny import SyntheticData, merged, tiny_config
from tests.fixtures.trained_tiny import TRAINED

RUN: dict[str, Any] = {
    "seed": 1,
    "epochs": 3,
    "grad_accum_steps": 2,
    "checkpoint_freq": 0,
    "print_freq": 1000,
    "tuning": str(TRAINED),
    "optimizer": {"lr": 2e-4},
    "DINOv3Backbone": {"freeze_backbone_epochs": 1, "unfreeze_blocks": 1},
    "lr_warmup_scheduler": {"warmup_duration": "1 epoch"},
    "train_dataloader": {
        "collate_fn": {
            "stop_epoch": 2,
            "mixup_prob": 0.5,
            "base_size": 64,
            "base_size_repeat": 1,
        }
    },
}
"""Nine steps of two batches: phase A, phase B, clean stage; from trained weights, for scores above 0."""
STEPS = 9


class StopAfter(StopRequest):
    """Asks to stop after so many steps of a run, as a signal would; or in the evaluation after them."""

    def __init__(self, steps: int | None, in_evaluation: bool) -> None:
        super().__init__()
        self.steps = steps
        self.in_evaluation = in_evaluation
        self.runs: list[Run] = []
        self.signal = signal.SIGTERM

    @property
    def asked(self) -> bool:
        if self.steps is None or not self.runs:
            return False
        run = self.runs[-1]
        done = run.state.progress.total_steps
        evaluating = run.state.progress.step == run.plan.steps_per_epoch
        return (
            done >= self.steps and evaluating
            if self.in_evaluation
            else done + 1 >= self.steps and not evaluating
        )


@contextmanager
def watched_runs() -> Iterator[list[Run]]:
    """Collect the runs that solvers build."""
    runs: list[Run] = []
    ordinary = det_solver.build_run

    def build_run(*arguments: Any) -> Run:
        runs.append(ordinary(*arguments))
        return runs[-1]

    with mock.patch.object(det_solver, "build_run", build_run):
        yield runs


def fit(cfg: YAMLConfig, stop: StopRequest | None = None) -> Run:
    """Train on the CPU, asking `stop` after each step; return the run."""
    with watched_runs() as runs:
        if isinstance(stop, StopAfter):
            stop.runs = runs
        DetSolver(cfg, torch.device("cpu"), stop).fit()
    return runs[-1]


def run(
    data: SyntheticData,
    folder: Path,
    *,
    ranks: int = 1,
    stop_after: int | None = None,
    in_evaluation: bool = False,
    **overrides: Any,
) -> bool:
    """Train in `folder`, resuming from its `last.pth` if it exists; return whether the run was completed."""

    def train() -> bool:
        torch.set_num_threads(1)
        cfg = tiny_config(
            data, folder, **merged(RUN, {"resume": "auto"}, overrides)
        )
        try:
            fit(cfg, StopAfter(stop_after, in_evaluation))
        except Preempted:
            return False
        return True

    return all(on_ranks(ranks, train)) if ranks > 1 else train()


def final_state(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a `last.pth` that training depends on, by name."""
    state = read_tensor_file(folder / "last.pth")
    keys = ("model", "ema", "optimizer", "distillation", "progress", "best")
    return dict(_flatten({key: state[key] for key in keys}))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Return whether two states are equal bit for bit."""
    return one.keys() == two.keys() and all(
        torch.equal(value, two[name])
        if isinstance(value, Tensor)
        else value == two[name]
        for name, value in one.items()
    )


def _flatten(value: Any, name: str = ""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{name}/{index}")
    else:
        yield name, value
