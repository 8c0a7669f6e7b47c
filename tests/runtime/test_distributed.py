"""Ranks: one process, and several that have joined."""

import ctypes
import json
import multiprocessing
import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.errors import ConfigError, RankError
from src.runtime import distributed, process
from src.runtime.distributed import (
    barrier,
    bits_over_ranks,
    broadcast_object,
    broadcast_tensors,
    everywhere,
    gather_objects,
    gather_on_main,
    is_distributed,
    is_main,
    join_group,
    leave_group,
    main_first,
    mean_over_ranks,
    pick_device,
    rank,
    sum_over_ranks,
    world_size,
)
from src.runtime.process import run_command
from tests.fixtures.ports import free_port
from tests.fixtures.processes import on_ranks, run_forked

CPU = torch.device("cpu")


# ---- one process ----


def test_single_process_is_the_main_rank_of_one():
    assert (is_distributed(), rank(), world_size(), is_main()) == (
        False,
        0,
        1,
        True,
    )


@pytest.mark.parametrize("function", [sum_over_ranks, mean_over_ranks])
def test_sums_of_a_single_process_are_its_own_values(function):
    assert function(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


def test_conditions_of_a_single_process_hold_where_they_hold():
    assert everywhere(torch.tensor([True, False])) == [True, False]


def test_objects_of_a_single_process_are_gathered_alone():
    assert (gather_objects({"a": 1}), broadcast_object("x")) == (
        [{"a": 1}],
        "x",
    )


def test_tensors_of_a_single_process_stay():
    tensor = torch.ones(2)
    broadcast_tensors([tensor])
    assert tensor.tolist() == [1, 1]


def test_body_runs_at_once_in_a_single_process():
    with main_first():
        ran = True
    assert ran


def test_leaving_without_a_group_does_nothing():
    leave_group()
    barrier()
    assert not is_distributed()


# ---- devices ----


@pytest.fixture
def two_gpus(monkeypatch):
    """Pretend that this machine has two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.fixture(autouse=True)
def device_is_restored(monkeypatch):
    monkeypatch.setattr(distributed, "_device", None)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
class TestWithoutGpu:
    @pytest.mark.parametrize("name", [None, "cpu"])
    def test_device_is_the_cpu(self, name):
        assert pick_device(name) == CPU

    def test_missing_requested_gpu_is_reported(self):
        with pytest.raises(
            ConfigError,
            match=r"^device 'cuda' was requested, but torch .* finds no CUDA device here; use -d cpu$",
        ):
            pick_device("cuda")

    def test_name_that_is_not_a_device_is_refused(self):
        with pytest.raises(
            ConfigError,
            match="^device 'gpu' is not a device; use cpu, cuda or cuda:N$",
        ):
            pick_device("gpu")

    @pytest.mark.parametrize("name", ["mps", "meta", "xpu:1"])
    def test_device_that_is_not_supported_is_refused(self, name):
        with pytest.raises(
            ConfigError,
            match=f"^device '{name}' is not supported; use cpu, cuda or cuda:N$",
        ):
            pick_device(name)


class TestWithTwoGpus:
    @pytest.mark.parametrize("name", [None, "cuda"])
    def test_each_process_takes_the_gpu_of_its_local_rank(
        self, two_gpus, monkeypatch, name
    ):
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert pick_device(name) == torch.device("cuda", 1)
        assert two_gpus == [torch.device("cuda", 1)]

    def test_named_gpu_is_taken(self, two_gpus):
        assert pick_device("cuda:1") == torch.device("cuda", 1)

    def test_one_named_gpu_for_several_processes_is_refused(
        self, two_gpus, monkeypatch
    ):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(
            ConfigError,
            match="^device cuda:0 was requested by 2 processes of this machine, .*use -d cuda, which",
        ):
            pick_device("cuda:0")

    def test_a_process_that_sees_one_gpu_uses_it(self, two_gpus, monkeypatch):
        """Slurm's --gpus-per-task=1 shows each process its own GPU."""
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setenv("LOCAL_RANK", "3")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert pick_device(None) == torch.device("cuda", 0)

    def test_processes_of_torchrun_that_see_the_same_gpu_are_refused(
        self, two_gpus, monkeypatch
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setenv("LOCAL_RANK", "3")
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
        with pytest.raises(ConfigError, match="^device cuda:3 was requested"):
            pick_device(None)

    def test_memory_is_pinned_only_for_a_gpu(self, two_gpus):
        pick_device("cpu")
        assert not distributed.uses_cuda()
        pick_device("cuda:1")
        assert distributed.uses_cuda()

    def test_cpu_can_be_requested(self, two_gpus):
        assert (pick_device("cpu"), two_gpus) == (CPU, [])

    def test_gpu_that_is_not_there_is_missed(self, two_gpus):
        with pytest.raises(
            ConfigError,
            match="^device cuda:2 was requested, but there are 2 CUDA devices; "
            "start fewer processes per machine$",
        ):
            pick_device("cuda:2")

    def test_more_processes_than_gpus_are_refused(self, two_gpus, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "5")
        with pytest.raises(
            ConfigError, match="^device cuda:5 was requested, but there are 2"
        ):
            pick_device(None)


# ---- joining ----


@pytest.fixture
def launched(monkeypatch):
    """Set what a launcher sets, for rank 0 of 2."""

    def launch(**changes: str) -> None:
        for name, value in {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            **changes,
        }.items():
            monkeypatch.setenv(name, value)

    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return launch


@pytest.mark.parametrize("count", [None, "1"])
def test_single_process_joins_nobody(monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", count) if count else monkeypatch.delenv(
        "WORLD_SIZE", raising=False
    )
    join_group(CPU)
    assert not is_distributed()


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (["MASTER_ADDR"], "MASTER_ADDR"),
        (["RANK"], "RANK"),
        (
            ["RANK", "MASTER_ADDR", "MASTER_PORT"],
            "RANK, MASTER_ADDR, MASTER_PORT",
        ),
    ],
)
def test_rank_without_an_address_never_continues_alone(
    launched, monkeypatch, missing, text
):
    launched()
    for name in missing:
        monkeypatch.delenv(name)
    with pytest.raises(
        RankError,
        match=f"^WORLD_SIZE is 2 but {text} is not set; start several ranks with torchrun$",
    ):
        join_group(CPU)


