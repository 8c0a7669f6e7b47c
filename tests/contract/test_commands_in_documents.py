"""Commands in the documents work.

All ```bash blocks of README.md, CONTRIBUTING.md, weights/README.md and the pages in docs/ are collected, and
so are commands of `dfine` in the text and in tables, and the steps of the workflows in examples/. The Chinese
pages have the same blocks (test_chinese_pages.py).

- Every command of this project is parsed by its real parser: `dfine`, `train.py`, and the scripts in tools/,
  reference/ and tests/. Files of the repository that it names must exist. Settings of `-u` are compared with
  the configuration that `-c` names.
- The commands in `RUN` are also run, as they are written or with the arguments that make them short, in a
  folder with small data, a small trained detector and a run folder. The others train, or need weights or
  packages that are not part of the repository.
- A block with other programs, or that cannot be run here, has `<!-- not run: REASON -->` in the line before
  it. The reasons are those of `REASONS`. Its commands of this project are parsed all the same.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import yaml

from src.cli import main as dfine
from src.core import YAMLConfig
from src.core.config_file import parse_overrides
from src.core.errors import ConfigError
from src.two_names import import_under_both_names
from tests.fixtures.layouts import voc_lists, yolo_yaml
from tests.fixtures.processes import Ended
from tests.fixtures.run_here import call_here, run_here
from tests.fixtures.tiny import ROOT, SyntheticData
from tests.fixtures.trained_tiny import TRAINED

REASONS = {"GPU", "network", "several machines"}
"""Why a block is not run: it needs a GPU, downloads something, or needs several machines."""

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "weights/README.md",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*.md")
        if not path.stem.endswith("_cn")
    ),
]

WORKFLOWS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "examples").rglob("*.yml")
)

BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>bash|sh|shell|console)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"<!-- not run: (.*?) -->\s*\Z")
IN_TEXT = re.compile(r"`(dfine(?:-dinov3)? [a-z-][^`]*)`")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")

LAUNCHERS = {"torchrun", "srun"}
"""Programs that start one of ours, whose name follows their own options."""

OURS = ("train.py", "tools/", "reference/", "tests/")
FOLDERS = ("configs/", "docs/", "reference/", "src/", "tests/", "tools/")
"""Folders of the repository: a path that begins with one of them must exist."""

DEFAULT_CONFIG = "configs/dfine/custom/dfine_dinov3_s_custom.yml"
"""Configuration of `dfine train`, with which its settings of `-u` are compared."""

SHELL = {"export", "cd", "."}
"""Parts of the shell."""

SHORT_TRAINING = [
    *("--model", "tiny", "--epochs", "1", "--imgsz", "64"),
    *("--batch", "4", "-d", "cpu", "--seed", "0", "-u"),
    "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0",
    "train_dataloader.collate_fn.stop_epoch=0",
]

SHORT_DEMO = [
    *("--epochs", "1", "--train-images", "8", "--val-images", "4"),
    *("--size", "64", "-d", "cpu"),
]

RUN: Mapping[str, list[str]] = {
    "dfine --help": [],
    "dfine train --help": [],
    "dfine completion bash": [],
    "dfine models list": [],
    "dfine models show deimv2_l_coco": [],
    "dfine train --data DATA": SHORT_TRAINING,
    "dfine val runs/train": ["-d", "cpu"],
    "dfine val runs/train --data DATA": ["-d", "cpu"],
    "dfine report runs/train": ["-d", "cpu"],
    "dfine check DATA": [],
    "dfine predict runs/train image.jpg": ["-d", "cpu"],
    "dfine predict runs/train images/": ["-d", "cpu"],
    "dfine demo": SHORT_DEMO,
    "python tools/dataset/check.py --data DATA": [],
    "python tools/dataset/check.py --annotations DATA/train.json --images DATA/images "
    "--val-annotations DATA/val.json": [],
    "python tools/dataset/convert.py YOLO/data.yaml --output COCO": [],
    "python tools/dataset/convert.py VOC2012 --output COCO": [],
    "python tools/inference/torch_inf.py -r output/demo/best.pth -i image.jpg": [
        "-d",
        "cpu",
    ],
    "python tools/visualization/report.py -r best.pth --images images/ "
    "--annotations annotations.json --output report.html": ["-d", "cpu"],
    "python reference/convert_weight.py last.pth": [],
    "dfine info best.pth": [],
}
"""Documented commands that are run, with the arguments that are added to make them short."""

TRAINING = "dfine train --data DATA"
"""The command of `RUN` that trains; the others use the folder that it writes."""


class Block(NamedTuple):
    """A block of commands."""

    page: str
    line: int
    code: str
    reason: str | None
    """Reason of the mark before the block, or None."""


class Command(NamedTuple):
    """A command of a document."""

    page: str
    line: int
    words: tuple[str, ...]
    """Program and arguments, without assignments before it."""
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {' '.join(self.words)}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Yield the blocks of shell commands of a page."""
    for match in BLOCK.finditer(text):
        mark = MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(page, line, match["code"], mark[1] if mark else None)


