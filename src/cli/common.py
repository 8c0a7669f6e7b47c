"""Arguments and exit handling shared by the commands. Slow imports happen after arguments are parsed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..two_names import import_under_both_names

if TYPE_CHECKING:
    from ..inference import Detector

# when commands are imported, not when they run: processes that load data import them again, and unpickle
# classes of users, whose files may import this package under either name
import_under_both_names()


FAMILIES = ("dfine", "deim", "rtv4", "deimv2", "dfine_dinov3")
"""Values of `--family`; `src.detection.model_table` has their titles."""

CHECKPOINT_HELP = (
    "checkpoint: best.pth, last.pth, a published file (D-FINE, DEIM, DEIMv2, RT-DETRv4), or the name of a "
    "model of configs/models.yml, whose file is looked for in weights/"
)
CONFIG_HELP = (
    "configuration; needed only for a checkpoint that contains none and whose tensors are not those of a "
    "known model"
)


def positive_integer(text: str) -> int:
    """Return an argument that must be an integer of at least 1.

    Raises:
        argparse.ArgumentTypeError: if it is smaller.
        ValueError: if it is not an integer; argparse reports it.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def positive_number(text: str) -> float:
    """Return an argument that must be a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: if it is not.
        ValueError: if it is not a number; argparse reports it.
    """
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text}: expected a number above 0, and not infinity"
        )
    return value


def user_path(text: str) -> Path:
    """Return a path as users write it: `~` is the home folder, which no shell expands behind `--flag=`."""
    return Path(text).expanduser()


def parser_for(
    doc: str | None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser with a module's docstring as help and `--debug`.

    Args:
        doc: docstring of the module.
        prog: name of the command; None takes that of the process.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def add_dataset_arguments(
    parser: argparse.ArgumentParser, *, split: bool = True
) -> None:
    """Add `--data` and the flags that decide how it is read.

    Args:
        parser: gets the arguments.
        split: also add `--val-fraction`.
    """
    parser.add_argument(
        "--data",
        type=user_path,
        metavar="PATH",
        help="data set: a folder, a data.yaml or a COCO file; COCO, YOLO and Pascal VOC are recognized",
    )
    parser.add_argument(
        "--data-format",
        choices=DATA_FORMATS,
        help="format of --data, if its labels exist in several formats; default: recognized",
    )
    parser.add_argument(
        "--data-images",
        type=user_path,
        metavar="DIR",
        help="image folder of COCO files in --data; default: found near the files",
    )
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="open files of --data that are symbolic links out of the data set",
    )
    if split:
        parser.add_argument(
            "--val-fraction",
            type=fraction,
            default=0.1,
            help="fraction of images for validation if --data has no part for it; default: 0.1",
        )


LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "clearml")
"""Values of `loggers` in `src/core/yaml_config.py`, which is not imported before arguments are parsed."""


