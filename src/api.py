"""Train, evaluate and export detectors from Python: the functions behind the commands of the same names.

They raise the errors of this package (`core.errors`) and never end the process. Signal handlers, random
states and the logging configuration are those of the caller again when they return.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    nullcontext,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .core.errors import (
    ConfigError,
    RunError,
)
from .core.paths import read_text, user_path
from .data.preparation.any_dataset import find_dataset
from .data.preparation.run_dataset import merged, with_dataset
from .detection.run_checkpoint import BEST, LAST
from .detection.start_choice import choose_start
from .inference.agreement import images_for_check
from .inference.checked_export import export_checked_onnx
from .inference.detector import Detector
from .inference.detector_evaluation import (
    evaluate_detector,
    open_labelled_images,
)
from .inference.export import export_onnx
from .inference.run_report import write_run_report
from .runtime.distributed import (
    barrier,
    is_main,
    without_other_ranks,
)
from .runtime.library_call import (
    as_library,
    join_started_ranks,
    listening_in_main_thread,
)
from .runtime.log import logger
from .runtime.process import explain
from .runtime.stop import StopRequest
from .solver.callbacks import Callbacks
from .solver.det_solver import DetSolver
from .solver.earlier_runs import REPORT
from .solver.output_folder import refuse_another_run
from .solver.results_table import METRIC_COLUMNS, table_row
from .solver.run_folder import folder_to_resume, new_folder
from .solver.run_state import plain
from .solver.start_config import open_configuration
from .solver.writers import LOG_FILE

DEFAULT_NAME = "train"
"""Name of the run folder if none is given: `runs/train`, then `runs/train2` and so on."""

IMAGES_TO_COMPARE = 16
"""Number of images with which an exported file is checked."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a training."""

    folder: Path
    """Folder of the run."""
    best: Path | None
    """`best.pth`, for `Detector(...)`; None if no evaluation had a score."""
    last: Path
    """`last.pth`, from which the run can be resumed."""
    best_epoch: int | None
    """Epoch of `best`, from 1."""
    metrics: dict[str, Any]
    """Metrics of the best epoch, such as "AP" and "F1"; None for undefined ones."""
    history: list[dict[str, Any]] = field(repr=False)
    """The rows of `results.csv`, one for each epoch, those before a resume included."""


def train(
    data: str | Path | None = None,
    model: str | Path | None = None,
    *,
    epochs: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    input_size: int | Sequence[int] | None = None,
    device: str | None = None,
    use_amp: bool | None = None,
    seed: int | None = None,
    name: str = DEFAULT_NAME,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    resume: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Any = None,
    data_format: str | None = None,
    val_fraction: float = 0.1,
    strict: bool = False,
) -> TrainResult:
    """Train a detector, as `dfine train` does.

    Ctrl-C and SIGTERM end the run after the current step with `Preempted`, once its state is saved. A second
    signal ends the process. In another thread than the main one, signals are left alone.

    Under torchrun, all ranks call this function together; the group of ranks stays open for later calls.

    Args:
        data: folder, `data.yaml` or COCO file, in COCO, YOLO or Pascal VOC layout. None uses the data that
            the configuration, the checkpoint or `settings` names.
        model: size ("n", "s", "m", "l", "x"), "tiny", a name of `configs/models.yml`, a configuration, a
            checkpoint or a run folder. None means size S. The training starts from a detector in `weights/`
            if there is one for the model, otherwise from its pre-trained backbone.
        epochs: length of the run; None uses that of the configuration, as for all arguments below.
        batch_size: images of a batch, over all ranks; "auto" chooses the largest one that fits into memory.
        input_size: side of the input in pixels, or (height, width).
        device: cpu, cuda or cuda:N; None uses CUDA if it is available.
        use_amp: train in mixed precision.
        seed: random seed; None chooses one, which is logged.
        name: name of the folder in `runs/`; a number is appended if there is one already.
        output_dir: folder of the run; replaces `name`.
        overwrite: start a new run in the folder of another one, whose results are moved to `earlier/` in it.
        resume: run folder or `last.pth` of a run to continue; only `epochs`, `device`, `settings` and
            `callbacks` can be given with it, and the data of the run is used.
        settings: further settings of the configuration by key, such as `{"optimizer.lr": 1e-4}`.
        callbacks: an object with methods `on_step`, `on_evaluation`, `on_save` or `on_epoch`; a dict from
            these names to functions; or a list of these. Each is called on the main rank with one argument:
            `StepEvent`, `EvaluationEvent`, `SaveEvent` or `EpochEvent` (`solver.callbacks`). If one raises an
            error, the run saves its state and ends with this error.
        data_format: "coco", "yolo" or "voc"; None recognizes it.
        val_fraction: fraction of the images for validation, if the data has no part for it.
        strict: treat every data warning as an error.

    Returns:
        Paths, metrics and history of the run.

    Raises:
        ConfigError: if an argument or a setting is wrong.
        DataError: if the data is missing or wrong.
        CheckpointError: if there is nothing to start from, or a file does not fit.
        Preempted: if a signal ended the run; its state is saved.
        RunError: for other expected errors, see its subclasses.

    Example:
        >>> def show(event):
        ...     print("epoch", event.epoch, "of", event.epochs)
        >>> short = {"epochs": 1, "batch_size": 2, "device": "cpu"}
        >>> result = train("annotations.json", "best.pth", **short, callbacks={"on_epoch": show})
        epoch 1 of 1
        >>> result.best.as_posix(), len(result.history)
        ('runs/train/best.pth', 1)
    """
    stop = StopRequest()
    own = Callbacks(callbacks, stop)
    if resume is not None:
        given = {
            "data": data,
            "model": model,
            "batch_size": batch_size,
            "input_size": input_size,
            "seed": seed,
            "output_dir": output_dir,
            "use_amp": use_amp,
        }
        _refuse_with_resume(given)
    with as_library(lambda error: error is own.failure):
        picked = join_started_ranks(device)
        overrides = _overrides(
            epochs, batch_size, input_size, device, use_amp, seed, settings
        )
        if strict:
            overrides["strict"] = True
        config: str | None = None
        if resume is None:
            config, weights = _start(data, model, overrides)
            overrides |= weights
        overrides = with_dataset(
            overrides, data, data_format=data_format, val_fraction=val_fraction
        )
        folder: AbstractContextManager[Path]
        if resume is not None:
            folder = nullcontext(folder_to_resume(resume))
            overrides["resume"] = str(folder_to_resume(resume) / LAST)
        elif output_dir is not None:
            folder = nullcontext(user_path(output_dir))
        else:
            folder = new_folder(name)
        with folder as place:
            own_folder = {"output_dir": str(place), "overwrite": overwrite}
            cfg = open_configuration(config, overrides | own_folder)
            refuse_another_run(cfg.settings)
            solver = DetSolver(cfg, picked, stop, own)
            with listening_in_main_thread(stop):
                solver.train()
        result = _result(place)
        try:
            if cfg.settings.report and result.best is not None and is_main():
                _write_report(place, str(picked))
        finally:
            solver.end_log(place / REPORT)
        barrier()
        return result