def logical_lines(code: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a block with their offsets; a line that ends in a backslash continues."""
    joined = ""
    start = 0
    for offset, line in enumerate(code.splitlines()):
        if not joined:
            start = offset
        joined += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield start, joined
            joined = ""
    assert not joined, f"the last line ends in a backslash: {joined!r}"


def simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands of a line, which `&&`, `||`, `|`, `;` and `&` divide, without assignments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set("&|;"):
            while words and ASSIGNMENT.match(words[0]):
                del words[0]
            if words:
                yield tuple(words)
            words = []
        else:
            words.append(word)


def commands_of_block(block: Block) -> Iterator[Command]:
    for offset, line in logical_lines(block.code):
        for words in simple_commands(line):
            yield Command(block.page, block.line + offset, words, block.reason)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def all_blocks() -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        found += blocks_of(page, read(page))
    return found


def commands_in_text(page: str, text: str) -> Iterator[Command]:
    """Yield the commands of `dfine` in backticks outside blocks."""
    plain = re.sub(
        r"^```.*?^```$",
        lambda match: "\n" * match[0].count("\n"),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    for match in IN_TEXT.finditer(plain):
        line = plain.count("\n", 0, match.start()) + 1
        for words in simple_commands(match[1]):
            yield Command(page, line, words, None)


def commands_of_workflow(page: str, text: str) -> Iterator[Command]:
    """Yield the commands of the steps of a workflow of GitHub Actions."""
    for job in yaml.safe_load(text)["jobs"].values():
        for step in job["steps"]:
            for _, line in logical_lines(step.get("run", "")):
                for words in simple_commands(line):
                    start = text.index(line.strip())
                    number = text.count("\n", 0, start) + 1
                    yield Command(page, number, words, None)


def our_part(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the command of this project in a command, without python and launchers, or None."""
    if words[0] in ("dfine", "dfine-dinov3", "train.py"):
        return words
    if words[:3] == ("python", "-m", "dfine_dinov3"):
        return ("dfine", *words[3:])
    if words[0] == "python" and words[1].startswith(OURS):
        return words[1:]
    if words[0] in LAUNCHERS:
        for number, word in enumerate(words):
            if word.endswith(".py"):
                return words[number:]
    return None


def is_known_without_mark(words: tuple[str, ...]) -> bool:
    return our_part(words) is not None or words[0] in SHELL


class Parsed(BaseException):  # noqa: N818
    """Ends a command after its arguments were parsed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.arguments = arguments


def parse(words: tuple[str, ...]) -> argparse.Namespace | None:
    """Parse the arguments of a command with its own parser; None if it prints its help instead.

    Raises:
        AssertionError: if the arguments are refused, with the message.
    """
    program, *arguments = words
    if program in dfine.PROGRAMS:
        command = dfine.main
    else:
        command = partial(
            runpy.run_path, str(ROOT / program), run_name="__main__"
        )
    path = sys.path[:]
    with ends_after_parsing():
        try:
            ended = call_here(command, program, *arguments)
        except Parsed as parsed:
            return parsed.arguments
        finally:
            sys.path[:] = path
    assert "--help" in words and ended.code in (None, 0), ended.err
    return None


@contextmanager
def ends_after_parsing() -> Iterator[None]:
    """Let commands end by `Parsed` when their arguments are parsed."""
    with ExitStack() as stack:
        for name in ("parse_args", "parse_intermixed_args"):
            method = ending_with_parsed(getattr(argparse.ArgumentParser, name))
            stack.enter_context(
                patch.object(argparse.ArgumentParser, name, method)
            )
        yield


def ending_with_parsed(method: Callable) -> Callable:
    def parse_and_end(self, args=None, namespace=None):
        raise Parsed(method(self, args, namespace))

    return parse_and_end


def missing_files(words: tuple[str, ...]) -> list[str]:
    """Return the files of the repository that a command names and that do not exist."""
    missing = []
    for word in words:
        path = word.rpartition("=")[2]
        is_ours = path == "train.py" or path.startswith(FOLDERS)
        if is_ours and not (ROOT / path).exists():
            missing.append(path)
    return missing


def check_settings(arguments: argparse.Namespace | None) -> None:
    """Check the settings of `-u` with the configuration of `-c`, as the command itself does."""
    config = getattr(arguments, "config", None)
    if hasattr(arguments, "model") and hasattr(arguments, "epochs"):
        config = DEFAULT_CONFIG  # `dfine train`
    if not isinstance(config, str) or not (ROOT / config).is_file():
        return
    updates = []
    for update in getattr(arguments, "update", None) or []:
        if not update.startswith("$") and not update.endswith("=..."):
            updates.append(update)
    YAMLConfig(ROOT / config, **parse_overrides(updates))


COMMANDS: list[Command] = []
for _block in all_blocks():
    COMMANDS += commands_of_block(_block)
for _page in PAGES:
    COMMANDS += commands_in_text(_page, read(_page))

for _page in WORKFLOWS:
    COMMANDS += commands_of_workflow(_page, read(_page))

OUR_COMMANDS = list(
    {our_part(command.words): command for command in COMMANDS}.items()
)
OUR_COMMANDS = [
    (words, command) for words, command in OUR_COMMANDS if words is not None
]


def test_documents_have_commands():
    pages = {command.page for command in COMMANDS}
    assert {"README.md", "docs/start.md", "docs/data.md"} <= pages
    assert len(OUR_COMMANDS) > 100


def test_workflows_have_commands_of_ours():
    for page in WORKFLOWS:
        words = [c.words for c in COMMANDS if c.page == page]
        assert ("dfine", "demo") in [part[:2] for part in words]
        assert any("--min-ap" in part for part in words)


def test_the_reason_of_every_block_that_is_not_run_is_known():
    unknown = [
        f"{block.page}:{block.line}: {block.reason}"
        for block in all_blocks()
        if block.reason is not None and block.reason not in REASONS
    ]
    assert not unknown


def test_no_mark_stands_without_a_block():
    for page in PAGES:
        marked = [
            block for block in blocks_of(page, read(page)) if block.reason
        ]
        marks = re.findall(r"^ *<!-- not run:", read(page), re.MULTILINE)
        assert len(marks) == len(marked), page


def test_a_block_with_other_programs_says_why_it_is_not_run():
    others = []
    for block in all_blocks():
        for command in commands_of_block(block):
            if block.reason is None and not is_known_without_mark(
                command.words
            ):
                others.append(str(command))
    assert not others, "\n".join(others)


@pytest.mark.parametrize(
    ("words", "command"),
    OUR_COMMANDS,
    ids=[" ".join(w) for w, _ in OUR_COMMANDS],
)
def test_a_command_is_accepted_by_its_parser_and_its_files_exist(
    words, command
):
    assert not missing_files(words), str(command)
    try:
        arguments = parse(words)
    except AssertionError as error:
        pytest.fail(f"{command}: {error}")
    check_settings(arguments)


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [c.words[1] for c in COMMANDS if c.words[0] == "make"]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_data: SyntheticData) -> Path:
    """A folder with the data, images and checkpoints that the documents name."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("configs", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(tiny_data.folder, folder / "DATA")
    for made, write in (("YOLO", yolo_yaml), ("VOC2012", voc_lists)):
        (folder / made).mkdir()
        write(folder / made)
    (folder / "images").mkdir()
    for image in sorted((folder / "DATA/images").glob("val_*.jpg")):
        shutil.copy(image, folder / "images")
    shutil.copy(min((folder / "images").iterdir()), folder / "image.jpg")
    shutil.copy(folder / "DATA/val.json", folder / "annotations.json")
    (folder / "data").symlink_to(folder / "DATA")  # named in the checkpoint
    (folder / "output/demo").mkdir(parents=True)
    for place in ("best.pth", "output/demo/best.pth"):
        shutil.copy(TRAINED, folder / place)
    return folder


@contextmanager
def chdir(folder: Path) -> Iterator[None]:
    """Work in a folder (`contextlib.chdir` needs Python 3.11)."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_documented(command: str, folder: Path) -> Ended:
    """Run a documented command in a folder, with the arguments of `RUN` added."""
    words = our_part(tuple(shlex.split(command)))
    assert words is not None
    program, *arguments = [*words, *RUN[command]]
    with chdir(folder):
        if program == "dfine":
            ended = call_here(dfine.main, program, *arguments)
        else:
            ended = run_here(program, *arguments)
    assert ended.code in (None, 0), ended.err
    return ended


@pytest.fixture(scope="module")
def run_folder(folder: Path) -> Path:
    """The folder `runs/train` that the documented training writes."""
    run_documented(TRAINING, folder)
    shutil.copy(folder / "runs/train/last.pth", folder)
    return folder / "runs/train"


def test_the_documented_training_writes_what_the_documents_promise(run_folder):
    written = {path.name for path in run_folder.iterdir()}
    assert written >= {
        "best.pth",
        "last.pth",
        "log.txt",
        "results.csv",
        "curves.png",
        "report.html",
        "config.yml",
        "run_status.json",
        "pictures",
    }


@pytest.mark.parametrize("command", [name for name in RUN if name != TRAINING])
def test_a_documented_command_runs(command, folder, run_folder):
    shutil.rmtree(folder / "COCO", ignore_errors=True)
    run_documented(command, folder)


def test_every_command_that_is_run_is_documented():
    documented = {words for words, _ in OUR_COMMANDS}
    for command in RUN:
        assert our_part(tuple(shlex.split(command))) in documented, command


@pytest.mark.parametrize("page", ["README.md", "docs/start.md"])
def test_documented_python_runs(page, folder, run_folder, monkeypatch, capsys):
    import_under_both_names()
    monkeypatch.chdir(folder)
    blocks = re.findall(
        r"^```python\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL
    )
    assert blocks
    for code in blocks:
        exec(compile(code, page, "exec"), {})  # noqa: S102


def test_faults_of_documents_are_found():
    page = (
        "<!-- not run: GPU -->\n```bash\ntorchrun --nproc_per_node=2 train.py -c a.yml\n```\n\n"
        "```bash\nA=1 python train.py \\\n    -c b.yml && pip list  # why; not\n```\n`dfine val runs/x`\n"
    )
    first, second = blocks_of("a.md", page)
    assert (first.reason, first.line) == ("GPU", 3)
    assert second.reason is None
    commands = [*commands_of_block(first), *commands_of_block(second)]
    assert [our_part(command.words) for command in commands] == [
        ("train.py", "-c", "a.yml"),
        ("train.py", "-c", "b.yml"),
        None,
    ]
    assert [command.words[0] for command in commands_in_text("a.md", page)] == [
        "dfine"
    ]
    assert missing_files(("-c", "configs/none.yml", "a=docs/none/")) == [
        "configs/none.yml",
        "docs/none/",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("dfine", "trian"),
        ("dfine", "val", "--no-such-flag"),
        ("train.py", "-c", "a.yml", "--no-such-flag"),
        ("tools/dataset/check.py", "--annotation", "a.json"),
    ],
)
def test_a_command_with_a_wrong_argument_is_noticed(words):
    with pytest.raises(AssertionError):
        parse(words)


def test_a_setting_that_does_not_exist_is_noticed():
    config = "configs/dfine/dfine_dinov3_s_coco.yml"
    for words in (
        ("train.py", "-c", config, "-u", "no_such_setting=1"),
        ("dfine", "train", "--data", "DATA", "-u", "no_such_setting=1"),
    ):
        with pytest.raises(ConfigError, match="no_such_setting"):
            check_settings(parse(words))
