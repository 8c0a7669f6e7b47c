"""Train and evaluate the model of a configuration: `fit` and `val`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..core.errors import Preempted
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import barrier, is_main
from ..runtime.files import write_json
from ..runtime.log import logger
from ..runtime.own_files import marked_json
from ..runtime.stop import StopRequest
from ..runtime.watchdog import Watchdog
from .building import Run, build_model, build_run, choose_seed
from .callbacks import Callbacks
from .checkpoint import CheckpointFolder
from .det_engine import evaluate
from .earlier_runs import EVALUATION, set_aside_earlier_run
from .loggers.choice import chosen_loggers, require_packages
from .loggers.logged_state import forget_runs
from .output_folder import claimed, prepare_for_evaluation
from .run_data import open_evaluation_data
from .run_log import RunLog, log_result, open_run_log
from .run_state import plain
from .saving import Saver
from .start_weights import read_start, resumes_in
from .training_loop import (
    begin_epoch,
    end_epoch,
    evaluate_run,
    log_run,
    rehearse,
    train_epoch,
)


class DetSolver:
    """Train and evaluate the model that a configuration describes."""

    def __init__(
        self,
        cfg: YAMLConfig,
        device: torch.device,
        stop: StopRequest | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        """Store the arguments; `fit` and `val` build the parts they need.

        Args:
            cfg: configuration of the run.
            device: device of this rank.
            stop: request that a signal sets to end the run; None disables it.
            callbacks: functions that `fit` calls; they must use the same stop request.
        """
        self.cfg = cfg
        self.settings = cfg.settings
        self.device = device
        self.stop = stop or StopRequest()
        self.callbacks = callbacks or Callbacks(stop=self.stop)
        self.output_dir = Path(cfg.settings.output_dir)
        self.log: RunLog | None = None
        """Log of the run, while it is open."""

    def fit(self) -> None:
        """Train the model, and close its log; `train` leaves it open."""
        self.train()
        self.end_log()

    def train(self) -> None:
        """Train the model, evaluate it after every epoch, and save the best weights and the training state.

        The log stays open so that the caller can add a report; `end_log` closes it. If the training does not
        end successfully, it is closed at once.

        An error in a callback is raised after the state was saved.

        Raises:
            RunError: with an exit code, if the run cannot be built, diverges, runs out of memory or disk
                space, or was asked to stop.
        """
        stopped = None
        try:
            try:
                self._fit()
            except Preempted as error:
                stopped = error
            self.callbacks.raise_failure()
            if stopped is not None:
                raise stopped
        except BaseException:
            self._close_log()
            raise

    def end_log(self, report: Path | None = None) -> None:
        """Write the result of the run to its loggers, and close the log.

        Args:
            report: path of `report.html`; it is left out if there is no such file.
        """
        if self.log is not None:
            log_result(self.log, self.output_dir, report)
        self._close_log()

    def _close_log(self) -> None:
        log = self.log
        self.log = None
        if log is not None:
            log.close()

    def _fit(self) -> None:
        require_packages(chosen_loggers(self.settings))
        with ExitStack() as stack:
            checkpoints = stack.enter_context(claimed(self.settings))
            run = build_run(
                self.cfg, self.device, checkpoints, lambda: self.stop.asked
            )
            progress = run.state.progress
            if run.plan.is_over(progress):
                logger.info(
                    "this run is complete: epoch %d of %d; to continue it, increase epochs and pass "
                    "--override",
                    progress.epoch,
                    run.plan.epochs,
                )
                return
            watchdog = Watchdog(run.folder, self.settings.rank_timeout)
            stack.callback(watchdog.rest)
            log = self.log = self._open_log(run)
            saver = Saver(
                checkpoints,
                run.facts,
                run.state,
                run.plan,
                self.settings,
                self.stop,
                self.callbacks,
            )
            log_run(run)
            rehearse(run)
            while not run.plan.is_over(run.state.progress):
                epoch = run.state.progress.epoch
                begin_epoch(run, epoch)
                meter = train_epoch(run, log, saver, watchdog)
                metrics = evaluate_run(run, saver)
                end_epoch(run, log, saver, epoch, meter, metrics)
            if is_main():
                checkpoints.finish()
        barrier()

    def val(self) -> dict[str, Any]:
        """Evaluate the weights of `-r`, or without it the start weights, and return the metrics.

        Raises:
            RunError: with an exit code, if weights or data are invalid.
        """
        prepare_for_evaluation(self.output_dir)
        start = read_start(self.settings, CheckpointFolder(self.output_dir))
        seed = choose_seed(self.settings, start)
        data = open_evaluation_data(self.cfg, start, seed, self.output_dir)
        model, _ = build_model(self.cfg, start, data.classes, seed, self.device)
        if start.path is None:
            logger.warning(
                "no -r was given: evaluating the weights that training would start from"
            )
        metrics = evaluate(
            model,
            self.cfg.postprocessor.eval(),
            data.val_loader,
            data.evaluator,
            self.device,
            folder=self.output_dir,
        )
        data.val_loader.report_images()
        if is_main():
            weights = (
                None if start.path is None or start.tunes else str(start.path)
            )
            content = marked_json({"weights": weights, **plain(metrics)})
            write_json(self.output_dir / EVALUATION, content)
        for name, value in metrics.items():
            if not isinstance(value, dict):
                shown = "n/a" if value is None else f"{value:.4f}"
                logger.info("%-10s %s", name, shown)
        return metrics

    def _open_log(self, run: Run) -> RunLog:
        """Open the log; results of an earlier run that is not resumed are moved to `earlier/` first."""
        if is_main() and not resumes_in(self.output_dir, self.settings.resume):
            inputs = [self.settings.tuning, self.settings.resume]
            set_aside_earlier_run(self.output_dir, inputs)
            forget_runs(self.output_dir)
        first_epoch = run.state.progress.epoch
        return open_run_log(
            self.cfg,
            run.plan,
            first_epoch,
            run.facts.config_text,
            self.callbacks,
        )
