"""List the published detectors, say which one a file holds, and share your own.

    dfine models
    dfine models show deimv2_l_coco
    dfine models check weights/deimv2_dinov3_l_coco.pth

    # share a trained detector in a folder, or on Hugging Face Hub
    dfine models push runs/train shared/cells
    dfine models push runs/train hf://USER/cells --licence apache-2.0
    dfine models pull hf://USER/cells

`check` names the model, its classes and its configuration, accounts for every tensor, compares the digest
with the published one if there is one, and prints the commands to evaluate, fine-tune and export. A file
that holds no detector of this project, or only a part of one, has the exit code 4.

`push` writes safetensors weights, a model card, licence notes, the configuration and the preprocessing.
Absolute paths in the configuration are reduced to their last part. A new repository on the hub is private,
unless --public is given.
`pull` writes to weights/NAME or the folder that you name, after checking that the detector can be used.
"""

import argparse
import shlex
from collections.abc import Sequence

from .common import parser_for, run

MAX_NAMES = 5
"""Number of class names that are printed."""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    verbs = parser.add_subparsers(
        dest="verb", metavar="list|show|check|push|pull"
    )
    verbs.add_parser("list", help="one line for each model")
    show = verbs.add_parser("show", help="all that is known about a model")
    show.add_argument("name", help="name of a model, as `list` prints it")
    check = verbs.add_parser("check", help="which model a file holds")
    check.add_argument(
        "file",
        help="checkpoint, or the name of a model with a file in weights/",
    )
    check.add_argument(
        "--family",
        help="family of the model, where the tensors fit several: dfine, deim, rtv4",
    )
    push = verbs.add_parser("push", help="share a detector")
    push.add_argument(
        "model", help="run folder, checkpoint, or name of a published model"
    )
    push.add_argument(
        "destination", help="a new folder, or hf://USER/NAME on the hub"
    )
    push.add_argument(
        "--title", help="heading of the model card; default: the name"
    )
    push.add_argument(
        "--licence",
        "--license",
        metavar="ID",
        help="licence of the weights for the model card, such as apache-2.0; those from DINOv3 have its own",
    )
    push.add_argument(
        "--public",
        action="store_true",
        help="make a new repository on the hub public; default: private",
    )
    push.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration of a checkpoint that contains none and is not recognized",
    )
    push.add_argument("--family", help="as for check")
    pull = verbs.add_parser("pull", help="fetch a shared detector")
    pull.add_argument("source", help="hf://USER/NAME, or a shared folder")
    pull.add_argument(
        "folder", nargs="?", help="a new folder; default: weights/NAME"
    )
    pull.add_argument(
        "--revision", help="branch, tag or commit on the hub; default: main"
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)
    commands = {
        None: print_list,
        "list": print_list,
        "show": lambda: print_model(arguments.name),
        "check": lambda: print_check(arguments.file, arguments.family),
        "push": lambda: push_model(arguments),
        "pull": lambda: pull_model(arguments),
    }
    run(commands[arguments.verb], arguments)


def print_list() -> None:
    """Print one line for each published model."""
    from ..detection.model_page import short_list
    from ..detection.model_table import read_table
    from ..runtime.log import say_lines

    say_lines(short_list(read_table().values()))


def print_model(name: str) -> None:
    """Print what is known about a model.

    Raises:
        ConfigError: if the name is not in the table.
    """
    from ..core.errors import ConfigError
    from ..core.paths import close_names
    from ..detection.model_page import description
    from ..detection.model_table import read_table
    from ..runtime.log import say_lines

    table = read_table()
    if name not in table:
        close = close_names(name, table)
        hint = (
            f"did you mean {', '.join(close)}?"
            if close
            else "`dfine models list` prints the names"
        )
        raise ConfigError(
            f"{name} is not a model of configs/models.yml; {hint}"
        )
    say_lines(description(table[name]))


def print_check(name: str, family: str | None) -> None:
    """Print which model a file holds.

    Raises:
        CheckpointError: if the file does not hold a whole detector of this project, or is not the published
            file that its name stands for.
    """
    import torch

    from ..core.errors import CheckpointError
    from ..detection.fitting import (
        completed,
        describe_loading,
        describe_misfits,
    )
    from ..detection.model_config import model_config
    from ..detection.model_page import commands
    from ..detection.weight_file import read_weights
    from ..runtime.log import say
    from ..runtime.weight_files import file_sha256

    file = read_weights(name, family)
    file.require_class_head()
    cfg = model_config(file)
    found = file.recognized
    with torch.device("meta"):
        model = cfg.model
        weights = completed(file.weights, model)
    misfits = describe_misfits(weights, model.state_dict())
    if misfits:
        raise CheckpointError(
            f"{file.path} is not complete or does not fit {cfg.path}: {misfits}"
        )
    config = found.entry.config if found else "its own configuration"
    say(describe_loading(file, model, config))
    say("complete: every tensor of the model is in the file")
    say(f"classes: {_shown_classes(file.named_classes)}")
    digest = file_sha256(file.path)
    published = found.entry.sha256 if found else None
    if published is None:
        remark = "no digest is published"
    elif digest == published.lower():
        remark = "as published"
    else:
        remark = f"the published file has {published}"
    say(f"sha256: {digest} ({remark})")
    if found is None:
        return
    say(f"decided by: {found.decided_by}")
    say(f"licence: {found.entry.licence or 'not known'}")
    for purpose, command in commands(found.entry).items():
        say(
            f"{purpose}: {_with_file(command, found.entry.name, str(file.path))}"
        )


def push_model(arguments: argparse.Namespace) -> None:
    """Share a detector, and print where it is."""
    from ..inference.sharing import push
    from ..runtime.log import say

    place = push(
        arguments.model,
        arguments.destination,
        title=arguments.title,
        licence=arguments.licence,
        public=arguments.public,
        config=arguments.config,
        family=arguments.family,
    )
    say(f"shared: {place}")


def pull_model(arguments: argparse.Namespace) -> None:
    """Fetch a shared detector, and print how to use it."""
    from ..core.commands import is_installed
    from ..inference.sharing import pull
    from ..runtime.log import say

    folder = pull(
        arguments.source, arguments.folder, revision=arguments.revision
    )
    say(f"fetched: {folder}")
    quoted = shlex.quote(str(folder))
    predict = (
        f"dfine predict {quoted} IMAGE"
        if is_installed()
        else f"python tools/inference/torch_inf.py -r {quoted} --input IMAGE"
    )
    say(f"find objects with it: {predict}")


def _shown_classes(classes: list[dict]) -> str:
    names = [str(row["name"]) for row in classes[:MAX_NAMES]]
    more = ", ..." if len(classes) > MAX_NAMES else ""
    return f"{len(classes)} ({', '.join(names)}{more})"


def _with_file(command: str, name: str, path: str) -> str:
    """Return a command of `commands` with a path in place of the weights that it names."""
    words = command.split()
    for index, word in enumerate(words):
        is_own_file = index > 0 and words[index - 1] in ("-r", "-t")
        if word == name or is_own_file:
            words[index] = shlex.quote(path)
    return " ".join(words)
