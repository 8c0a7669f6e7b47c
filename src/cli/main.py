"""The command `dfine`: it lists its subcommands and starts one of them.

`dfine-dinov3` is the same command, because other packages also install a `dfine`; so is
`python -m dfine_dinov3`. Only the module of the chosen subcommand is imported.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from .. import __version__

PROGRAMS = ("dfine", "dfine-dinov3")
"""Names under which the command is installed."""


class Subcommand(NamedTuple):
    """A subcommand: its module in this package, and its line in the help."""

    module: str
    summary: str


SUBCOMMANDS = {
    "train": Subcommand("train", "train a detector on your data"),
    "resume": Subcommand("resume", "resume a run"),
    "val": Subcommand("val", "evaluate a detector on labelled images"),
    "predict": Subcommand("predict", "find objects in images and videos"),
    "export": Subcommand("export", "write an ONNX file"),
    "serve": Subcommand(
        "serve", "try a detector in the browser, and over HTTP"
    ),
    "check": Subcommand("check", "find the faults of a data set"),
    "convert": Subcommand("convert", "convert a data set or a checkpoint"),
    "report": Subcommand("report", "write a page about a detector's errors"),
    "benchmark": Subcommand("benchmark", "measure speed in several engines"),
    "info": Subcommand("info", "count parameters and operations"),
    "models": Subcommand("models", "list models; recognize a checkpoint"),
    "doctor": Subcommand("doctor", "check this machine before training"),
    "demo": Subcommand("demo", "train on synthetic data, in minutes on a CPU"),
    "completion": Subcommand("completion", "print a script for tab completion"),
}

USAGE = """usage: {program} COMMAND ...

Train D-FINE and DINOv3 detectors on your data, and use them.

  {program} train --data DIR                train on a folder of images and labels
  {program} predict runs/train image.jpg    find objects with the trained detector

commands:
{commands}

options:
  -h, --help  this text; {program} COMMAND --help describes a command
  --version   version of this package
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `dfine` with these arguments, or with those of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = program_name()
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(usage(program))
        return
    if name == "--version":
        sys.stdout.write(f"{__version__}\n")
        return
    if name not in SUBCOMMANDS:
        sys.stderr.write(_unknown(name, program))
        sys.exit(2)
    module = subcommand_module(name)
    module.main(arguments[1:], prog=f"{program} {name}")


def program_name() -> str:
    """Return the name of this command as it was typed."""
    name = os.path.basename(sys.argv[0])
    return name if name in PROGRAMS else PROGRAMS[0]


def subcommand_module(name: str):
    """Import and return the module of a subcommand, with `make_parser` and `main`."""
    package = __name__.rpartition(".")[0]
    return importlib.import_module(f"{package}.{SUBCOMMANDS[name].module}")


def usage(program: str) -> str:
    """Return the text of `--help`."""
    width = max(len(name) for name in SUBCOMMANDS)
    lines = [
        f"  {name:{width}}  {subcommand.summary}"
        for name, subcommand in SUBCOMMANDS.items()
    ]
    return USAGE.format(program=program, commands="\n".join(lines))


def _unknown(name: str, program: str) -> str:
    """Return the message about a subcommand that does not exist."""
    import difflib

    close = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
    hint = (
        f"did you mean {program} {close[0]}?"
        if close
        else f"{program} --help lists the commands"
    )
    return f"error[2]: {program} has no command {name!r}; {hint}\n"


if __name__ == "__main__":
    main()
