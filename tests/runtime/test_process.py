"""Exit codes and last lines of commands."""

import json
import subprocess
import sys

import pytest
import torch

from src.core import errors
from src.runtime.process import STATUS_FILE, explain, run_command
from tests.fixtures.processes import run_forked
from tests.fixtures.tiny import ROOT

KINDS = [
    (errors.ConfigError, 2),
    (errors.DataError, 3),
    (errors.CheckpointError, 4),
    (errors.NumericsError, 5),
    (errors.ResourceError, 6),
    (errors.RankError, 7),
    (errors.ExportError, 8),
    (errors.Preempted, 75),
]


def failing(error: BaseException):
    def command():
        raise error

    return command


def test_command_that_succeeds_ends_with_0_and_says_nothing(tmp_path):
    assert run_forked(lambda: run_command(lambda: None), tmp_path) == (
        0,
        "",
        "",
    )


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_expected_error_ends_with_its_code_and_one_line(tmp_path, kind, code):
    ended = run_forked(
        lambda: run_command(failing(kind("labels.json: no images; add some"))),
        tmp_path,
    )
    assert ended == (
        code,
        "",
        f"error[{code}]: labels.json: no images; add some\n",
    )


def test_bug_ends_with_1_and_asks_for_a_report(tmp_path):
    ended = run_forked(lambda: run_command(failing(KeyError("x"))), tmp_path)
    assert ended == (
        1,
        "",
        "error[1]: unexpected KeyError: 'x'; this is a bug: run again with --debug and report the output\n",
    )


def test_interrupt_ends_with_130(tmp_path):
    assert run_forked(
        lambda: run_command(failing(KeyboardInterrupt())), tmp_path
    ) == (
        130,
        "",
        "error[130]: stopped by Ctrl-C\n",
    )


def test_lack_of_memory_ends_with_6_and_advice(tmp_path):
    ended = run_forked(lambda: run_command(failing(MemoryError())), tmp_path)
    assert ended == (
        6,
        "",
        "error[6]: out of memory: allocation failed; reduce total_batch_size or num_workers\n",
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_lack_of_memory_in_torch_ends_with_6_and_what_takes_less(
    tmp_path, error
):
    ended = run_forked(lambda: run_command(failing(error)), tmp_path)
    assert ended.code == 6
    assert all(
        name in ended.err
        for name in (
            "total_batch_size",
            "grad_accum_steps",
            "gradient_checkpointing",
        )
    )


def test_no_traceback_without_debug(tmp_path):
    assert (
        "Traceback"
        not in run_forked(
            lambda: run_command(failing(ValueError("x"))), tmp_path
        ).err
    )


def test_debug_shows_the_traceback_before_the_line(tmp_path):
    lines = run_forked(
        lambda: run_command(failing(errors.DataError("x")), debug=True),
        tmp_path,
    ).err.splitlines()
    assert (lines[0], lines[-1]) == (
        "Traceback (most recent call last):",
        "error[3]: x",
    )


def test_message_stays_on_one_line_and_its_control_characters_are_visible(
    tmp_path,
):
    ended = run_forked(
        lambda: run_command(failing(errors.DataError("image \x1b[2J\nname"))),
        tmp_path,
    )
    assert ended.err == "error[3]: image \\x1b[2J\\nname\n"


def status_after(tmp_path, command) -> dict:
    (tmp_path / "run").mkdir()
    run_forked(
        lambda: run_command(command, status_dir=lambda: tmp_path / "run"),
        tmp_path,
    )
    return json.loads((tmp_path / "run" / STATUS_FILE).read_text())


def test_status_of_a_success_is_written(tmp_path):
    assert status_after(tmp_path, lambda: None) == {
        "status": "done",
        "exit_code": 0,
        "message": "done",
    }


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_status_of_an_error_is_written(tmp_path, kind, code):
    assert status_after(tmp_path, failing(kind("what happened"))) == {
        "status": "preempted" if code == 75 else "failed",
        "exit_code": code,
        "message": "what happened",
    }


def test_status_holds_a_name_that_is_not_valid_text(tmp_path):
    assert status_after(
        tmp_path, failing(errors.DataError("image \udcff.png"))
    ) == {
        "status": "failed",
        "exit_code": 3,
        "message": "image \\udcff.png",
    }


def test_status_folder_is_asked_for_at_the_end(tmp_path):
    folder = None

    def command():
        nonlocal folder
        folder = tmp_path

    run_forked(
        lambda: run_command(command, status_dir=lambda: folder), tmp_path
    )
    assert (tmp_path / STATUS_FILE).exists()


def test_status_is_left_out_where_there_is_no_folder(tmp_path):
    ended = run_forked(
        lambda: run_command(
            failing(errors.ConfigError("x")),
            status_dir=lambda: tmp_path / "absent",
        ),
        tmp_path,
    )
    assert (ended.code, (tmp_path / "absent").exists()) == (2, False)


def test_exit_code_reaches_the_shell(tmp_path):
    code = (
        "import pathlib, sys\nfrom src.core.errors import CheckpointError\n"
        "from src.runtime.process import run_command\ndef command():\n"
        "    raise CheckpointError('best.pth is empty (0 bytes)')\n"
        "run_command(command, status_dir=lambda: pathlib.Path(sys.argv[1]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (
        4,
        "error[4]: best.pth is empty (0 bytes)\n",
    )
    assert json.loads((tmp_path / STATUS_FILE).read_text())["exit_code"] == 4


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SystemExit(5), (5, "5")),
        (SystemExit("usage"), (1, "usage")),
        (errors.RunError("x"), (1, "x")),
        (
            OSError(28, "No space left on device", "log.txt"),
            (
                6,
                (
                    "disk full writing log.txt: No space left on device; "
                    "free some space, then start the command again (a training run with -r auto)"
                ),
            ),
        ),
        (
            OSError(28, "No space left on device", "from.txt", None, "to.txt"),
            (
                6,
                (
                    "disk full writing to.txt: No space left on device; "
                    "free some space, then start the command again (a training run with -r auto)"
                ),
            ),
        ),
    ],
)
def test_other_ways_to_end_are_explained(error, expected):
    assert explain(error) == expected


def test_an_error_of_torchs_compiler_says_how_to_do_without_it():
    def fail(graph, example_inputs):
        raise AssertionError

    double = torch.compile(lambda x: x * 2, backend=fail)
    with pytest.raises(RuntimeError) as raised:
        double(torch.ones(2))
    code, text = explain(raised.value)
    assert code == 2
    assert text.startswith("torch.compile failed with torch 2.")
    assert "AssertionError; leave it out (train: -u compile=~," in text
