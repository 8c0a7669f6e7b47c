"""The order of the checks of a machine, and the start of the ranks."""

from pathlib import Path

import pytest
import torch

from src.core.errors import RankError
from src.runtime.checks import Check
from src.runtime.distributed import rank
from src.solver import doctor
from src.solver.configuration_trial import Trial
from src.solver.doctor import check_start, checks_of_all_ranks
from tests.fixtures.processes import on_ranks


def trial_on(device):
    return Trial(Path("none.yml"), {}, torch.device(device), None, 2)


def test_ranks_with_and_without_a_gpu_are_not_connected(monkeypatch):
    monkeypatch.setattr(doctor, "join_group", lambda *arguments: None)
    monkeypatch.setattr(doctor, "end_with_peers", lambda folder: None)

    def start():
        found = check_start(trial_on("cuda:0" if rank() == 0 else "cpu"))
        return found.status, found.code, found.text

    status, code, text = on_ranks(2, start)[0]
    assert (status, code) == ("failed", 7)
    assert "but no GPU for rank 1" in text


def test_a_group_that_does_not_connect_is_left(monkeypatch):
    def fail(*arguments):
        raise RankError("cannot connect")

    left = []
    monkeypatch.setattr(doctor, "join_group", fail)
    monkeypatch.setattr(doctor, "leave_group", lambda: left.append(True))
    with pytest.raises(RankError):
        check_start(trial_on("cpu"))
    assert left


def test_without_a_connection_nothing_waits_for_other_ranks():
    local = [
        Check("", name="loader"),
        Check("out of memory", status="failed", code=6, name="memory"),
    ]
    checks = checks_of_all_ranks(
        trial_on("cpu"), local, chosen=True, connected=False, quick=False
    )
    assert [(check.name, check.status) for check in checks] == [
        ("ranks", "skipped"),
        ("speed", "skipped"),
        ("this run", "skipped"),
    ]


def test_speed_is_not_measured_if_not_even_one_image_fits():
    local = [
        Check("", name="loader"),
        Check("out of memory", status="failed", code=6, name="memory"),
    ]
    _, speed, _ = checks_of_all_ranks(
        trial_on("cpu"), local, chosen=True, connected=True, quick=False
    )
    assert speed.text == "the step does not run, see memory"
