"""Resuming a run: changed settings and the command to resume."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from src.core.errors import CheckpointError
from src.solver import resume
from src.solver.resume import check_same_run, resume_hint

LAST = Path("out put/last.pth")


@pytest.fixture(autouse=True)
def python_is_on_the_path(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/usr/bin/python")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("-c a.yml", "-c a.yml -r auto"),
        ("-c a.yml -r old/last.pth --seed 3", "-c a.yml --seed 3 -r auto"),
        ("-c a.yml --resume old/last.pth", "-c a.yml -r auto"),
        (
            "-c a.yml --resume=old.pth -t start.pth",
            "-c a.yml -t start.pth -r auto",
        ),
        (
            "-c a.yml -u epochs=3 optimizer.lr=1",
            "-c a.yml -r auto -u epochs=3 optimizer.lr=1",
        ),
        ("-r auto -c a.yml", "-c a.yml -r auto"),
    ],
)
def test_the_command_that_started_a_run_resumes_it(monkeypatch, given, hint):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (
        resume_hint(LAST, ["train.py", *given.split()])
        == f"resume with: python train.py {hint}"
    )


def test_what_a_shell_would_take_apart_is_quoted(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    arguments = ["train.py", "-c", "my file.yml", "-u", "a={type: B}"]
    assert (
        resume_hint(LAST, arguments)
        == "resume with: python train.py -c 'my file.yml' -r auto -u 'a={type: B}'"
    )


def test_under_torchrun_its_own_arguments_stay(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert resume_hint(LAST, ["train.py", "-c", "a.yml"]) == (
        "resume with the same torchrun command and: train.py -c a.yml -r auto"
    )


def test_dfine_resumes_the_folder_of_the_run(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(os.path, "samefile", lambda *_: True)
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    arguments = ["/usr/bin/dfine", "train", "--data", "my data"]
    assert resume_hint(LAST, arguments) == "resume with: dfine resume 'out put'"


def test_python_m_is_dfine_too(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    package = Path(resume.__file__).parents[1]
    assert (
        resume_hint(LAST, [str(package / "__main__.py"), "demo"])
        == "resume with: dfine resume 'out put'"
    )


def test_several_processes_of_dfine_are_started_again(monkeypatch):
    monkeypatch.setenv("DFINE_GPUS", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert (
        resume_hint(LAST, ["train.py", "-c", "a.yml"])
        == "resume with: dfine resume 'out put' --gpus 2"
    )


def test_another_interpreter_is_named(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    assert (
        resume_hint(LAST, ["train.py", "-c", "a.yml"])
        == "resume with: '/my env/bin/python' train.py -c a.yml -r auto"
    )


def test_the_hint_for_another_program_names_the_file():
    assert (
        resume_hint(LAST, ["notebook.py", "-x"])
        == "resume with -r 'out put/last.pth'"
    )


def test_a_resumed_run_may_use_another_image_cache():
    saved = "train_dataloader: {dataset: {image_cache: memory}}"
    folder = {"image_cache": "cache", "image_cache_gb": 2.0}
    check_same_run(
        saved, {"train_dataloader": {"dataset": folder}}, override=False
    )


@pytest.mark.parametrize("saved", ["[1, 2]", "3", "", "a: [1", "a: 1\na: 2"])
def test_a_damaged_configuration_in_a_checkpoint_is_refused(saved):
    with pytest.raises(
        CheckpointError,
        match="^the configuration in the checkpoint.*another copy",
    ):
        check_same_run(saved, {"epochs": 3}, override=False)