def add_log_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--log`, which switches loggers on."""
    parser.add_argument(
        "--log",
        "--loggers",  # torchrun takes --log, also behind train.py, for one of its own flags
        nargs="+",
        action="extend",
        choices=LOGGERS,
        default=[],
        metavar="LOGGER",
        help="also send the run to these loggers: wandb, mlflow or clearml. They are added to those of the "
        "setting loggers, by default csv and tensorboard",
    )


def log_arguments(words: Sequence[str]) -> list[str]:
    """Return the arguments of `train.py` for the words of `--log`."""
    return ["--loggers", *words] if words else []


def batch_size(text: str) -> int | str:
    """Return a batch size, or "auto", for `argparse`."""
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text}: expected a number, or auto"
        ) from None


AUTO = "auto"

BATCH_HELP = (
    "batch size over all GPUs; auto: the largest one that fits into memory"
)


def batch_settings(batch: int | str | None) -> list[str]:
    """Return the settings that `--batch` stands for, as for `-u`; auto keeps the batch of evaluations."""
    if batch is None:
        return []
    settings = [f"train_dataloader.total_batch_size={batch}"]
    if batch != AUTO:
        settings.append(f"val_dataloader.total_batch_size={batch}")
    return settings


DATA_FORMATS = ("coco", "yolo", "voc")
"""`FORMATS` of `src/data/preparation/any_dataset.py`, which is not imported before arguments are parsed."""


def fraction(text: str) -> float:
    """Return a number above 0 and below 1, for `argparse`."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"{text}: expected a fraction above 0 and below 1"
        )
    return value


def minimum_score(text: str) -> float:
    """Return a score that is required, from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: if the text is anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text}: expected a score from 0 to 1, such as 0.5"
        )
    return value


def add_min_ap_argument(
    parser: argparse.ArgumentParser, condition: str = ""
) -> None:
    """Add `--min-ap`, which turns an evaluation into a check.

    Args:
        parser: parser of a command that evaluates.
        condition: beginning of the help, if the argument needs another one.
    """
    parser.add_argument(
        "--min-ap",
        type=minimum_score,
        metavar="AP",
        help=f"{condition}end with exit code 5 if AP is below this score, 0 to 1",
    )


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, as `-r` or by its position; `use_model` reads both."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"run folder, or {CHECKPOINT_HELP}",
    )
    parser.add_argument(
        "-r", "--resume", metavar="FILE", help="the same as MODEL"
    )


def use_model(
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    *,
    required: bool = True,
) -> None:
    """Set `arguments.resume` to the model, which is given in one of two ways.

    Args:
        parser: reports errors.
        arguments: parsed arguments; changed.
        required: end the command if no model is given.
    """
    given = arguments.model
    if given is not None and arguments.resume is not None:
        parser.error(f"{given} and -r {arguments.resume} name two models")
    if given is not None:
        arguments.resume = given
    if required and arguments.resume is None:
        parser.error("the following arguments are required: MODEL")


def use_run_folder(arguments: argparse.Namespace) -> None:
    """Replace a run folder in `arguments.resume` by its best checkpoint.

    Raises:
        CheckpointError: if the folder contains no checkpoint.
    """
    from ..detection.run_checkpoint import checkpoint_of

    if arguments.resume is not None:
        arguments.resume = str(checkpoint_of(arguments.resume))


def use_model_or_config(arguments: argparse.Namespace) -> None:
    """Resolve a model that may also be a configuration, which stands for random weights.

    Raises:
        CheckpointError: if a folder contains no checkpoint.
    """
    from ..core.package_configs import configs_by_name

    name = arguments.resume or ""
    is_config = name.endswith((".yml", ".yaml")) or name in configs_by_name()
    if is_config and arguments.config is None:
        arguments.config = name
        arguments.resume = None
    use_run_folder(arguments)


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `detector_from` needs besides the model."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=CONFIG_HELP,
    )
    add_family_argument(parser)
    parser.add_argument(
        "-d", "--device", help="cpu, cuda or cuda:N; default: CUDA if available"
    )
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="input size; default: the size that the model was trained for",
    )
    parser.add_argument(
        "--bit-depth",
        type=int,
        choices=range(8, 17),
        metavar="BITS",
        help="bits that the samples of 16-bit images use; default: the training's",
    )
    parser.add_argument(
        "--use-amp",
        action="store_true",
        help="use mixed precision: bf16, or fp16 if not supported; CUDA only",
    )
    add_engine_argument(parser)


def add_engine_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--engine`, for checkpoints on the CPU."""
    parser.add_argument(
        "--engine",
        choices=("torch", "auto"),
        default="torch",
        help="auto: the fastest installed engine on this CPU instead of PyTorch, which the first use tries "
        "and a cache keeps; only for checkpoints",
    )


def add_family_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--family`, for checkpoints whose tensors fit several families."""
    parser.add_argument(
        "--family",
        choices=FAMILIES,
        help="family of a published file, where its tensors fit several; default: its notes or its name "
        "decide",
    )


EXPORTED_ENDINGS = (".onnx", ".xml", ".engine")
"""Ends of the names of exported models; `EXPORTED` in src/inference/opening.py has their engines."""