def test_port_in_use_is_reported(launched):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        launched(MASTER_PORT=str(port))
        with pytest.raises(
            RankError,
            match=rf"^rank 0 of 2 cannot connect to the other ranks at 127\.0\.0\.1:{port}: .*EADDRINUSE",
        ):
            join_group(CPU, timedelta(seconds=5))
    assert not is_distributed()


def test_rank_without_a_main_rank_ends_after_the_timeout(launched):
    launched(RANK="1")
    with pytest.raises(
        RankError,
        match=r"^rank 1 of 2 cannot connect to the other ranks at 127\.0\.0\.1:\d+: ",
    ):
        join_group(CPU, timedelta(seconds=1))
    assert not is_distributed()


def test_main_rank_without_other_ranks_ends_after_the_timeout(launched):
    launched()
    with pytest.raises(
        RankError,
        match=r"^rank 0 of 2 cannot connect to the other ranks at 127\.0\.0\.1:\d+: ",
    ):
        join_group(CPU, timedelta(seconds=1))
    assert not is_distributed()


def test_ranks_that_torchrun_restarted_meet_under_a_prefix_of_their_own_in_its_store(
    launched, monkeypatch, caplog
):
    prefixes = []

    def remember(prefix, store):
        prefixes.append(prefix)
        raise RuntimeError("far enough")

    launched(
        TORCHELASTIC_RESTART_COUNT="3",
        TORCHELASTIC_USE_AGENT_STORE="True",
        GROUP_WORLD_SIZE="2",
        TORCHELASTIC_MAX_RESTARTS="3",
    )
    monkeypatch.setattr(distributed.dist, "TCPStore", lambda *_, **__: None)
    monkeypatch.setattr(distributed.dist, "PrefixStore", remember)
    with pytest.raises(RankError, match="far enough"):
        join_group(CPU)
    assert prefixes == ["attempt3"]
    assert "start them with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in caplog.text


# ---- two processes ----


def two(function):
    return on_ranks(2, function)


def test_ranks_know_their_numbers():
    assert two(lambda: (rank(), world_size(), is_main(), is_distributed())) == [
        (0, 2, True, True),
        (1, 2, False, True),
    ]


def test_objects_are_gathered_in_rank_order_on_every_rank():
    assert (
        two(
            lambda: gather_objects(
                {"rank": rank(), "data": [rank()] * (1 + 1000 * rank())}
            )
        )
        == [[{"rank": 0, "data": [0]}, {"rank": 1, "data": [1] * 1001}]] * 2
    )


def test_value_of_rank_0_reaches_every_rank():
    assert (
        two(lambda: broadcast_object({"AP": 0.5} if is_main() else None))
        == [{"AP": 0.5}] * 2
    )


def test_tensors_are_overwritten_by_those_of_rank_0():
    def work():
        tensors = [
            torch.full((3,), float(rank() + 1)),
            torch.tensor([rank() + 5]),
        ]
        broadcast_tensors(tensors)
        return [t.tolist() for t in tensors]

    assert two(work) == [[[1.0, 1.0, 1.0], [5]]] * 2


@pytest.mark.parametrize(
    ("function", "expected"),
    [(sum_over_ranks, [3.0, 7.0]), (mean_over_ranks, [1.5, 3.5])],
)
def test_values_are_joined_over_ranks_and_the_argument_is_left(
    function, expected
):
    def work():
        own = torch.tensor([1.0, 3.0]) + rank()
        joined = function(own)
        return joined.tolist(), own.tolist()

    assert two(work) == [(expected, [1.0, 3.0]), (expected, [2.0, 4.0])]


def test_condition_holds_everywhere_only_if_it_holds_on_every_rank():
    assert (
        two(
            lambda: everywhere(
                torch.tensor(
                    [[True, True, False, False], [True, False, True, False]][
                        rank()
                    ]
                )
            )
        )
        == [[True, False, False, False]] * 2
    )


