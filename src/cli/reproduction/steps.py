"""The six steps of a reproduction, which remember what is done."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from typing import Any

import torch

from ...core.errors import ConfigError, DataError, ResourceError
from ...core.yaml_config import YAMLConfig
from ...detection.run_checkpoint import BEST, LAST
from ...runtime.log import say, say_lines
from ...runtime.weight_files import file_sha256
from ...solver.earlier_runs import EVALUATION
from . import coco_files, weights
from .children import (
    DOCTOR_REPORT,
    doctor_command,
    evaluation_command,
    read_doctor,
    run_step,
    training_command,
)
from .data_check import check_data
from .plan import Plan
from .record import Record
from .result import (
    RESULT,
    ROW,
    about_first_epoch,
    describe_session,
    digest_of,
    make_result,
    table_row,
    write_result,
)

RECORD = "reproduction.json"
DATA_REPORT = "data.json"

START = "start of training"
"""Name in the record under which the settings are kept that a training is resumed with."""


class Steps:
    """The six steps; each returns at once if it was done with the same inputs."""

    def __init__(self, plan: Plan, record: Record) -> None:
        """Store the arguments."""
        self.plan = plan
        self.job = plan.job
        self.record = record

    def in_order(self) -> list[tuple[str, Callable[[], None]]]:
        """Return the steps with their titles."""
        return [
            ("doctor: the machine", self.check_machine),
            ("data", self.check_data),
            ("start weights", self.check_weights),
            ("training", self.train),
            ("evaluation", self.evaluate),
            ("result", self.write_result),
        ]

    def refuse_other_training(self) -> None:
        """Check that the folder does not hold a training with other settings.

        Raises:
            ConfigError: with the settings that differ.
        """
        changes = self.record.changes(START, self._settings())
        if not changes:
            return
        before = " ".join(self.record.notes(START)["-u"])
        raise ConfigError(
            f"{self.job.folder} holds a training with other settings: {'; '.join(changes)} (it was started "
            f"{'with -u ' + before if before else 'without -u'}); repeat its settings, or pass another "
            "--output-dir"
        )

    def check_machine(self) -> None:
        """Run the doctor, which fails if this machine cannot train the model."""
        report = self.job.folder / DOCTOR_REPORT
        inputs = {
            **self._settings(),
            "-u": self.job.updates,
            "machine": platform.node(),
            "processes": self.job.processes,
            "device": self.job.device,
            "torch": str(torch.__version__),
            "quick": self.job.quick,
        }
        if self.record.is_done("doctor", inputs) and read_doctor(report):
            skip(f"{report} has its results for this machine")
            return
        run_step("check of the machine", doctor_command(self.job))
        self.record.add("doctor", inputs)

    def check_data(self) -> None:
        """Check labels, images and disk space."""
        self._check_space()
        inputs = {
            **coco_files.identity_of(self.plan.data),
            "quick": self.job.quick,
        }
        if self.record.is_done("data", inputs):
            notes = self.record.notes("data")
            skip("these files were checked before")
            say(coco_files.remark_about(notes, classes=notes["classes"]))
            return
        notes = check_data(
            self.plan.cfg,
            self.plan.data,
            self.job.folder / DATA_REPORT,
            quick=self.job.quick,
        )
        self.record.add("data", inputs, notes)

    def check_weights(self) -> None:
        """Load the start weights, which verifies them."""
        inputs = {**self._settings(), **weights.identity_of(self.plan.weights)}
        if self.record.is_done("weights", inputs):
            skip("these files were verified before")
            return
        digests = weights.check_weights(self.plan.cfg, self.plan.weights)
        self.record.add("weights", inputs, {"sha256": digests})

    def train(self) -> None:
        """Train, or resume the training."""
        inputs = self._settings()
        best = self.job.run_folder / BEST
        if self.record.is_done("training", inputs) and best.is_file():
            skip(f"{self.job.run_folder} is complete")
            return
        if not self.record.is_done(START, inputs):
            self.record.add(START, inputs, {"-u": self.job.changes})
        self.record.add_session(describe_session(self.job))
        run_step("training", training_command(self.job))
        if not best.is_file():
            raise DataError(
                f"the training has ended without {best}: AP was never defined; does the validation set have "
                "objects?"
            )
        self.record.add("training", inputs)

    def evaluate(self) -> None:
        """Evaluate the best checkpoint."""
        run_folder = self.job.run_folder
        inputs = {
            **self._settings(),
            **coco_files.identity_of(self.plan.data),
            "best": file_sha256(run_folder / BEST),
        }
        result = run_folder / EVALUATION
        if self.record.is_done("evaluation", inputs) and result.is_file():
            skip(f"{result} has the result for {BEST}")
            return
        run_step("evaluation", evaluation_command(self.job))
        self.record.add("evaluation", inputs)

    def write_result(self) -> None:
        """Write and print the result."""
        result = make_result(
            self.job,
            self.plan.cfg,
            recipe_epochs=self.plan.recipe_epochs,
            images=self.record.notes("data"),
            weights=self.record.notes("weights")["sha256"],
            sessions=self.record.sessions,
        )
        row = table_row(self.job.entry, result)
        write_result(self.job.folder, result, row)
        for name, value in result["metrics"].items():
            say(f"{name:10} {'n/a' if value is None else f'{value:.4f}'}")
        comparison = about_first_epoch(self.job.entry, result)
        if comparison is not None:
            text, is_warning = comparison
            say(f"warning: {text}" if is_warning else text)
        say("")
        say_lines(row)
        say("")
        folder = self.job.folder
        say(
            f"all numbers are in {folder / RESULT}, the row is in {folder / ROW}; docs/evaluate.md says how "
            "to send them"
        )

    def _settings(self) -> dict[str, Any]:
        """Return what the results of the training depend on, besides data and hardware."""
        return {
            "model": self.job.entry.name,
            "epochs": self.plan.cfg.settings.epochs,
            "seed": self.job.seed,
            "configuration": digest_of(self.plan.cfg)[:12],
        }

    def _check_space(self) -> None:
        """Check the disk space for the checkpoints of a run that has none yet.

        Raises:
            ResourceError: if there is too little.
        """
        if (self.job.run_folder / LAST).exists():
            return
        needed = space_needed(self.job.entry.params, self.plan.cfg)
        free = shutil.disk_usage(self.job.folder).free
        if free < needed:
            raise ResourceError(
                f"{self.job.folder} has {free / 1e9:.1f} GB of free disk space, but the checkpoints of this "
                f"training need about {needed / 1e9:.1f} GB; free some, pass another --output-dir, or pass "
                "-u checkpoint_freq=0, which keeps only the last and the best checkpoint"
            )


BYTES_OF_STATE = 16
"""Bytes for each parameter in a training state: weights, EMA and the two moments of AdamW, in float32."""


def space_needed(parameters: int | None, cfg: YAMLConfig) -> int:
    """Return the bytes that the checkpoints of a training need.

    These are `last.pth`, the previous one and the one that is being written, the numbered checkpoints, and
    `best.pth`.

    Args:
        parameters: parameters of the model; None assumes 30 million.
        cfg: configuration of the training.
    """
    every = cfg.settings.checkpoint_freq
    numbered = cfg.settings.epochs // every if every else 0
    one = BYTES_OF_STATE * (parameters or 30_000_000)
    return one * (3 + numbered + 1)


def skip(reason: str) -> None:
    """Print why a step is left out."""
    say(f"already done: {reason}")
