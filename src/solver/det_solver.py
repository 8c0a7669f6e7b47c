"""A run from start to end: what is set up, what happens in an epoch, what is kept."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.durations import KnowsRunLength, RunLength
from ..core.errors import CheckpointError, ConfigError, DataError, Preempted, ResourceError
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import (
    barrier,
    broadcast_object,
    broadcast_tensors,
    check_ranks_agree,
    is_main,
    world_size,
)
from ..runtime.files import locked, prepare_output_dir, write_atomically, write_json
from ..runtime.log import logger
from ..runtime.model_weights import WeightFile, completed, load_strictly, read_weights
from ..runtime.own_files import YAML_HEADER, is_ours, marked_json, refuse_foreign, refuse_replacing_inputs
from ..runtime.stop import StopRequest
from ..runtime.watchdog import Watchdog
from ..runtime.weight_files import refuse_address
from .checkpoint import BEST, LAST, NUMBERED, PREVIOUS, CheckpointFolder
from .class_tables import class_table, compare_categories, settle_classes
from .data_checks import check_best_metric, check_images, refuse_mixing
from .det_engine import EpochMeter, TrainStep, evaluate, seed_step, windows, with_progress
from .earlier_runs import CONFIG, EARLIER, EVALUATION, set_aside_earlier_run
from .finetune import load_for_tuning
from .learning_rates import LearningRates, scale_to_batch
from .memory_trial import rehearse_largest_step
from .model_selection import BestModel
from .numerics import ADVICE_FOR_A_RUN, BAD_BATCH, NumericsGuard
from .phases import Phases, tell_what_learns
from .pictures import show_found, show_learned
from .provenance import provenance
from .reporting import boxes_record, epoch_record, introduce, plain
from .resume import check_same_run, resume_hint
from .run_identity import check_same_data, data_identity, digest
from .run_state import for_inference, gather, restore
from .stages import Progress, TrainingStages
from .writers import (
    LOG_FILE,
    PICTURES,
    ConsoleWriter,
    JsonLinesWriter,
    PictureFolder,
    WandbWriter,
    Writer,
    open_tensorboard,
)

AUTO = "auto"
"""In place of a file to go on from: `last.pth` of the output folder, or a new run if there is none."""

ADVICE = "move it away or choose another --output-dir"

PATIENCE_WITH_NOTHING, ALMOST_NOTHING = 3, 1e-3
"""From which epoch on, and up to which AP50, a model is taken to find nothing."""


class DetSolver:
    """Trains and evaluates what a configuration describes."""

    def __init__(self, cfg: YAMLConfig, device: torch.device, stop: StopRequest | None = None) -> None:
        """Store; nothing is built before `fit` or `val`.

        Args:
            cfg: the configuration.
            device: of this rank.
            stop: tells when a signal has asked to stop; None for never.
        """
        self.stop = stop or StopRequest()
        self.cfg, self.settings, self.device = cfg, cfg.settings, device
        self.output_dir = Path(self.settings.output_dir)
        self.progress = Progress()
        self.best = BestModel(self.settings.best_metric)
        self.resumed: dict[str, Any] | None = None
        self.writers: list[Writer] = []
        self.meter: EpochMeter | None = None
        """Of an epoch that is not over."""
        self.first_loss: float | None = None
        """Mean loss of the first epoch."""
        self.explained = False
        """Whether it was explained why nothing is found."""
        self.data_changed = False
        """Whether a run is resumed with other data than it began with, which was asked for."""

    def fit(self) -> None:
        """Train, evaluate after every epoch, keep the best and the last."""
        with ExitStack() as stack:
            self._claim_output_dir(stack)
            self._choose_seed()
            self._open_data(training=True)
            self._build_model()
            self._build_training()
            self._resume()
            if self.progress.epoch >= self.settings.epochs:
                logger.info(
                    "this run is complete: epoch %d of %d; to go on, raise epochs and give --override",
                    self.progress.epoch,
                    self.settings.epochs,
                )
                return
            stack.callback(self.watchdog.rest)
            self._open_writers()
            introduce(self)
            self._try_memory()
            while self.progress.epoch < self.settings.epochs:
                epoch = self.progress.epoch
                self._begin_epoch()
                meter = self._train_epoch()
                metrics = self._evaluate()
                self.meter = None
                self._explain_nothing_found(metrics, meter)
                show_found(self, metrics)
                improved = self._count_epoch(metrics)
                self._report(
                    epoch, meter, metrics
                )  # before what says that the epoch is done: a run killed in between does both again
                self._keep(epoch, metrics, improved)
            for writer in self.writers:
                writer.close()
            if is_main():
                self.checkpoints.finish()
        barrier()

    def val(self) -> dict[str, Any]:
        """Evaluate the weights of `-r` (or, without, those the model starts from) and return the metrics."""
        self._choose_seed()
        if is_main():
            prepare_output_dir(self.output_dir)
            written = (EVALUATION, BAD_BATCH, "images.val.npz")
            refuse_foreign([self.output_dir / name for name in written], ADVICE)
        self._open_data(training=False)
        self._build_model()
        if not (self.settings.resume or self.settings.tuning):
            logger.warning("no -r was given: these are the weights that training would start from")
        metrics = evaluate(
            self.model,
            self.cfg.postprocessor.eval(),
            self.val_loader,
            self.evaluator,
            self.device,
            folder=self.output_dir,
        )
        self.val_loader.report_images()
        if is_main():
            content = marked_json({"weights": self.settings.resume, **plain(metrics)})
            write_json(self.output_dir / EVALUATION, content)
        for name, value in metrics.items():
            if not isinstance(value, dict):
                logger.info("%-10s %s", name, "n/a" if value is None else f"{value:.4f}")
        return metrics

    # ---- setting up ----

    def _claim_output_dir(self, stack: ExitStack) -> None:
        if is_main():
            prepare_output_dir(self.output_dir)
            stack.enter_context(locked(self.output_dir))
            if self._resumes_here():
                CheckpointFolder(self.output_dir).set_damaged_best_aside()
            self._refuse_replacing()
            CheckpointFolder(self.output_dir).clean_up()
        self.checkpoints = CheckpointFolder(self.output_dir)

    def _refuse_replacing(self) -> None:
        """Make sure that this run replaces nothing but what runs of this project have written."""
        settings, folder = self.settings, self.output_dir
        checkpoints = [folder / name for name in (BEST, LAST, PREVIOUS)]
        checkpoints += sorted((folder / NUMBERED).glob("epoch*.pth"))
        resumes_here = self._resumes_here()
        if not resumes_here or not self._is_of_a_version_without_marks():
            stacks = (f"stacks.rank{number}.txt" for number in range(world_size()))
            names = (CONFIG, LOG_FILE, BAD_BATCH, "images.train.npz", "images.val.npz", *stacks)
            resumed = [
                folder / name for name in (LAST, PREVIOUS) if resumes_here
            ]  # damaged ones are dealt with later
            results = [*(folder / name for name in names), *checkpoints]
            refuse_foreign([path for path in results if path not in resumed or path.is_symlink()], ADVICE)
        for name in (NUMBERED, PICTURES, EARLIER):
            if (folder / name).is_symlink() or ((folder / name).exists() and not (folder / name).is_dir()):
                raise ConfigError(
                    f"{folder / name} is not a folder, and this run would write into it; {ADVICE}"
                )
        inputs = {"-t": settings.tuning, "-r": None if resumes_here else settings.resume}
        refuse_replacing_inputs(checkpoints, inputs)

    def _is_of_a_version_without_marks(self) -> bool:
        """Return whether the run in the output folder was written before results had marks: then none of them has one."""
        files = [self.output_dir / name for name in (LAST, PREVIOUS)]
        there = [path for path in files if path.is_file() and not path.is_symlink()]
        return bool(there) and not any(is_ours(path) for path in there)

    def _resumes_here(self) -> bool:
        """Return whether this run resumes the one in its own output folder."""
        resume = self.settings.resume
        if resume == AUTO:
            return any((self.output_dir / name).exists() for name in (LAST, PREVIOUS))
        path = Path(resume) if resume is not None else None
        return (
            path is not None
            and path.name in (LAST, PREVIOUS)
            and path.parent.resolve() == self.output_dir.resolve()
        )

    def _choose_seed(self) -> None:
        """Take the seed that was asked for, or draw one and say so: a run can always be repeated."""
        seed = self.settings.seed
        if seed is None:
            seed = broadcast_object(random.SystemRandom().randrange(1 << 31))
            logger.info("no --seed was given; this run uses --seed %d", seed)
        self.seed = seed

    def _open_data(self, *, training: bool) -> None:
        """Read the labels and settle how many classes there are, before anything costly."""
        self.val_loader = self.cfg.val_dataloader
        refuse_mixing(self.val_loader)
        data_sets = [self.val_loader.dataset]
        if training:
            self.train_loader = self.cfg.train_dataloader
            self.train_loader.batch_sampler.equal_shares = True
            self.train_loader.set_seed(self.seed)
            data_sets.insert(0, self.train_loader.dataset)
            compare_categories(*data_sets)
            data_sets[0].allow_bad_images()
        check_ranks_agree({"number of images": [len(data) for data in data_sets]})
        check_images(self.cfg, data_sets, self.output_dir)
        self.start_file = self._read_start_file()
        settle_classes(self.cfg, data_sets, self.start_file, same_classes=not self.settings.tuning)
        self.classes = class_table(data_sets[0])
        self.config_text = self.cfg.to_yaml()
        parts = dict(zip(("train", "val") if training else ("val",), data_sets))
        self.identity = data_identity(parts)
        check_ranks_agree(
            {"data": digest(self.identity), "configuration": self.config_text, "seed": self.seed}
        )
        if self.resumed is not None:
            override = self.settings.override
            check_same_run(self.resumed["meta"]["config"], self.cfg.yaml_cfg, override=override)
            self.data_changed = check_same_data(self.resumed.get("data"), parts, override=override)
        if training and not data_sets[0].usable_boxes():
            raise DataError(f"{data_sets[0].ann_file} has no usable box to learn from")
        self.evaluator = self.cfg.evaluator(self.val_loader.dataset.ground_truth())
        check_best_metric(self.best.metric, self.evaluator, self.val_loader.dataset)

    def _read_start_file(self) -> WeightFile | None:
        """Read the weights of -t, or of -r with --test-only; or all that -r goes on from."""
        settings = self.settings
        if settings.resume == AUTO:
            last = self.output_dir / LAST
            there = broadcast_object(last.exists() or last.with_name(PREVIOUS).exists())
            settings.resume, settings.tuning = (str(last), None) if there else (None, settings.tuning)
            logger.info(
                "-r auto: %s", f"going on from {last}" if there else f"there is no {last}, a new run begins"
            )
        if settings.resume and not settings.test_only:
            self.resumed, found = self.checkpoints.load_last(
                Path(refuse_address(settings.resume)).expanduser()
            )
            settings.resume = str(found)
            return WeightFile(found, self.resumed["model"], self.resumed["meta"])
        path = settings.tuning or settings.resume
        return read_weights(path) if path else None

    def _build_model(self) -> None:
        seed_step(self.seed, 0)
        file, self.start_file = self.start_file, None  # its weights need not stay in memory
        if file is not None:
            self.cfg.without_pretrained()
        model = self.cfg.model
        self.origin = provenance(model, file)
        if self.settings.tuning:
            load_for_tuning(model, file, [c["name"] for c in self.classes])
        elif file is not None and self.resumed is None:  # a resumed run is restored whole, later
            load_strictly(model, file)
            logger.info("loaded %d tensors from %s", len(file.weights), file.path)
        if self.settings.sync_bn and world_size() > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(self.device)
        broadcast_tensors(
            list(self.model.state_dict().values())
        )  # before copies of it are made, such as the average

    def _build_training(self) -> None:
        """Build all that only training needs; the wrapper for several ranks is made where a phase begins."""
        settings, cfg = self.settings, self.cfg
        self.steps_per_epoch = -(-len(self.train_loader) // settings.grad_accum_steps)
        run = RunLength(settings.epochs, self.steps_per_epoch)
        criterion = cfg.criterion.to(self.device).train()
        _tell_run_length(run, self.train_loader, *self.model.modules(), *criterion.modules())
        self.optimizer = cfg.optimizer
        if settings.lr_base_batch_size:
            scale_to_batch(
                self.optimizer,
                settings.lr_base_batch_size,
                self.effective_batch_size,
                (cfg.yaml_cfg.get("lr_scheduler") or {}).get("type"),
            )
        self.rates = LearningRates(
            self.optimizer, cfg.lr_scheduler, cfg.lr_warmup_scheduler, self.steps_per_epoch
        )
        self.ema, self.anchoring = cfg.ema, cfg.gram_anchoring
        _tell_run_length(run, self.rates.schedule, self.rates.warmup, self.ema, self.anchoring)
        last_thaw = max((thaw for thaw in self.thaws if thaw < settings.epochs), default=0)
        self.stages = TrainingStages.from_loader(
            self.train_loader, settings.epochs, last_thaw, settings.patience
        )
        self.amp_dtype = _amp_dtype(settings.use_amp, self.device, named=settings.device is not None)
        self.scaler = cfg.scaler(self.device.type) if self.amp_dtype == torch.float16 else None
        if self.anchoring:
            self.anchoring.to(self.device).attach()
        self.step = TrainStep(
            self.model,
            self.model,
            criterion,
            self.optimizer,
            self.ema,
            self.scaler,
            self.device,
            self.amp_dtype,
            settings.clip_max_norm,
            NumericsGuard(self.steps_per_epoch, folder=self.output_dir),
            settings.grad_accum_exact,
            self.anchoring,
        )
        self.step.stop = lambda: self.stop.asked
        self.saved_at = time.monotonic()
        self.watchdog = Watchdog(self.output_dir, settings.rank_timeout)
        self.phases = Phases(self.step, find_unused_parameters=settings.find_unused_parameters)

    @property
    def window(self) -> int:
        """Batches of one optimizer step: not more than an epoch has."""
        return min(self.settings.grad_accum_steps, len(self.train_loader))

    @property
    def effective_batch_size(self) -> int:
        """Images of one optimizer step, over all ranks."""
        return self.train_loader.total_batch_size * self.window

    @property
    def thaws(self) -> set[int]:
        """Epochs in which something begins to learn."""
        return {group.get("thaw_epoch", 0) for group in self.optimizer.param_groups}

    def _resume(self) -> None:
        if self.resumed is None:
            return
        restore(self, self.resumed)
        self.resumed = None
        if self.data_changed:
            self._restart_epoch()
        elif self.best.epoch is not None and not self._has_best():
            self._miss_best()
        logger.info(
            "resumed from %s: epoch %d, step %d of it, best %s %s",
            self.settings.resume,
            self.progress.epoch + 1,
            self.progress.step,
            self.best.metric,
            self.best.score,
        )

    def _has_best(self) -> bool:
        """Return whether the best weights of the run are in the output folder, on every rank alike."""
        found = self.checkpoints.has_best(self.best.epoch, Path(self.settings.resume)) if is_main() else None
        return broadcast_object(found)

    def _miss_best(self) -> None:
        """Go on without the best weights, which are gone; a run that is complete has nothing to put in their place."""
        best, text = self.output_dir / BEST, f"the best weights, of epoch {self.best.epoch + 1}, are not in"
        if self.progress.epoch >= self.settings.epochs:
            raise CheckpointError(
                f"this run is complete, but {text} {best}; last.pth has the last ones: evaluate them with --test-only -r "
                f"{self.settings.resume}"
            )
        logger.warning("%s %s: the next evaluation counts as the best", text, best)
        self.best.forget_score()

    def _restart_epoch(self) -> None:
        """Begin the epoch again and forget the best score: with other data neither continues what was there."""
        progress = self.progress
        progress.step, progress.total_steps = 0, progress.total_steps - progress.step
        self.meter = None
        self.best.forget()
        if is_main():
            self.checkpoints.set_best_aside()

    def _open_writers(self) -> None:
        if not is_main():
            return
        if not self._resumes_here():
            set_aside_earlier_run(self.output_dir, [self.settings.tuning, self.settings.resume])
        text = self.config_text
        write_atomically(self.output_dir / CONFIG, lambda file: file.write((YAML_HEADER + text).encode()))
        self.writers = [
            ConsoleWriter(),
            JsonLinesWriter(self.output_dir, self.progress.epoch),
            PictureFolder(self.output_dir),
        ]
        if board := open_tensorboard(Path(self.settings.summary_dir or self.output_dir / "summary"), text):
            self.writers.append(board)
        if self.settings.use_wandb:
            self.writers.append(
                WandbWriter(
                    self.settings.project_name, self.settings.exp_name, self.cfg.yaml_cfg, self.output_dir
                )
            )

    def _try_memory(self) -> None:
        """Know before the first step whether the run fits: at its largest size, most crowded image and last phase. On a CPU only if asked."""
        wanted = (
            self.device.type == "cuda" if self.settings.memory_trial is None else self.settings.memory_trial
        )
        data, collate = self.train_loader.dataset, self.train_loader.collate_fn
        size = data.output_size or self.cfg.yaml_cfg.get("eval_spatial_size")
        if not wanted or not size or not hasattr(collate, "largest_size"):
            return
        most = int(data.boxes_per_image().max())
        self.phases.foresee(self.settings.epochs - 1)
        rehearse_largest_step(
            self.step,
            self.train_loader.batch_sampler.batch_size,
            collate.largest_size(tuple(size)),
            most,
            int(self.cfg.yaml_cfg.get("num_classes") or len(self.classes)),
        )
        self.phases.foresee(self.progress.epoch)

    # ---- an epoch ----

    def _begin_epoch(self) -> None:
        """Set what holds in this epoch; what happens only once at its start is left out where a resumed run is past it."""
        epoch = self.progress.epoch
        self.train_loader.set_epoch(epoch, self.progress.step * self.settings.grad_accum_steps)
        for part in (self.step.criterion, self.anchoring):
            if hasattr(part, "set_epoch"):  # a criterion of a user's own may know no epochs
                part.set_epoch(epoch)
        if self.phases.begin(epoch):
            tell_what_learns(epoch, self.model, self.optimizer, self.rates.scheduled(self.progress))
        if self.progress.step:
            return
        self.step.guard.start_epoch()
        if self.stages.restarts_at(epoch) and self.best.stage_one_weights:
            self._take_up_best_weights()

    def _take_up_best_weights(self) -> None:
        """Begin stage 2 from the best weights of stage 1, which every rank has kept."""
        weights, self.best.stage_one_weights = self.best.stage_one_weights, {}
        weights = completed(weights, self.model)  # they may be of a run at another input size
        self.model.load_state_dict(weights)
        if self.ema is not None:
            self.ema.restart(weights, self.stages.ema_restart_decay)
        score = "not scored again yet"
        if self.best.epoch is not None and self.best.score is not None:
            score = f"epoch {self.best.epoch + 1}, {self.best.metric} {self.best.score:.3f}"
        logger.info("stage 2 begins: clean images, from the best weights (%s)", score)

    def _train_epoch(self) -> EpochMeter:
        self.model.train()
        self.meter = meter = self.meter or EpochMeter()
        progress = self.progress
        bar = with_progress(
            windows(self.train_loader, self.settings.grad_accum_steps),
            f"epoch {progress.epoch + 1}/{self.settings.epochs}",
            self.steps_per_epoch,
            progress.step,
        )
        before = time.perf_counter()
        for window in bar:
            waited = time.perf_counter() - before
            if progress.step == 0:
                show_learned(self, *window[0])
            seed_step(self.seed, 1 + progress.total_steps)
            self.rates.set(progress)
            self.watchdog.beat(progress.total_steps)
            losses = self.step(progress.total_steps, window)
            meter.count_boxes(window)
            progress.step, progress.total_steps = progress.step + 1, progress.total_steps + 1
            if losses is not None:
                meter.add(losses, sum(len(images) for images, _ in window) * world_size(), waited)
                if progress.step % self.settings.print_freq == 0:
                    self._show_step(losses, meter, bar)
            if self.step.stopping:
                self._save_and_stop()
            self._save_if_due()
            before = time.perf_counter()
        self.watchdog.rest()
        return meter

    def _show_step(self, losses: dict[str, Tensor], meter: EpochMeter, bar: Any) -> None:
        """Write curves and, where no bar is seen, a line; only rank 0 reads its numbers back from the device."""
        if not is_main():
            return
        values = {f"Loss/{name}": value.item() for name, value in losses.items()}
        total = sum(values.values())
        values |= {
            "Loss/total": total,
            **{f"Lr/pg_{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)},
        }
        for writer in self.writers:
            writer.write_step(self.progress.total_steps, values)
        bar.set_postfix(loss=f"{total:.2f}", lr=f"{self.rates.highest:.1e}")
        if bar.disable:
            left = meter.seconds / meter.steps * (self.steps_per_epoch - self.progress.step)
            logger.info(
                "epoch %d [%d/%d] loss %.3f  lr %.2e  %.0f s left in it",
                self.progress.epoch + 1,
                self.progress.step,
                self.steps_per_epoch,
                total,
                self.rates.highest,
                left,
            )

    def _evaluate(self) -> dict[str, Any]:
        """Score the average, or the model if there is none, with the same batch statistics on every rank."""
        broadcast_tensors([buffer for buffer in self.scored.buffers() if buffer.is_floating_point()])
        return evaluate(
            self.scored,
            self.cfg.postprocessor.eval(),
            self.val_loader,
            self.evaluator,
            self.device,
            self._stop_evaluation,
            self.output_dir,
            advice=ADVICE_FOR_A_RUN,
        )

    def _explain_nothing_found(self, metrics: dict[str, Any], meter: EpochMeter) -> None:
        """If the loss has fallen for some epochs and still nothing is found, say why, once."""
        loss = meter.means().get("loss", 0.0)
        self.first_loss = loss if self.first_loss is None else self.first_loss
        if (
            self.explained
            or self.progress.epoch < PATIENCE_WITH_NOTHING
            or (metrics.get("AP50") or 0.0 if "AP50" in metrics else 1.0) > ALMOST_NOTHING
            or loss >= self.first_loss
        ):
            return
        self.explained = True
        if is_main() and hasattr(self.evaluator, "diagnose"):
            logger.warning("nothing is found although the loss falls: %s", self.evaluator.diagnose())

    def _stop_evaluation(self) -> None:
        """Save and end if rank 0 was asked to stop: the epoch's training is done, its evaluation comes anew.

        Other ranks do not look here, since ranks may have different numbers of batches; the launcher ends them with rank 0.
        """
        if self.stop.asked and is_main():
            raise self._stopped(saved=self._save_last())

    def _save_and_stop(self) -> None:
        """Save and end, on all ranks after the same step."""
        raise self._stopped(saved=broadcast_object(self._save_last() if is_main() else None))

    def _stopped(self, *, saved: bool) -> Preempted | ResourceError:
        """Return the error that ends a run which was asked to stop."""
        name = self.stop.signal.name if self.stop.asked else "a signal to another rank"
        where = f"stopped by {name} after step {self.progress.step} of {self.steps_per_epoch} in epoch {self.progress.epoch + 1}"
        last = self.output_dir / LAST
        if saved:
            return Preempted(f"{where}; the state is saved, {resume_hint(last)}")
        older = f"{last} is of an earlier step" if last.exists() else f"there is no {last}"
        why = f" ({self.checkpoints.unsaved})" if is_main() else ""
        return ResourceError(f"{where}, but the state could not be saved{why}; {older}")

    def _save_if_due(self) -> None:
        """Write `last.pth` within an epoch, as often as is set; rank 0 alone knows of it."""
        settings, progress = self.settings, self.progress
        if not is_main() or progress.step == self.steps_per_epoch:
            return
        by_steps = settings.save_every_steps and progress.step % settings.save_every_steps == 0
        by_time = (
            settings.save_every_minutes
            and time.monotonic() - self.saved_at >= 60 * settings.save_every_minutes
        )
        if by_steps or by_time:
            self._save_last()

    def _save_last(self) -> bool:
        """Write `last.pth`; return whether that succeeded."""
        self.saved_at = time.monotonic()
        return self.checkpoints.save_last(gather(self))

    @property
    def scored(self) -> nn.Module:
        """What is evaluated and kept: the average, or the model if there is none."""
        return self.ema.module if self.ema is not None else self.model

    def _count_epoch(self, metrics: dict[str, Any]) -> bool:
        """Count the epoch as done; return whether it was the best."""
        progress, epoch = self.progress, self.progress.epoch
        improved = self.best.consider(epoch, metrics, self.scored.state_dict(), self.stages.stage(epoch))
        progress.epoch, progress.step = self.stages.next_epoch(epoch, self.best.epoch), 0
        if progress.epoch > epoch + 1:
            logger.info(
                "no better %s for %d epochs: %s",
                self.best.metric,
                self.settings.patience,
                "the clean stage begins early"
                if progress.epoch < self.settings.epochs
                else "the run ends early",
            )
        return improved

    def _keep(self, epoch: int, metrics: dict[str, Any], improved: bool) -> None:
        """Write what is to be kept after an epoch: the best first, since the last refers to it."""
        if is_main():
            if improved:
                self.checkpoints.save_best(for_inference(self, self.scored, epoch, metrics))
            if self.settings.checkpoint_freq and (epoch + 1) % self.settings.checkpoint_freq == 0:
                self.checkpoints.save_numbered(epoch, for_inference(self, self.scored, epoch, metrics))
            self._save_last()
        barrier()

    def _report(self, epoch: int, meter: EpochMeter, metrics: dict[str, Any]) -> None:
        means = meter.means()
        for loader in (self.train_loader, self.val_loader):
            loader.report_images()
        boxes = meter.boxes_of_all_ranks()
        if is_main():
            record = epoch_record(self, epoch, meter, means, metrics) | boxes_record(epoch, *boxes)
            for writer in self.writers:
                writer.write_epoch(epoch, record)


def _tell_run_length(run: RunLength, *parts: Any) -> None:
    for part in parts:
        if isinstance(part, KnowsRunLength):
            part.set_run_length(run)


def _amp_dtype(use_amp: bool, device: torch.device, *, named: bool) -> torch.dtype | None:
    """Return the autocast type: bf16 where the device has it, else fp16 on accelerators; a CPU only if it was named."""
    if not use_amp or (device.type == "cpu" and not named):
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16