def detector_from(arguments: argparse.Namespace) -> Detector:
    """Load the checkpoint, or the exported model, that the arguments name.

    Raises:
        ConfigError: if an engine is chosen for an exported model.
    """
    from ..core.errors import ConfigError
    from ..inference import Detector

    use_run_folder(arguments)
    device = {} if arguments.device is None else {"device": arguments.device}
    ending = Path(arguments.resume).suffix.lower()
    if arguments.engine != "torch" and ending in EXPORTED_ENDINGS:
        raise ConfigError(
            f"--engine {arguments.engine} is only used with checkpoints, but {arguments.resume} is an "
            "exported model; leave it out"
        )
    if ending == ".onnx":
        return Detector.from_onnx(arguments.resume, **device)
    if ending == ".xml":
        return Detector.from_openvino(arguments.resume, **device)
    if ending == ".engine":
        return Detector.from_tensorrt(arguments.resume, **device)
    return Detector.from_checkpoint(
        arguments.resume,
        device=arguments.device,
        config=arguments.config,
        input_size=arguments.input_size,
        use_amp=arguments.use_amp,
        bit_depth=arguments.bit_depth,
        family=arguments.family,
        engine=arguments.engine,
    )


def add_labelled_images_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says on which labelled images a checkpoint is tried."""
    parser.add_argument(
        "--images",
        type=user_path,
        help="folder of images; default: the validation data that the checkpoint names",
    )
    parser.add_argument(
        "--annotations",
        type=user_path,
        metavar="FILE",
        help="COCO file of these images",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="batch size; default: 8"
    )


def add_prediction_arguments(
    parser: argparse.ArgumentParser,
    output: str,
    *,
    also: Sequence[str] = (),
    required: bool = True,
) -> None:
    """Add what `predict_from` needs.

    Args:
        parser: gets the arguments.
        output: default folder.
        also: further names of `--input`.
        required: whether `--input` is the only way to name the input.
    """
    parser.add_argument(
        "-i",
        "--input",
        *also,
        dest="input",
        required=required,
        help="image, folder, video, address of a video stream (rtsp://...), or camera:N",
    )
    parser.add_argument(
        "--output",
        default=output,
        help=f"folder for pictures or a video and predictions.json; default: {output}",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="minimum score; default: the checkpoint's, which has the best F1 on its validation data",
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="COCO file: predict its images, which are in the folder --input, under its image ids; boxes are "
        "not needed",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="batch size; default: 8"
    )
    parser.add_argument(
        "--nms",
        type=float,
        metavar="IOU",
        help="drop boxes whose IoU with a better box of the same class is above this; default: keep all",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="also predict large images in tiles of this side length",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.2,
        help="overlap of neighbouring tiles as a fraction of their side; default: 0.2",
    )
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="stop after this number of images or frames",
    )
    parser.add_argument(
        "--no-draw", action="store_true", help="write only predictions.json"
    )


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--threads`, for runtimes on the CPU."""
    parser.add_argument(
        "--threads",
        type=positive_integer,
        metavar="N",
        help="CPU threads; default: torch's number, which OMP_NUM_THREADS sets",
    )


def predict_from(
    arguments: argparse.Namespace, load: Callable[[], Detector]
) -> None:
    """Predict what the arguments ask for; `load` gives the detector once they are known to make sense."""
    from ..inference import PredictionSettings, Tiling
    from ..inference.predict_source import open_job

    job = open_job(
        arguments.input,
        user_path(arguments.output),
        more=getattr(arguments, "more", ()),
        annotations=arguments.annotations and user_path(arguments.annotations),
        draw=not arguments.no_draw,
        frames=arguments.frames,
    )
    settings = PredictionSettings(
        threshold=arguments.threshold,
        batch_size=arguments.batch_size,
        nms=arguments.nms,
        tiling=Tiling(arguments.tile, arguments.overlap)
        if arguments.tile is not None
        else None,
    )
    job.run(load(), settings)


def run(command: Callable[[], Any], arguments: argparse.Namespace) -> None:
    """Run a tool's command and end the process with one line and an exit code."""
    from ..runtime.log import set_up_logging
    from ..runtime.process import end_in_order, run_command

    set_up_logging(speaks=True, debug=arguments.debug)
    end_in_order()
    run_command(command, debug=arguments.debug)
