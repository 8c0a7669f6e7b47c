"""Train or evaluate a detector.

# one process
python train.py -c configs/dfine/custom/dfine_dinov3_s_custom.yml --data DATA

# one process per GPU
torchrun --nproc_per_node=8 train.py -c configs/dfine/dfine_dinov3_s_coco.yml --use-amp

# evaluate
torchrun --nproc_per_node=8 train.py -c ... --test-only -r output/.../best.pth

# without -c: resume a run, evaluate or fine-tune its weights or a published detector
python train.py -r output/.../last.pth
python train.py -r dfine_l_coco --test-only
python train.py -t weights/deimv2_dinov3_s_coco.pth
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    BATCH_HELP,
    add_dataset_arguments,
    add_family_argument,
    add_log_argument,
    add_min_ap_argument,
    batch_settings,
    batch_size,
)

if TYPE_CHECKING:
    from ..core import YAMLConfig

FLAGS = (
    "resume",
    "tuning",
    "device",
    "seed",
    "use_amp",
    "output_dir",
    "summary_dir",
    "test_only",
    "family",
    "override",
    "overwrite",
    "strict",
)
"""Flags with the name of a setting, which they override."""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-c",
        "--config",
        help="configuration file, .yml; default: that of the file of -r or -t",
    )
    add_dataset_arguments(parser)
    parser.add_argument(
        "-r",
        "--resume",
        help="resume from this last.pth; auto: from last.pth of the output folder if it exists, otherwise "
        "start a new run; with --test-only: evaluate these weights, a file or the name of a published "
        "detector (configs/models.yml)",
    )
    parser.add_argument(
        "--override",
        action="store_true",
        default=None,
        help="resume a run although its configuration or data has changed",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        default=None,
        help="treat every data warning (dropped, clipped, skipped or duplicate items) as an error; "
        "exit code 3",
    )
    parser.add_argument(
        "-t",
        "--tuning",
        help="start a new run from these weights, a file or the name of a published detector",
    )
    add_family_argument(parser)
    parser.add_argument(
        "-d",
        "--device",
        help="cpu, cuda or cuda:N; default: the GPU of the local rank if CUDA is available",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="random seed; default: a random one, which is logged",
    )
    parser.add_argument(
        "--use-amp",
        action="store_true",
        default=None,
        help="use mixed precision: bf16, or fp16 if the device does not support bf16; "
        "on a CPU only with -d cpu",
    )
    parser.add_argument(
        "--opt-level",
        choices=("O0", "O1", "O2"),
        help="accepted for compatibility with Apex: O1 and O2 mean --use-amp, O0 means float32",
    )
    parser.add_argument(
        "--batch", type=batch_size, metavar="N", help=BATCH_HELP
    )
    parser.add_argument("--output-dir", help="folder for checkpoints and logs")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        default=None,
        help="start a new run in the folder of another one, whose results are moved to earlier/ in it",
    )
    parser.add_argument(
        "--summary-dir",
        help="folder for TensorBoard; default: summary/ in the output folder",
    )
    add_log_argument(parser)
    parser.add_argument(
        "--test-only",
        action="store_true",
        default=None,
        help="evaluate and stop",
    )
    add_min_ap_argument(parser, "with --test-only: ")
    parser.add_argument(
        "-u",
        "--update",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings, e.g. epochs=12 optimizer.lr=1e-4",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Return the arguments, which agree with each other."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    if arguments.resume and arguments.tuning and arguments.resume != "auto":
        parser.error(
            "-r resumes a run and -t starts a new one: pass only one of them"
        )
    starts_from_file = arguments.tuning or arguments.resume not in (
        None,
        "auto",
    )
    if arguments.config is None and not starts_from_file:
        parser.error(
            "the following arguments are required: -c/--config, unless -r or -t names a file"
        )
    if isinstance(arguments.batch, int) and arguments.batch < 1:
        parser.error(f"--batch is {arguments.batch}, expected at least 1")
    if arguments.min_ap is not None and not arguments.test_only:
        parser.error("--min-ap is only used with --test-only: pass both")
    if arguments.opt_level == "O0" and arguments.use_amp:
        parser.error(
            "--opt-level O0 means float32, which contradicts --use-amp: pass only one of them"
        )
    if arguments.opt_level:
        arguments.use_amp = arguments.opt_level != "O0"
    return arguments


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as flags, by their name in the configuration."""
    flags = {}
    for name in FLAGS:
        value = getattr(arguments, name)
        if value is not None:
            flags[name] = value
    return flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    # before torch is imported, so that --help is fast
    arguments = parse_arguments(argv, prog)

    from ..runtime.process import run_command

    run = _Run(arguments)
    run_command(
        run.start, debug=arguments.debug, status_dir=lambda: run.status_dir
    )