def evaluate(
    model: str | Path | Detector,
    data: str | Path | None = None,
    *,
    device: str | None = None,
    batch_size: int = 8,
    input_size: int | Sequence[int] | None = None,
    use_amp: bool = False,
    data_format: str | None = None,
) -> dict[str, Any]:
    """Evaluate a detector on labelled images, with the metrics of `dfine val`. Nothing is written.

    Args:
        model: a detector, or what `Detector` opens.
        data: as for `train`: its part for validation is used, or all images if it has only one part. None
            uses the validation data that the checkpoint names.
        device: as for `Detector`; only if `model` is not a detector yet, as for `input_size` and `use_amp`.
        batch_size: images of a batch.
        input_size: side of the input in pixels, or (height, width); None uses the size of the training.
        use_amp: as for `Detector`.
        data_format: as for `train`.

    Returns:
        Metrics by name: "AP", "AP50", "F1", "F1_threshold" and others, with those of each class in nested
        dicts; None for undefined ones.

    Raises:
        DataError: if the data is missing or wrong.
        CheckpointError: if the checkpoint cannot be read, or lacks classes of the data.
        ConfigError: if an argument is wrong.

    Example:
        >>> metrics = evaluate("best.pth", "annotations.json", device="cpu")
        >>> round(metrics["AP50"], 1)
        0.5
    """
    with as_library():
        images = annotations = None
        if data is not None:
            found = find_dataset(
                data, data_format=data_format, split=False, for_evaluation=True
            )
            for line in [*found.remarks, *found.warnings]:
                logger.info("%s", line)
            images, annotations = found.val_images, found.val_ann
        detector = _opened(
            model, device, _height_and_width(input_size), use_amp
        )
        dataset = open_labelled_images(detector, images, annotations)
        evaluation = evaluate_detector(detector, dataset, batch_size=batch_size)
        return plain(evaluation.metrics)


def export(
    model: str | Path,
    format: Literal["onnx"] = "onnx",
    *,
    output: str | Path | None = None,
    batch_size: int | None = None,
    input_size: int | Sequence[int] | None = None,
    opset: int | None = None,
    simplify: bool = False,
    check: bool = False,
) -> Path:
    """Export a checkpoint, as `dfine export` does. Its metadata is written beside it as NAME.json.

    Args:
        model: checkpoint, run folder or name of a published model.
        format: "onnx", which ONNX Runtime, OpenVINO and TensorRT read.
        output: file to write; None writes `NAME.onnx` beside the checkpoint.
        batch_size: fixed batch size; None accepts any.
        input_size: side of the input in pixels, or (height, width); None uses the size of the training.
        opset: ONNX opset; None uses 18.
        simplify: simplify the graph with onnxslim or onnxsim.
        check: compare the predictions of the file with those of the checkpoint.

    Returns:
        Path of the file.

    Raises:
        ConfigError: if an argument is wrong, or a package is missing.
        CheckpointError: if the checkpoint cannot be read.
        ExportError: if the file fails a check.

    Example:
        >>> export("best.pth", "coreml")
        Traceback (most recent call last):
        ...
        src.core.errors.ConfigError: the format is 'coreml', expected 'onnx'
    """
    if format != "onnx":
        raise ConfigError(f"the format is {format!r}, expected 'onnx'")
    with as_library():
        detector = Detector.from_checkpoint(
            model, device="cpu", input_size=_height_and_width(input_size)
        )
        file = Path(detector.meta["file"])
        path = file.with_suffix(".onnx") if output is None else Path(output)
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "opset": opset,
            "simplify": simplify,
        }
        if not check:
            return export_onnx(detector, path, **options)
        images = images_for_check(detector, None, IMAGES_TO_COMPARE)
        return export_checked_onnx(detector, path, images, **options)


