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
from ..core.errors import CheckpointError, ConfigError, DataError, Preempted
from ..core.validate import did_you_mean
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import barrier, broadcast_object, broadcast_tensors, check_ranks_agree, is_main, world_size
from ..runtime.files import locked, prepare_output_dir, write_json
from ..runtime.log import logger
from ..runtime.model_weights import WeightFile, load_strictly, merged_state_dict, read_weights
from ..runtime.stop import StopRequest
from ..runtime.watchdog import Watchdog
from ..runtime.weight_files import refuse_address
from .checkpoint import LAST, PREVIOUS, CheckpointFolder
from .class_tables import class_table, compare_categories, settle_classes
from .det_engine import EpochMeter, TrainStep, evaluate, seed_step, windows, with_progress
from .finetune import load_for_tuning
from .learning_rates import LearningRates, scale_to_batch
from .model_selection import BestModel
from .numerics import NumericsGuard
from .phases import Phases, tell_what_learns
from .resume import check_same_run, continued_progress
from .stages import Progress, TrainingStages
from .writers import ConsoleWriter, JsonLinesWriter, TensorBoardWriter, WandbWriter, Writer

AUTO = "auto"
"""In place of a file to go on from: `last.pth` of the output folder, or a new run if there is none."""


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
                logger.info("this run is complete: epoch %d of %d; to go on, raise epochs and give --override", self.progress.epoch, self.settings.epochs)
                return
            stack.callback(self.watchdog.rest)
            self._open_writers()
            self._introduce()
            while self.progress.epoch < self.settings.epochs:
                epoch = self.progress.epoch
                self._begin_epoch()
                meter = self._train_epoch()
                metrics = self._evaluate()
                self.meter = None
                self._keep(metrics)
                self._report(epoch, meter, metrics)
            for writer in self.writers:
                writer.close()
        barrier()

    def val(self) -> dict[str, Any]:
        """Evaluate the weights of `-r` (or, without, those the model starts from) and return the metrics."""
        self._choose_seed()
        if is_main():
            prepare_output_dir(self.output_dir)
        self._open_data(training=False)
        self._build_model()
        if not (self.settings.resume or self.settings.tuning):
            logger.warning("no -r was given: these are the weights that training would start from")
        metrics = evaluate(self.model, self.cfg.postprocessor.eval(), self.val_loader, self.evaluator, self.device)
        if is_main():
            write_json(self.output_dir / "eval.json", {"weights": self.settings.resume, **_plain(metrics)})
        for name, value in metrics.items():
            if isinstance(value, float):
                logger.info("%-10s %s", name, f"{value:.4f}" if value >= 0 else "n/a")
        return metrics

    # ---- setting up ----

    def _claim_output_dir(self, stack: ExitStack) -> None:
        if is_main():
            prepare_output_dir(self.output_dir)
            stack.enter_context(locked(self.output_dir))
            CheckpointFolder(self.output_dir).clean_up()
        self.checkpoints = CheckpointFolder(self.output_dir)

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
        _refuse_mixing(self.val_loader)
        data_sets = [self.val_loader.dataset]
        if training:
            self.train_loader = self.cfg.train_dataloader
            self.train_loader.batch_sampler.equal_shares = True
            self.train_loader.set_seed(self.seed)
            data_sets.insert(0, self.train_loader.dataset)
            compare_categories(*data_sets)
        for data in data_sets:
            if is_main():
                for line in data.labels.findings.describe():
                    logger.warning("%s", line)
                data.check_images_exist()
                self._compare_sizes(data)
        barrier()
        self.start_file = self._read_start_file()
        settle_classes(self.cfg, data_sets, self.start_file, same_classes=not self.settings.tuning)
        self.classes = class_table(data_sets[0])
        self.config_text = self.cfg.to_yaml()
        check_ranks_agree({"configuration": self.config_text, "seed": self.seed, "number of images": [len(data) for data in data_sets]})
        if self.resumed is not None:
            check_same_run(self.resumed["meta"]["config"], self.cfg.yaml_cfg, override=self.settings.override)
        if training and not bool((~data_sets[0].labels.crowds).any()):
            raise DataError(f"{data_sets[0].ann_file} has no usable box to learn from")
        self.evaluator = self.cfg.evaluator(self.val_loader.dataset.ground_truth())
        known = getattr(self.evaluator, "metric_names", None)
        if known and self.best.metric not in known:
            raise ConfigError(f"best_metric is '{self.best.metric}', but the evaluator gives {', '.join(known)}{did_you_mean(self.best.metric, list(known))}")

    def _compare_sizes(self, data: Any) -> None:
        """Say so if images come in another size than the model is made for: it works, but is rarely meant."""
        size, made_for = data.transforms.output_size, self.cfg.yaml_cfg.get("eval_spatial_size")
        if size and made_for and list(size) != list(made_for):
            logger.warning("images of %s come as %d x %d (height x width) but eval_spatial_size is %d x %d; set them alike", data.ann_file, *size, *made_for)

    def _read_start_file(self) -> WeightFile | None:
        """Read the weights of -t, or of -r with --test-only; or all that -r goes on from."""
        settings = self.settings
        if settings.resume == AUTO:
            last = self.output_dir / LAST
            there = broadcast_object(last.exists() or last.with_name(PREVIOUS).exists())
            settings.resume, settings.tuning = (str(last), None) if there else (None, settings.tuning)
            logger.info("-r auto: %s", f"going on from {last}" if there else f"there is no {last}, a new run begins")
        if settings.resume and not settings.test_only:
            self.resumed = self.checkpoints.load_last(Path(refuse_address(settings.resume)))
            return WeightFile(Path(settings.resume), self.resumed["model"], self.resumed["meta"])
        path = settings.tuning or settings.resume
        return read_weights(path) if path else None

    def _build_model(self) -> None:
        seed_step(self.seed, 0)
        file, self.start_file = self.start_file, None  # its weights need not stay in memory
        if file is not None:
            self.cfg.without_pretrained()
        model = self.cfg.model
        if self.settings.tuning:
            load_for_tuning(model, file, [c["name"] for c in self.classes])
        elif file is not None and self.resumed is None:  # a resumed run is restored whole, later
            load_strictly(model, file)
            logger.info("loaded %d tensors from %s", len(file.weights), file.path)
        if self.settings.sync_bn and world_size() > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(self.device)
        broadcast_tensors(list(self.model.state_dict().values()))  # before copies of it are made, such as the average

    def _build_training(self) -> None:
        """Build all that only training needs; the wrapper for several ranks is made where a phase begins."""
        settings, cfg = self.settings, self.cfg
        self.steps_per_epoch = -(-len(self.train_loader) // settings.grad_accum_steps)
        run = RunLength(settings.epochs, self.steps_per_epoch)
        criterion = cfg.criterion.to(self.device).train()
        _tell_run_length(run, self.train_loader, *self.model.modules(), *criterion.modules())
        self.optimizer = cfg.optimizer
        if settings.lr_base_batch_size:
            scale_to_batch(self.optimizer, settings.lr_base_batch_size, self.effective_batch_size, (cfg.yaml_cfg.get("lr_scheduler") or {}).get("type"))
        self.rates = LearningRates(self.optimizer, cfg.lr_scheduler, cfg.lr_warmup_scheduler, self.steps_per_epoch)
        self.ema, self.anchoring = cfg.ema, cfg.gram_anchoring
        _tell_run_length(run, self.rates.schedule, self.rates.warmup, self.ema, self.anchoring)
        last_thaw = max((thaw for thaw in self._thaws if thaw < settings.epochs), default=0)
        self.stages = TrainingStages.from_loader(self.train_loader, settings.epochs, last_thaw, settings.patience)
        self.amp_dtype = _amp_dtype(settings.use_amp, self.device, named=settings.device is not None)
        self.scaler = cfg.scaler(self.device.type) if self.amp_dtype == torch.float16 else None
        if self.anchoring:
            self.anchoring.to(self.device).attach()
        self.step = TrainStep(self.model, self.model, criterion, self.optimizer, self.ema, self.scaler, self.device, self.amp_dtype, settings.clip_max_norm,
                              NumericsGuard(self.steps_per_epoch), settings.grad_accum_exact, self.anchoring)
        self.step.stop = lambda: self.stop.asked
        self.saved_at = time.monotonic()
        self.watchdog = Watchdog(self.output_dir, settings.rank_timeout)
        self.phases = Phases(self.step, find_unused_parameters=settings.find_unused_parameters)

    @property
    def _window(self) -> int:
        """Batches of one optimizer step: not more than an epoch has."""
        return min(self.settings.grad_accum_steps, len(self.train_loader))

    @property
    def effective_batch_size(self) -> int:
        """Images of one optimizer step, over all ranks."""
        return self.train_loader.total_batch_size * self._window

    @property
    def _thaws(self) -> set[int]:
        """Epochs in which something begins to learn."""
        return {group.get("thaw_epoch", 0) for group in self.optimizer.param_groups}

    def _resume(self) -> None:
        if self.resumed is None:
            return
        self.load_state_dict(self.resumed)
        self.resumed = None
        logger.info("resumed from %s: epoch %d, step %d of it, best %s %s", self.settings.resume, self.progress.epoch + 1, self.progress.step,
                    self.best.metric, self.best.score)

    def _open_writers(self) -> None:
        if not is_main():
            return
        text = self.config_text
        (self.output_dir / "config.yml").write_text(text, encoding="utf-8")
        board = TensorBoardWriter(Path(self.settings.summary_dir or self.output_dir / "summary"))
        board.add_text("config", text)
        self.writers = [ConsoleWriter(), JsonLinesWriter(self.output_dir, self.progress.epoch), board]
        if self.settings.use_wandb:
            self.writers.append(WandbWriter(self.settings.project_name, self.settings.exp_name, self.cfg.yaml_cfg, self.output_dir))

    def _introduce(self) -> None:
        """Say once what is about to happen, with numbers."""
        precision = str(self.amp_dtype).removeprefix("torch.") if self.amp_dtype else "float32"
        logger.info("%s on %s, %d rank(s), %s", type(self.model).__name__, self.device, world_size(), precision)
        train, val = self.train_loader.dataset, self.val_loader.dataset
        empty = int((train.labels.starts.diff() == 0).sum())
        accumulated = f" ({self._window} x {self.train_loader.total_batch_size})" if self._window > 1 else ""
        logger.info("%d training images (%d without objects, learned as negatives), %d for evaluation, %d classes, batch %d%s, %d steps an epoch, %d epochs",
                    len(train), empty, len(val), len(self.classes), self.effective_batch_size, accumulated, self.steps_per_epoch, self.settings.epochs)
        stop = self.stages.stop_epoch
        if stop is not None and stop >= self.settings.epochs:
            logger.warning("there will be no clean stage: it would begin with epoch %d of %d; train_dataloader.collate_fn.stop_epoch=0.9 begins it after "
                           "nine tenths of the run", stop + 1, self.settings.epochs)
        if late := [thaw for thaw in sorted(self._thaws) if thaw >= self.settings.epochs]:
            logger.warning("what thaws with epoch %d of %d stays frozen in this run; DINOv3Backbone.freeze_backbone_epochs=0.125 thaws it after an eighth, "
                           "0 from the start", late[0] + 1, self.settings.epochs)

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
        self.model.load_state_dict(weights)
        if self.ema is not None:
            self.ema.restart(weights, self.stages.ema_restart_decay)
        logger.info("stage 2 begins: clean images, from the best weights (epoch %d, %s %.3f)", self.best.epoch + 1, self.best.metric, self.best.score)

    def _train_epoch(self) -> EpochMeter:
        self.model.train()
        self.meter = meter = self.meter or EpochMeter()
        progress = self.progress
        bar = with_progress(windows(self.train_loader, self.settings.grad_accum_steps), f"epoch {progress.epoch + 1}/{self.settings.epochs}",
                            self.steps_per_epoch, progress.step)
        before = time.perf_counter()
        for window in bar:
            waited = time.perf_counter() - before
            seed_step(self.seed, 1 + progress.total_steps)
            self.rates.set(progress)
            self.watchdog.beat(progress.total_steps)
            losses = self.step(progress.total_steps, window)
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
        values |= {"Loss/total": total, **{f"Lr/pg_{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}}
        for writer in self.writers:
            writer.write_step(self.progress.total_steps, values)
        bar.set_postfix(loss=f"{total:.2f}", lr=f"{self.rates.highest:.1e}")
        if bar.disable:
            left = meter.seconds / meter.steps * (self.steps_per_epoch - self.progress.step)
            logger.info("epoch %d [%d/%d] loss %.3f  lr %.2e  %.0f s left in it", self.progress.epoch + 1, self.progress.step, self.steps_per_epoch, total,
                        self.rates.highest, left)

    def _evaluate(self) -> dict[str, Any]:
        """Score the average, or the model if there is none, with the same batch statistics on every rank."""
        module = self.ema.module if self.ema is not None else self.model
        broadcast_tensors([buffer for buffer in module.buffers() if buffer.is_floating_point()])
        return evaluate(module, self.cfg.postprocessor.eval(), self.val_loader, self.evaluator, self.device, self._stop_evaluation)

    def _stop_evaluation(self) -> None:
        """Save and end if rank 0 was asked to stop: the epoch's training is done, its evaluation comes anew.

        Other ranks do not look here, since ranks may have different numbers of batches; the launcher ends them with rank 0.
        """
        if self.stop.asked and is_main():
            self._save_last()
            raise self._preempted()

    def _save_and_stop(self) -> None:
        """Save and end, on all ranks after the same step."""
        if is_main():
            self._save_last()
        barrier()
        raise self._preempted()

    def _preempted(self) -> Preempted:
        name = self.stop.signal.name if self.stop.asked else "a signal to another rank"
        return Preempted(f"stopped by {name} after step {self.progress.step} of {self.steps_per_epoch} in epoch {self.progress.epoch + 1}; the state is saved, "
                         f"go on with -r {self.output_dir / LAST}")

    def _save_if_due(self) -> None:
        """Write `last.pth` within an epoch, as often as is set; rank 0 alone knows of it."""
        settings, progress = self.settings, self.progress
        if not is_main() or progress.step == self.steps_per_epoch:
            return
        by_steps = settings.save_every_steps and progress.step % settings.save_every_steps == 0
        by_time = settings.save_every_minutes and time.monotonic() - self.saved_at >= 60 * settings.save_every_minutes
        if by_steps or by_time:
            self._save_last()

    def _save_last(self) -> None:
        self.checkpoints.save_last(self.state_dict())
        self.saved_at = time.monotonic()

    def _keep(self, metrics: dict[str, Any]) -> None:
        """Count the epoch as done, and write what is to be kept: the best first, since the last refers to it."""
        progress, epoch = self.progress, self.progress.epoch
        scored = self.ema.module if self.ema is not None else self.model
        improved = self.best.consider(epoch, metrics, scored.state_dict(), self.stages.stage(epoch))
        progress.epoch, progress.step = self.stages.next_epoch(epoch, self.best.epoch), 0
        if progress.epoch > epoch + 1:
            logger.info("no better %s for %d epochs: %s", self.best.metric, self.settings.patience,
                        "the clean stage begins early" if progress.epoch < self.settings.epochs else "the run ends early")
        if is_main():
            if improved:
                self.checkpoints.save_best(self._inference_state(scored, epoch, metrics))
            if self.settings.checkpoint_freq and (epoch + 1) % self.settings.checkpoint_freq == 0:
                self.checkpoints.save_numbered(epoch, self._inference_state(scored, epoch, metrics))
            self._save_last()
        barrier()

    def _report(self, epoch: int, meter: EpochMeter, metrics: dict[str, Any]) -> None:
        means = meter.means()
        if not is_main():
            return
        memory = torch.cuda.max_memory_allocated(self.device) / 1e6 if self.device.type == "cuda" else 0.0
        record = {
            "epoch": epoch, "epochs": self.settings.epochs, "stage": self.stages.stage(epoch), "train_lr": self.rates.highest,
            "train_loss": means.get("loss", float("nan")), **{f"train_{name}": value for name, value in means.items() if name != "loss"},
            "test_coco_eval_bbox": [v for k, v in metrics.items() if k != "AP_of_class"], **_plain(metrics),
            "best_metric": self.best.metric, "best_score": self.best.score, "best_epoch": self.best.epoch,
            "images_per_second": meter.images / max(meter.seconds, 1e-9), "data_wait": meter.waited / max(meter.seconds, 1e-9),
            "peak_memory_mb": memory, "seconds": meter.seconds, "seconds_left": meter.seconds * (self.settings.epochs - self.progress.epoch),
            "n_parameters": sum(p.numel() for p in self.model.parameters()),
            "n_trainable": sum(p.numel() for p in self.model.parameters() if p.requires_grad)}
        for writer in self.writers:
            writer.write_epoch(epoch, record)

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on as if nothing had happened."""
        return {
            "progress": vars(self.progress).copy(), "seed": self.seed, "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None, "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None, "guard": {"in_a_row": self.step.guard.in_a_row, "in_epoch": self.step.guard.in_epoch},
            "best": self.best.state_dict(), "meta": {"classes": self.classes, "config": self.config_text},
            "world_size": world_size(), "effective_batch_size": self.effective_batch_size, "meter": self.meter.state_dict() if self.meter else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`.

        Raises:
            CheckpointError: if the state does not fit this model.
        """
        load_strictly(self.model, WeightFile(Path(self.settings.resume or LAST), state["model"], state["meta"]))
        if self.ema is not None:
            if state["ema"] is None:
                raise CheckpointError("the checkpoint has no weight average, but use_ema is on; switch it off or start with -t")
            self.ema.load_state_dict(state["ema"])
        self._load_optimizer(state["optimizer"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step.guard.in_a_row, self.step.guard.in_epoch = state["guard"]["in_a_row"], state["guard"]["in_epoch"]
        self.best.load_state_dict(state["best"])
        self.progress = continued_progress(Progress(**state["progress"]), state["effective_batch_size"], self.effective_batch_size)
        if state["world_size"] != world_size():
            logger.warning("going on with %d rank(s) where %d began: the images of every step are the same, the chance within the model is not",
                           world_size(), state["world_size"])
        self.meter = EpochMeter.from_state(state["meter"], self.device) if state["meter"] else None
        self.seed = state["seed"]
        self.train_loader.set_seed(self.seed)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Restore what the optimizer has gathered; when and how fast groups learn is the configuration's, whose epochs may have been raised."""
        configured = ("thaw_epoch", "name", "initial_lr")
        own = [{key: group[key] for key in configured if key in group} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state)
        except ValueError as error:
            raise CheckpointError(f"{self.settings.resume} was written with other groups of parameters: {error}; optimizer.params, LoRA and what the "
                                  f"backbone thaws must be as they were, or start a new run from its weights with -t") from None
        for group, settings in zip(self.optimizer.param_groups, own):
            for key in configured:
                group.pop(key, None)
            group.update(settings)

    def _inference_state(self, scored: nn.Module, epoch: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return what `best.pth` holds: plain weights and everything needed to use them."""
        meta = {"classes": self.classes, "config": self.config_text, "epoch": epoch, "score": metrics[self.best.metric], "metric": self.best.metric,
                "metrics": _plain(metrics), "input_size": list(self.cfg.yaml_cfg.get("eval_spatial_size") or [])}
        return {"model": merged_state_dict(scored), "meta": meta}


def _refuse_mixing(loader: Any) -> None:
    """Make sure that images are evaluated as they are: what is found is held against the labels of each."""
    if mixing := [name for part in (loader.collate_fn, loader.dataset.transforms) for name in getattr(part, "mixing", [])]:
        raise ConfigError(f"val_dataloader has {', '.join(mixing)}, but images are evaluated as they are; only train_dataloader may mix them")


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


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics as JSON knows them."""
    return {key: {str(k): v for k, v in value.items()} if isinstance(value, dict) else value for key, value in metrics.items()}