class _Run:
    """A run of the trainer; it knows where its status is reported as soon as the configuration is read."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.status_dir: Path | None = None

    def start(self) -> None:
        """Train or evaluate."""
        from ..runtime.distributed import hide_gpus, join_group, pick_device
        from ..runtime.log import set_up_logging
        from ..runtime.process import end_with_peers, report_running
        from ..runtime.stop import (
            StopRequest,
            end_with_launcher,
            warn_of_unheard_signal,
        )
        from ..solver import DetSolver
        from ..solver.earlier_runs import REPORT
        from ..solver.model_selection import require_ap
        from ..solver.output_folder import refuse_another_run
        from .after_training import finish

        is_first = int(os.environ.get("RANK", 0)) == 0
        set_up_logging(speaks=is_first, debug=self.arguments.debug)
        overrides = settings_of_run(self.arguments)
        end_with_launcher()
        warn_of_unheard_signal()
        cfg = configuration_of_run(self.arguments, overrides)
        folder = Path(cfg.settings.output_dir)
        refuse_another_run(cfg.settings)  # before its status is replaced
        if is_first:
            self.status_dir = folder
            report_running(folder)
        if cfg.settings.device == "cpu":
            hide_gpus()
        device = pick_device(cfg.settings.device)
        timeout = timedelta(seconds=cfg.settings.rank_timeout)
        join_group(device, timeout, folder)
        end_with_peers(self.status_dir)
        stop = StopRequest()
        solver = DetSolver(cfg, device, stop)
        if cfg.settings.test_only:
            metrics = solver.val()
            if self.arguments.min_ap is not None:
                require_ap(metrics, self.arguments.min_ap)
        else:
            with stop.listening():
                solver.train()
            try:
                finish(cfg, str(device))
            finally:
                solver.end_log(folder / REPORT)


def settings_of_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that flags and `-u` override, and log what an Apex level means."""
    from ..core.config_file import parse_overrides
    from ..runtime.log import logger

    flags = given_settings(arguments)
    if arguments.resume and arguments.resume != "auto":
        flags["tuning"] = None  # overrides start weights of the configuration
    elif arguments.tuning and not arguments.resume:
        flags["resume"] = None
    if arguments.opt_level:
        logger.info(
            "--opt-level %s means %s: this trainer uses torch's mixed precision instead of Apex",
            arguments.opt_level,
            "--use-amp"
            if arguments.use_amp
            else "no mixed precision (use_amp=False)",
        )
    updates = batch_settings(arguments.batch)
    return parse_overrides([*updates, *arguments.update]) | flags


def configuration_of_run(
    arguments: argparse.Namespace, overrides: dict[str, Any]
) -> YAMLConfig:
    """Return the configuration with the settings of the command line and the data set of `--data`."""
    from ..data.preparation.run_dataset import with_dataset
    from ..solver.start_config import open_configuration

    overrides = with_dataset(
        overrides,
        arguments.data,
        data_format=arguments.data_format,
        images=arguments.data_images,
        val_fraction=arguments.val_fraction,
        follow_links=arguments.follow_links,
    )
    cfg = open_configuration(arguments.config, overrides)
    if arguments.log:
        chosen = dict.fromkeys([*cfg.settings.loggers, *arguments.log])
        cfg.set("loggers", list(chosen), "--log")
    return cfg


if __name__ == "__main__":
    main()