def _opened(
    model: str | Path | Detector,
    device: str | None,
    input_size: list[int] | None,
    use_amp: bool,
) -> Detector:
    """Return a detector as it is, or open it.

    Raises:
        ConfigError: if the arguments for opening are given together with a detector.
    """
    if not isinstance(model, Detector):
        return Detector(
            model, device=device, input_size=input_size, use_amp=use_amp
        )
    given = {
        "device": device,
        "input_size": input_size,
        "use_amp": use_amp or None,
    }
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{name} is only used to open a file, but a Detector was given; pass {name} to Detector()"
            )
    return model


def _refuse_with_resume(given: Mapping[str, Any]) -> None:
    """Raise for arguments that a resumed run takes from its training state."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{name} was given together with resume, which continues a run with its own settings and "
                "data; leave it out"
            )


def _start(
    data: str | Path | None,
    model: str | Path | None,
    overrides: Mapping[str, Any],
) -> tuple[str | None, dict[str, Any]]:
    """Return the configuration file of a new run, or None, and the settings of its start weights.

    Raises:
        ConfigError: if there is no data, or the model is unknown.
        CheckpointError: if there is nothing to start from.
    """
    name = None if model is None else str(model)
    names_data = name is not None and (
        name.endswith((".yml", ".yaml", ".pth")) or Path(name).is_dir()
    )
    names_data = names_data or any("dataloader" in key for key in overrides)
    if data is None and not names_data:
        raise ConfigError(
            "data is missing: pass a folder of images and labels, a data.yaml or a COCO file"
        )
    start = choose_start(name)
    logger.info("%s", start.reason)
    config = None if start.config is None else str(start.config)
    if start.weights is None:
        return config, {}
    return config, {"tuning": start.weights, "resume": None}


def _overrides(
    epochs: int | None,
    batch_size: int | Literal["auto"] | None,
    input_size: int | Sequence[int] | None,
    device: str | None,
    use_amp: bool | None,
    seed: int | None,
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the settings of a run by nested keys; `settings` wins over the other arguments.

    Raises:
        ConfigError: if a number is below 1.
    """
    result: dict[str, Any] = {}
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{name} is {value}, expected at least 1")
    plain_settings = {
        "epochs": epochs,
        "eval_spatial_size": _height_and_width(input_size),
        "device": device,
        "use_amp": use_amp,
        "seed": seed,
    }
    for name, setting in plain_settings.items():
        if setting is not None:
            result[name] = setting
    if batch_size is not None:
        result["train_dataloader"] = {"total_batch_size": batch_size}
        if batch_size != "auto":
            result["val_dataloader"] = {"total_batch_size": batch_size}
    for key, setting in (settings or {}).items():
        nested = setting
        for part in reversed(key.split(".")):
            nested = {part: nested}
        result = merged(result, nested)
    return result


def _height_and_width(size: int | Sequence[int] | None) -> list[int] | None:
    """Return an input size as [height, width]; None stays None."""
    if size is None:
        return None
    return [size, size] if isinstance(size, int) else list(size)


def _write_report(folder: Path, device: str) -> None:
    """Write `report.html`; a report that cannot be written is logged, because the run is complete."""
    try:
        with without_other_ranks():
            write_run_report(folder, device=device)
    except (RunError, MemoryError, RuntimeError) as error:
        _, reason = explain(error)
        logger.warning("report.html was not written: %s", reason)


def _result(folder: Path) -> TrainResult:
    """Return the result of a run from the files in its folder."""
    records: list[dict[str, Any]] = []
    log = folder / LOG_FILE
    if log.is_file():
        lines = read_text(log).splitlines()
        records = [json.loads(line) for line in lines]
    history = [table_row(record) for record in records]
    best = folder / BEST
    epoch = records[-1].get("best_epoch") if records else None
    metrics: dict[str, Any] = {}
    for row in history:
        if epoch is not None and row["epoch"] == epoch + 1:
            metrics = {key: row[key] for key in METRIC_COLUMNS if key in row}
    return TrainResult(
        folder=folder,
        best=best if best.is_file() else None,
        last=folder / LAST,
        best_epoch=None if epoch is None else epoch + 1,
        metrics=metrics,
        history=history,
    )
