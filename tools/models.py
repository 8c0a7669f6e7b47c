"""List the published detectors, show one of them, and say which one a file holds.

    python tools/models.py list
    python tools/models.py show deimv2_l_coco
    python tools/models.py check weights/deimv2_dinov3_l_coco.pth

    # write the tables of docs/models.md and docs/models_cn.md again, after configs/models.yml has changed
    python tools/models.py page

`check` names the model, its classes and its configuration, accounts for every tensor, compares the digest
with the published one if there is one, and prints the commands to evaluate, fine-tune and export. A file
that holds no detector of this project, or only a part of one, has the exit code 4.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.common import parser_for, run

PAGES = ("docs/models.md", "docs/models_cn.md")
"""Pages with tables that are generated."""

MAX_NAMES = 5
"""Number of class names that are printed."""


def main() -> None:
    parser = parser_for(__doc__)
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="list|show|check|page"
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
    verbs.add_parser("page", help="write the tables of the documents again")
    arguments = parser.parse_args()
    commands = {
        "list": print_list,
        "show": lambda: print_model(arguments.name),
        "check": lambda: print_check(arguments.file, arguments.family),
        "page": write_pages,
    }
    run(commands[arguments.verb], arguments)


def write(text: str) -> None:
    """Write lines to standard output, whose reader may end (`| head`)."""
    from src.runtime.log import say

    for line in text.splitlines():
        say(line)


def print_list() -> None:
    from src.detection.model_page import short_list
    from src.detection.model_table import read_table

    write(short_list(read_table().values()))


def print_model(name: str) -> None:
    from src.core.errors import ConfigError
    from src.core.paths import close_names
    from src.detection.model_page import description
    from src.detection.model_table import read_table

    table = read_table()
    if name not in table:
        close = close_names(name, table)
        hint = (
            f"did you mean {', '.join(close)}?"
            if close
            else "`python tools/models.py list` prints the names"
        )
        raise ConfigError(
            f"{name} is not a model of configs/models.yml; {hint}"
        )
    write(description(table[name]))


def print_check(name: str, family: str | None) -> None:
    """Print which model a file holds.

    Raises:
        CheckpointError: if the file does not hold a whole detector of this project, or is not the published
            file that its name stands for.
    """
    import torch

    from src.core.errors import CheckpointError
    from src.detection.fitting import (
        completed,
        describe_loading,
        describe_misfits,
    )
    from src.detection.model_config import model_config
    from src.detection.model_page import commands
    from src.detection.weight_file import read_weights
    from src.runtime.weight_files import file_sha256

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
    write(describe_loading(file, model, config))
    write("complete: every tensor of the model is in the file")
    write(f"classes: {_shown_classes(file.named_classes)}")
    digest = file_sha256(file.path)
    published = found.entry.sha256 if found else None
    if published is None:
        remark = "no digest is published"
    elif digest == published.lower():
        remark = "as published"
    else:
        remark = f"the published file has {published}"
    write(f"sha256: {digest} ({remark})")
    if found is None:
        return
    write(f"decided by: {found.decided_by}")
    write(f"licence: {found.entry.licence or 'not known'}")
    for purpose, command in commands(found.entry).items():
        write(f"{purpose}: {_with_file(command, str(file.path))}")


def _shown_classes(classes: list[dict]) -> str:
    names = [str(row["name"]) for row in classes[:MAX_NAMES]]
    more = ", ..." if len(classes) > MAX_NAMES else ""
    return f"{len(classes)} ({', '.join(names)}{more})"


def _with_file(command: str, path: str) -> str:
    """Return a command with a path in place of the weights behind `-r` or `-t`."""
    words = command.split()
    for flag in ("-r", "-t"):
        if flag in words:
            words[words.index(flag) + 1] = path
    return " ".join(words)


def write_pages() -> None:
    from src.core.paths import read_text
    from src.detection.model_page import with_tables
    from src.detection.model_table import read_table
    from src.runtime.files import write_atomically

    for name in PAGES:
        path = ROOT / name
        text = with_tables(read_text(path), read_table())
        write_atomically(
            path, lambda file, text=text: file.write(text.encode())
        )
        write(f"{name}: written")


if __name__ == "__main__":
    main()
