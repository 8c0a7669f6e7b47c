"""Check a machine before training on it: the first command to run on a new one.

    dfine doctor
    dfine doctor -c configs/dfine/dfine_dinov3_s_coco.yml --use-amp
    torchrun --nproc_per_node=8 tools/doctor.py -c ... --use-amp --report doctor.json

Versions, GPUs, limits of the system, read speed of the data, loader, training steps in float32, bf16
and fp16, memory, connections between ranks, speed, and what this means for the run. Weights are random
and images are noise: nothing is downloaded, and data is needed only for the read speed and the loader.
A check that cannot run on this machine is skipped with the reason. A failed check does not stop the
others. With torchrun, all ranks are checked, and rank 0 prints.

The exit code is 0 if no check has failed (warnings are allowed), otherwise the highest code of the
failed checks, such as 7 ranks, 6 resources, 5 numbers, 3 data, 2 no such device (docs/errors.md).
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence

from .common import parser_for, run, user_path

SMALL_CONFIG = "dfine_dinov3_demo"


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "-c",
        "--config",
        type=user_path,
        metavar="FILE",
        help="configuration to try; default: the model of the demo, without data",
    )
    parser.add_argument(
        "-u",
        "--update",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings, as for train.py",
    )
    parser.add_argument(
        "-d",
        "--device",
        help="cpu, cuda or cuda:N; default: the GPU of the local rank if CUDA is available",
    )
    parser.add_argument(
        "--use-amp",
        action="store_true",
        default=None,
        help="mixed precision for memory and speed; on a CPU only with -d cpu",
    )
    parser.add_argument(
        "--images",
        type=user_path,
        metavar="DIR",
        help="folder of images whose read speed is measured; default: that of -c",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out the training steps and the memory",
    )
    parser.add_argument(
        "--report",
        type=user_path,
        metavar="FILE",
        help="also write the results to this JSON file",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)
    run(lambda: diagnose(arguments), arguments)


def diagnose(arguments: argparse.Namespace) -> None:
    """Run all checks and print their results; the worst one decides the exit code."""
    from ..runtime.checks import (
        over_all_ranks,
        raise_if_failed,
        run_check,
        severity,
    )
    from ..runtime.distributed import barrier
    from ..runtime.log import set_up_logging
    from ..runtime.own_files import prepare_report
    from ..solver.doctor import (
        check_start,
        checks_of_all_ranks,
        checks_of_rank,
    )

    set_up_logging(speaks=arguments.debug, debug=arguments.debug)
    number = int(os.environ.get("RANK", 0))
    if arguments.report and number == 0:
        prepare_report(arguments.report, "--report")
    device_check, trial = open_trial(arguments)
    checks = []

    def tell(check) -> None:
        checks.append(check)
        if number == 0:
            show(check)
            keep_report(arguments, checks, finished=False)

    tell(device_check)
    for check in checks_of_rank(
        trial,
        folder=arguments.images,
        chosen=arguments.config is not None,
        quick=arguments.quick,
    ):
        tell(check)

    connected = True
    if trial.ranks > 1:
        start = run_check("start", lambda: check_start(trial))
        tell(start)
        connected = start.status == "ok"
    before = list(checks)
    checks[:] = [over_all_ranks(check) for check in before]
    if number == 0:
        for own, check in zip(before, checks):
            if severity(check) > severity(own):
                show(check)
    for check in checks_of_all_ranks(
        trial,
        list(checks),
        chosen=arguments.config is not None,
        connected=connected,
        quick=arguments.quick,
    ):
        tell(over_all_ranks(check))
    if number == 0:
        keep_report(arguments, checks, finished=True)
    barrier()
    if number == 0:
        raise_if_failed(checks)


def open_trial(arguments):
    """Return the check of the device, and what is tried: on the CPU if the device does not exist."""
    import torch

    from ..core import YAMLConfig
    from ..core.config_file import parse_overrides
    from ..core.package_configs import find_config
    from ..runtime.checks import Finding, run_check
    from ..runtime.distributed import hide_gpus, pick_device
    from ..solver.building import amp_dtype_of_run
    from ..solver.configuration_trial import Trial

    path = find_config(arguments.config or SMALL_CONFIG)
    overrides = parse_overrides(arguments.update)
    for name in ("device", "use_amp"):
        value = getattr(arguments, name)
        if value is not None:
            overrides[name] = value
    settings = YAMLConfig(path, **overrides).settings
    device = torch.device("cpu")

    def pick():
        nonlocal device
        if settings.device == "cpu":
            hide_gpus()
        device = pick_device(settings.device)
        return Finding(f"{device}; the steps below run on it")

    check = run_check("device", pick)
    dtype = amp_dtype_of_run(
        settings.use_amp, device, named=settings.device is not None
    )
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    return check, Trial(path, overrides, device, dtype, ranks)


def show(check) -> None:
    """Print the result of a check in lines of at most 110 columns."""
    from ..runtime.log import printable, say

    title = f"{check.status:8}{check.name:15}"
    for line in textwrap.wrap(
        printable(check.text),
        width=110,
        initial_indent=title,
        subsequent_indent=" " * len(title),
        break_on_hyphens=False,
        break_long_words=False,
    ):
        say(line)


def keep_report(arguments, checks, *, finished: bool) -> None:
    """Write the results so far, which remain if a later check ends the process, as NCCL can."""
    from ..runtime.checks import exit_code_of
    from ..runtime.own_files import write_report

    if arguments.report is None:
        return
    write_report(
        arguments.report,
        {
            "finished": finished,
            "exit_code": exit_code_of(checks),
            "config": str(arguments.config or SMALL_CONFIG),
            "command": sys.argv[1:],
            "checks": [check.as_json() for check in checks],
        },
    )