def test_main_rank_runs_first(tmp_path):
    def work():
        with main_first():
            if is_main():
                time.sleep(0.3)
                (tmp_path / "file").write_text("fetched")
            return (tmp_path / "file").read_text()

    assert two(work) == ["fetched", "fetched"]


def test_other_ranks_are_not_left_waiting_when_the_first_fails():
    def work():
        try:
            with main_first():
                if is_main():
                    raise ValueError("no network")
        except ValueError:
            return "failed"
        return "went on"

    assert two(work) == ["failed", "went on"]


def test_barrier_waits_for_the_slowest(tmp_path):
    def work():
        if rank() == 1:
            time.sleep(0.3)
            (tmp_path / "arrived").touch()
        barrier()
        return (tmp_path / "arrived").exists()

    assert two(work) == [True, True]


def test_group_can_be_left():
    def work():
        leave_group()
        return is_distributed(), world_size()

    assert two(work) == [(False, 1)] * 2


def test_four_ranks_gather_too():
    assert on_ranks(4, lambda: gather_objects(rank())) == [[0, 1, 2, 3]] * 4


def test_failing_rank_names_itself_and_ends_without_waiting_for_the_others(
    tmp_path,
):
    port = free_port()

    def work(number: int) -> None:
        os.environ.update(
            RANK=str(number),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )

        def command():
            join_group(CPU)
            if number == 0:
                signal.pause()
            raise ConfigError("seed is 3, rank 0 has 4")

        run_command(command)

    waiting = multiprocessing.get_context("fork").Process(
        target=work, args=(0,)
    )
    waiting.start()
    try:
        ended = run_forked(lambda: work(1), tmp_path)
    finally:
        waiting.kill()
    assert ended == (2, "", "error[2]: seed is 3, rank 0 has 4 (rank 1)\n")


def test_rank_that_waits_in_c_ends_with_the_error_of_the_other(
    tmp_path, monkeypatch
):
    """It runs no Python code, like a rank that waits for NCCL; without the thread it would wait forever."""
    monkeypatch.setattr(process, "PEER_POLL_SECONDS", 0.05)
    monkeypatch.setattr(process, "PEER_GRACE_SECONDS", 0.1)
    port = free_port()

    def work(number: int) -> None:
        os.environ.update(
            RANK=str(number),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )

        def command():
            process.report_running(tmp_path)
            join_group(CPU)
            if number:
                raise ConfigError("seed is 3, rank 0 has 4")
            process.end_with_peers(tmp_path)
            ctypes.CDLL(None).pause()

        run_command(command)

    failing = multiprocessing.get_context("fork").Process(
        target=work, args=(1,)
    )
    failing.start()
    ended = run_forked(lambda: work(0), tmp_path)
    failing.join()
    message = (
        "another rank ended first: error[2]: seed is 3, rank 0 has 4 (rank 1)"
    )
    assert ended == (7, "", f"error[7]: {message} (rank 0)\n")
    assert json.loads((tmp_path / "run_status.json").read_text()) == {
        "status": "failed",
        "exit_code": 2,
        "message": message,
    }


def test_bits_of_all_ranks_are_joined():
    def work():
        own = torch.tensor([[1, 0, 4], [2, 0, 4]][rank()], dtype=torch.uint8)
        return bits_over_ranks(own).tolist(), own.tolist()

    assert two(work) == [([3, 0, 4], [1, 0, 4]), ([3, 0, 4], [2, 0, 4])]


def test_bits_of_a_single_process_are_its_own():
    assert bits_over_ranks(torch.tensor([1, 2])).tolist() == [1, 2]


def test_answers_of_the_other_ranks_do_not_depend_on_a_stopped_rank_0():
    """The answer comes although rank 0 does not answer; without it this test would be stuck."""

    def explain() -> str:
        pids = gather_objects(os.getpid())
        if rank() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            return ""
        while (
            Path(f"/proc/{pids[0]}/stat")
            .read_text()
            .rpartition(")")[2]
            .split()[0]
            != "T"
        ):
            time.sleep(0.02)
        try:
            return str(
                distributed.explain_lost_rank(
                    RuntimeError(
                        "Timed out waiting 5000ms for recv operation to complete"
                    )
                )
            )
        finally:
            os.kill(pids[0], signal.SIGCONT)

    assert on_ranks(2, explain)[1] == (
        "another rank ended or does not respond, probably rank 0, which hosts the store; "
        "see its output for the reason; "
        "torch reports: Timed out waiting 5000ms for recv operation to complete"
    )


def test_values_of_all_ranks_are_gathered_on_rank_0():
    assert gather_on_main("x") == ["x"]
    gathered = on_ranks(3, lambda: gather_on_main(np.arange(rank() * 2)))
    assert [values.tolist() for values in gathered[0]] == [
        [],
        [0, 1],
        [0, 1, 2, 3],
    ]
    assert gathered[1:] == [None, None]
