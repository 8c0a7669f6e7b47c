"""Check a machine before training on it: the first command to run on a new one.

    python tools/doctor.py
    python tools/doctor.py -c configs/dfine/dfine_dinov3_s_coco.yml --use-amp
    torchrun --nproc_per_node=8 tools/doctor.py -c ... --use-amp --report doctor.json

Versions, GPUs, limits of the system, read speed of the data, loader, training steps in float32, bf16
and fp16, memory, connections between ranks, speed, and what this means for the run. Weights are random
and images are noise: nothing is downloaded, and data is needed only for the read speed and the loader.
A check that cannot run on this machine is skipped with the reason. A failed check does not stop the
others. With torchrun, all ranks are checked, and rank 0 prints.

The exit code is 0 if no check has failed (warnings are allowed), otherwise the highest code of the
failed checks, such as 7 ranks, 6 resources, 5 numbers, 3 data, 2 no such device (docs/errors.md).
"""

import os
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.common import parser_for, run, user_path

SMALL_CONFIG = ROOT / "configs/dfine/demo/dfine_dinov3_demo.yml"


def main() -> None:
    parser = parser_for(__doc__)
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
    arguments = parser.parse_args()
    run(lambda: diagnose(arguments), arguments)


def diagnose(arguments) -> None:
    from src.runtime.checks import (
        over_all_ranks,
        raise_if_failed,
        run_check,
        severity,
    )
    from src.runtime.distributed import barrier
    from src.runtime.log import set_up_logging
    from src.runtime.own_files import prepare_report
    from src.solver.doctor import (
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

    from src.core import YAMLConfig
    from src.core.config_file import parse_overrides
    from src.runtime.checks import Finding, run_check
    from src.runtime.distributed import hide_gpus, pick_device
    from src.solver.building import amp_dtype_of_run
    from src.solver.step_checks import Trial

    path = arguments.config or SMALL_CONFIG
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
    from src.runtime.log import printable, say

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
    from src.runtime.checks import exit_code_of
    from src.runtime.own_files import write_report

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


if __name__ == "__main__":
    main()
