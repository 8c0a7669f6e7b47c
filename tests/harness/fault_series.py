"""Inject one kind of fault into many small runs, and count the runs that behave as documented.

    python tests/harness/fault_series.py                                # all, about 20 minutes on one core
    python tests/harness/fault_series.py signals --repeat 5 --seed 1    # one series, another random seed

resume    killed at six places of a run and resumed, on 1 and 2 ranks: all losses and the final state are
          bit-identical to those of an uninterrupted run
workers   0, 1, 2 and 4 loader workers: the same
signals   SIGTERM, SIGUSR1 and SIGINT at random times, on 1 and 2 ranks: saved and ended within ten seconds
          with exit code 75, all ranks at the same step
restarts  torchrun --max-restarts whose ranks are killed one after another: losses and final state are those
          of an uninterrupted run
ranks     one of two ranks raises an error or hangs at a random step: the other ends in time and reports why
numbers   NaN and infinity in images, losses and gradients at random steps: the step is skipped and leaves
          the state unchanged
disk      file sizes are limited at random: files that were saved stay intact, and the error reports the
          required and the free space

docs/reliability.md has the results. Ranks are forked from this process and run `train.py`, which saves the
time of an import; they connect as under torchrun, which only `restarts` uses. The exit code is 1 if any run
behaved otherwise.
"""

import argparse
import itertools
import json
import math
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.harness.soak import (
    ROOT,
    configuration,
    final_state,
    is_whole,
    note_losses,
    same,
)

STEPS, WARMUP, CLEAN_EPOCH = 6, 2, 3
"""Steps of an epoch, steps of the warm-up, the epoch without augmentation (counted from 0) of four."""
SHORT = (
    "epochs=4",
    f"lr_warmup_scheduler.warmup_duration={WARMUP}",
    f"train_dataloader.collate_fn.stop_epoch={CLEAN_EPOCH}",
    "train_dataloader.collate_fn.mixup_prob=0.5",
)
ENDLESS = ("epochs=2000", "train_dataloader.collate_fn.stop_epoch=null")
RANK_TIMEOUT = 5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "series",
        nargs="*",
        metavar="SERIES",
        help=f"{', '.join(SERIES)}; default: all",
    )
    parser.add_argument(
        "--repeat",
        type=int,
        help="number of runs; default: the series' own number",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    arguments = parser.parse_args()
    if unknown := set(arguments.series) - SERIES.keys():
        parser.error(f"unknown series: {', '.join(unknown)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    import logging

    import torch
    import torch.utils.tensorboard  # noqa: F401  children find it imported

    import src.solver  # noqa: F401
    from src.data.dataset.synthetic import write_synthetic_coco

    torch.set_num_threads(1)
    logging.getLogger("dfine").addHandler(logging.NullHandler())
    faults = 0
    for name in arguments.series or SERIES:
        with tempfile.TemporaryDirectory() as folder:
            write_synthetic_coco(
                Path(folder),
                train=4 * STEPS,
                val=8,
                size=64,
                seed=3,
                max_objects=3,
            )
            (Path(folder) / "tiny.yml").write_text(
                configuration(Path(folder), "unused").to_yaml()
            )
            function, count = SERIES[name]
            began = time.monotonic()
            for what, good, note in function(
                Path(folder),
                random.Random(f"{name} {arguments.seed}"),
                arguments.repeat or count,
            ):
                print(
                    f"{name}: {what}: {sum(good)} of {len(good)}{note and f'; {note}'}",
                    flush=True,
                )
                faults += good.count(False)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(1 if faults else 0)


# ---- runs ----


class Run:
    """A `train.py` in forks of this process, one for each rank; it resumes the run of its folder."""

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: tuple[str, ...] = (),
        *,
        ranks: int = 1,
        seed: int = 1,
        prepare: Callable[[int], None] = lambda rank: None,
    ) -> None:
        """Start the run; `prepare` injects faults into the process of a rank."""
        self.folder, self.loss_files = (
            folder / name,
            [folder / f"{name}.rank{rank}.losses" for rank in range(ranks)],
        )
        self.codes: dict[int, int] = {}
        self.pids, self._pipes = [], []
        if ranks > 1:
            self._store = _store()
            meeting = {
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
        for rank in range(ranks):
            reading, writing = os.pipe()
            if not (pid := os.fork()):
                os.dup2(writing, 1)
                os.dup2(writing, 2)
                # the parent's streams may have been opened for a file, which can seek; a pipe cannot
                sys.stdout = os.fdopen(1, "w", closefd=False)
                sys.stderr = os.fdopen(2, "w", closefd=False)
                if ranks > 1:
                    os.environ.update(
                        meeting, RANK=str(rank), LOCAL_RANK=str(rank)
                    )
                self._train(
                    folder / "tiny.yml",
                    settings,
                    seed,
                    self.loss_files[rank],
                    lambda rank=rank: prepare(rank),
                )
            os.close(writing)
            self.pids.append(pid)
            self._pipes.append(reading)

    def _train(
        self,
        config: Path,
        settings: tuple[str, ...],
        seed: int,
        losses: Path,
        prepare: Callable[[], None],
    ) -> None:
        """Run `train.py` in this process; does not return."""
        code = 1
        try:
            os.chdir(ROOT)
            sys.argv = [
                "train.py",
                "-c",
                str(config),
                "-r",
                "auto",
                "--seed",
                str(seed),
                "--output-dir",
                str(self.folder),
                "-u",
                "print_freq=1000",
                *settings,
            ]
            note_losses(open(losses, "ab", buffering=0))  # noqa: SIM115  open as long as the process
            prepare()
            runpy.run_path("train.py", run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:
            os.write(2, repr(error).encode())
        os._exit(code)

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Wait for all ranks; return their exit codes: -n for signal n, None if the rank was ended here."""
        end = time.monotonic() + seconds
        while len(self.codes) < len(self.pids) and time.monotonic() < end:
            for pid in set(self.pids) - self.codes.keys():
                if (found := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[pid] = os.waitstatus_to_exitcode(found[1])
            time.sleep(0.01)
        codes = [self.codes.get(pid) for pid in self.pids]
        for pid in set(self.pids) - self.codes.keys():
            os.kill(pid, signal.SIGKILL)
            self.codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.said = [self._read(pipe) for pipe in self._pipes]
        return codes

    @staticmethod
    def _read(pipe: int) -> str:
        os.set_blocking(
            pipe, False
        )  # a loader's worker may hold the other end for some seconds
        pieces = []
        try:
            while piece := os.read(pipe, 1 << 20):
                pieces.append(piece)
        except BlockingIOError:
            pass
        os.close(pipe)
        return b"".join(pieces).decode(errors="replace")

    def until_steps(self, count: int = 1) -> None:
        """Wait until each rank has taken this number of further steps."""
        sizes = [
            file.stat().st_size if file.exists() else 0
            for file in self.loss_files
        ]
        end = time.monotonic() + 60
        while not all(
            file.exists() and file.stat().st_size >= size + 16 * count
            for file, size in zip(self.loss_files, sizes)
        ):
            if time.monotonic() > end or os.waitid(
                os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT
            ):
                raise SystemExit(
                    f"a run has not begun: {self.wait(0)} {self.said}"
                )
            time.sleep(0.005)

    def losses(self) -> list[list[tuple[int, float]]]:
        """Return step and loss of all steps of all attempts, by rank."""
        return [
            list(struct.iter_unpack("<qd", file.read_bytes()))
            for file in self.loss_files
        ]

    def status(self) -> dict:
        return json.loads((self.folder / "run_status.json").read_text())


def _store():
    """Host the store through which ranks connect, as torchrun does."""
    import torch.distributed as dist

    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def equal(run: Run, straight: Run) -> bool:
    """Return whether losses, log records and final state of a run equal those of an uninterrupted one."""
    for ours, theirs in zip(run.losses(), straight.losses()):
        theirs = dict(theirs)
        if dict(ours).keys() != theirs.keys() or any(
            theirs[step] != loss for step, loss in ours
        ):
            return False
    return records(run.folder) == records(straight.folder) and same(
        final_state(run.folder), final_state(straight.folder)
    )


def records(folder: Path) -> list[dict]:
    """Return the records of `log.txt` without times."""
    lines = [
        json.loads(line)
        for line in (folder / "log.txt").read_text().splitlines()
    ]
    return [
        {
            key: line[key]
            for key in (
                "epoch",
                "train_loss",
                "train_lr",
                "AP",
                "AP50",
                "best_score",
                "stage",
            )
        }
        for line in lines
    ]


def straight_run(
    folder: Path, name: str, settings: tuple[str, ...] = SHORT, **options
) -> Run:
    """Return an uninterrupted run."""
    run = Run(folder, name, settings, **options)
    if any(run.wait(600)):
        sys.exit(f"an uninterrupted run failed: {run.said}")
    return run


def after(owner: type, name: str, fault: Callable[..., None]) -> None:
    """Call a fault after each call of a method, with the same arguments, in this process."""
    ordinary = getattr(owner, name)

    def call(*arguments, **keywords):
        result = ordinary(*arguments, **keywords)
        fault(*arguments)
        return result

    setattr(owner, name, call)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


Figures = Iterator[tuple[str, list[bool], str]]
"""What was counted, how each case went, and a note."""


# ---- resuming ----


def resume(folder: Path, rng: random.Random, repeat: int) -> Figures:
    """Rank 0 kills itself; another rank notices, as it would without a launcher."""
    from src.solver.checkpoint import CheckpointFolder
    from src.solver.saving import Saver
    from src.solver.training_step import TrainStep

    def kill(
        rank: int, owner: type, name: str, when: Callable[..., bool]
    ) -> None:
        if rank == 0:
            after(
                owner,
                name,
                lambda *arguments: (
                    when(*arguments) and os.kill(os.getpid(), signal.SIGKILL)
                ),
            )

    def after_step(number: int) -> tuple:
        return TrainStep, "__call__", lambda self, step, *_: step + 1 == number

    for ranks, number in itertools.product((1, 2), range(repeat)):
        seed = rng.randrange(1000)
        straight = straight_run(
            folder, f"straight{ranks}.{number}", ranks=ranks, seed=seed
        )
        places = {
            "epoch end": (
                Saver,
                "keep",
                lambda saver, *_: saver.state.progress.epoch == 2,
            ),
            "mid epoch": after_step(STEPS + rng.randint(1, STEPS - 1)),
            "last batch": after_step(2 * STEPS),
            "after warm-up": after_step(WARMUP + 1),
            "clean stage": after_step(CLEAN_EPOCH * STEPS + 1),
            "after best": (CheckpointFolder, "save_best", lambda *_: True),
        }
        good = []
        for place, (owner, name, when) in places.items():
            label = f"{place.replace(' ', '-')}{ranks}.{number}"
            codes = Run(
                folder,
                label,
                SHORT,
                ranks=ranks,
                seed=seed,
                prepare=lambda rank, o=owner, n=name, w=when: kill(
                    rank, o, n, w
                ),
            ).wait()
            gone_on = Run(folder, label, SHORT, ranks=ranks, seed=seed)
            good.append(
                codes[0] == -signal.SIGKILL
                and not any(gone_on.wait())
                and equal(gone_on, straight)
            )
            if not good[-1]:
                sys.stderr.write(
                    f"{label} with seed {seed}: {codes} {gone_on.said}\n"
                )
        yield f"{', '.join(places)}; {ranks} rank(s), seed {seed}", good, ""


def workers(folder: Path, rng: random.Random, repeat: int) -> Figures:
    """Losses and final state must be those of the run without workers."""
    counts, good = (1, 2, 4), []
    for number in range(repeat):
        seed = rng.randrange(1000)
        straight = straight_run(folder, f"straight{number}", seed=seed)
        good += [
            equal(
                straight_run(
                    folder,
                    f"{count}.{number}",
                    (*SHORT, f"train_dataloader.num_workers={count}"),
                    seed=seed,
                ),
                straight,
            )
            for count in counts
        ]
    yield (
        f"{', '.join(map(str, counts))} workers against none, {repeat} seeds",
        good,
        "",
    )


# ---- stopping ----


def signals(folder: Path, rng: random.Random, repeat: int) -> Figures:
    """All ranks get the signal, as from a launcher, and the run is resumed after each."""
    for ranks, name in itertools.product(
        (1, 2), ("SIGTERM", "SIGUSR1", "SIGINT")
    ):
        good, seconds, evaluating = [], [], 0
        for _ in range(repeat):
            run = Run(folder, f"run{ranks}", ENDLESS, ranks=ranks)
            run.until_steps()
            time.sleep(rng.uniform(0, 1.5))
            sent = time.time()
            for pid in run.pids:
                os.kill(pid, signal.Signals[name])
            codes = run.wait(20)
            last, ended = run.folder / "last.pth", time.time()
            places = {
                place
                for said in run.said
                for place in re.findall(
                    r"after step (\d+ of \d+ in epoch \d+)", said
                )
            }
            evaluating += codes[-1] == 7  # rank 0 alone ends an evaluation
            good.append(
                codes[0] == 75
                and codes[-1] in (75, 7)
                and run.status()["exit_code"] == 75
                and len(places) == 1
                and is_whole(last)
                and sent <= last.stat().st_mtime <= sent + 10
                and ended < sent + 10
            )
            seconds.append(ended - sent)
            if not good[-1]:
                sys.stderr.write(
                    f"{name}, {ranks} ranks: {codes} {places} {run.said}\n"
                )
        note = (
            f"gone after {statistics.mean(seconds):.1f} s, at most {max(seconds):.1f} s"
            + (f"; {evaluating} in an evaluation" if ranks > 1 else "")
        )
        yield f"{name}, {ranks} rank(s)", good, note


def restarts(folder: Path, rng: random.Random, repeat: int) -> Figures:
    """One run, long enough for all kills; each kill follows the first step after the previous one."""
    settings = (
        f"epochs={4 * repeat}",
        "train_dataloader.collate_fn.stop_epoch=null",
        "save_every_steps=1",
    )
    straight = straight_run(folder, "straight", settings, ranks=2)
    run, text = folder / "run", folder / "output.txt"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={free_port()}",
        f"--max-restarts={repeat}",
        "train.py",
        "-c",
        folder / "tiny.yml",
        "-r",
        "auto",
        "--seed=1",
        "--output-dir",
        run,
        "-u",
        *settings,
        "print_freq=1",
    ]
    waits, at = [], 0
    with open(text, "wb") as output:
        launcher = subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        for number in range(repeat + 1):
            began, pattern = (
                time.monotonic(),
                r"epoch \d+ \["
                if number == 0
                else r"resuming from (?s:.*) epoch \d+ \[",
            )
            while not re.search(pattern, text.read_text()[at:]):
                if (
                    launcher.poll() is not None
                    or time.monotonic() > began + 120
                ):
                    sys.exit(f"no restart {number}: {text.read_text()[-3000:]}")
                time.sleep(0.02)
            if number:
                waits.append(time.monotonic() - began)
            if number < repeat:
                time.sleep(rng.uniform(0, 0.5))
                at = len(text.read_text())
                os.kill(rng.choice(ranks_of(launcher.pid)), signal.SIGKILL)
        code = launcher.wait(600)
    finally:
        for pid in (*ranks_of(launcher.pid), launcher.pid):
            os.kill(pid, signal.SIGKILL) if launcher.poll() is None else None
    yield (
        "ranks killed, the run went on",
        [True] * len(waits),
        f"next step after {statistics.mean(waits):.1f} s, at most {max(waits):.1f} s",
    )
    yield (
        "losses of all epochs and the end equal",
        [
            code == 0 and records(run) == records(straight.folder),
            same(final_state(run), final_state(straight.folder)),
        ],
        "",
    )


def ranks_of(launcher: int) -> list[int]:
    """Return the processes of a torchrun's ranks."""
    try:
        return [
            int(pid)
            for pid in Path(f"/proc/{launcher}/task/{launcher}/children")
            .read_text()
            .split()
        ]
    except FileNotFoundError:
        return []


def ranks(folder: Path, rng: random.Random, repeat: int) -> Figures:
    """One rank raises an error, or stops forever."""
    from src.core.errors import DataError
    from src.solver.training_step import TrainStep

    def fail(step: int) -> None:
        raise DataError(f"broken on purpose in step {step}")

    def stop(_: int) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    faults = {
        "error": (fail, 15, "broken on purpose in step"),
        "silence": (stop, RANK_TIMEOUT + 5, "does not respond"),
    }
    for kind, (fault, limit, expected) in faults.items():
        good, seconds = [], []
        for number in range(repeat):
            culprit, step = rng.randrange(2), rng.randrange(1, 2 * STEPS)

            def prepare(
                rank: int, culprit=culprit, step=step, fault=fault
            ) -> None:
                after(
                    TrainStep,
                    "__call__",
                    lambda self, now, *_: (
                        fault(now) if (rank, now) == (culprit, step) else None
                    ),
                )

            run = Run(
                folder,
                f"{kind}{number}",
                (*ENDLESS, f"rank_timeout={RANK_TIMEOUT}"),
                ranks=2,
                prepare=prepare,
            )
            run.until_steps(step + 1)
            began = time.monotonic()
            if kind == "silence":
                bystander = run.pids.pop(1 - culprit)
                hung, run.pids = run.pids, [bystander]
            codes = run.wait(60)
            seconds.append(time.monotonic() - began)
            if kind == "silence":
                os.kill(hung[0], signal.SIGKILL)
                os.waitpid(hung[0], 0)
            last_lines = [
                said.rstrip().rpartition("\n")[2]
                for rank, said in enumerate(run.said)
                if kind == "error" or rank != culprit
            ]
            named = all(last_lines) and all(
                expected in line
                and (kind == "error" or f"rank {culprit} (" in line)
                for line in last_lines
            )
            good.append(
                all(codes)
                and seconds[-1] <= limit
                and named
                and (
                    kind == "silence"
                    or run.status()["exit_code"] == DataError.exit_code
                )
            )
            if not good[-1]:
                sys.stderr.write(
                    f"{kind} of rank {culprit} in step {step}: "
                    f"{codes} after {seconds[-1]:.1f} s {last_lines}\n"
                )
        yield (
            f"{kind} of a rank, over within {limit} s and reported last",
            good,
            f"after {statistics.mean(seconds):.1f} s, at most {max(seconds):.1f} s",
        )


# ---- numbers and disks ----


def numbers(folder: Path, rng: random.Random, repeat: int) -> Figures:
    """One bad number per run; weights, EMA and optimizer are copied before that step."""
    good = []
    for number in range(repeat):
        step, where, value = (
            rng.randrange(4 * STEPS),
            ("image", "loss", "gradient")[number % 3],
            rng.choice((math.nan, math.inf, -math.inf)),
        )
        kept = folder / f"kept{number}"
        run = Run(
            folder,
            f"run{number}",
            SHORT,
            seed=rng.randrange(1000),
            prepare=lambda _, a=step, b=where, c=value, d=kept: poison(
                a, b, c, d
            ),
        )
        dropped = (
            run.wait() == [0]
            and f"step {step} skipped: " in run.said[0]
            and run.said[0].count(" skipped: ") == 1
        )
        good.append(dropped and kept.exists())
        if not good[-1]:
            sys.stderr.write(
                f"{value} in the {where} of step {step}: "
                f"dropped {dropped}, kept {kept.exists()}; {run.said}\n"
            )
    yield (
        "skipped, with weights, EMA and optimizer unchanged",
        good,
        "images, losses and gradients in turn",
    )


def poison(step: int, where: str, value: float, kept: Path) -> None:
    """Put a bad number into a step of this process; make a file if it changed nothing."""
    import copy

    import torch

    from src.solver.training_step import TrainStep

    ordinary, clip = TrainStep.__call__, torch.nn.utils.clip_grad_norm_

    def state(train_step) -> dict:
        return copy.deepcopy(
            [
                train_step.model.state_dict(),
                train_step.ema.module.state_dict(),
                train_step.optimizer.state_dict(),
            ]
        )

    def clipped(parameters, limit):
        parameters[len(parameters) // 2].grad.view(-1)[0] = value
        return clip(parameters, limit)

    def call(self, now, window):
        if now != step:
            return ordinary(self, now, window)
        before, forward = state(self), self.criterion.forward
        if where == "image":
            window[0][0].view(-1)[5] = value
        elif where == "loss":
            self.criterion.forward = lambda *a, **k: {
                name: loss * value for name, loss in forward(*a, **k).items()
            }
        else:
            torch.nn.utils.clip_grad_norm_ = clipped
        losses = ordinary(self, now, window)
        self.criterion.forward, torch.nn.utils.clip_grad_norm_ = forward, clip
        if losses is None and same(state(self), before):
            kept.touch()
        return losses

    TrainStep.__call__ = call


def disk(folder: Path, rng: random.Random, repeat: int) -> Figures:
    """A killed run is resumed with a system limit on file sizes."""
    from src.solver.training_step import TrainStep

    straight = straight_run(folder, "straight")
    killed = Run(
        folder,
        "killed",
        SHORT,
        prepare=lambda _: after(
            TrainStep,
            "__call__",
            lambda self, step, *_: (
                step == 2 * STEPS and os.kill(os.getpid(), 9)
            ),
        ),
    )
    killed.wait()
    names = sorted(path.name for path in killed.folder.glob("*.pth"))
    size, good, reported = (killed.folder / "last.pth").stat().st_size, [], 0
    for number in range(repeat):
        limit = (
            int((number + rng.random()) / repeat * 3 * size) if number else 0
        )
        shutil.copytree(killed.folder, folder / f"run{number}")
        before = {
            name: (folder / f"run{number}" / name).read_bytes()
            for name in names
        }
        run = Run(
            folder,
            f"run{number}",
            (*SHORT, "save_every_steps=1"),
            prepare=lambda _, n=limit: resource.setrlimit(
                resource.RLIMIT_FSIZE, (n, n)
            ),
        )
        codes = run.wait()
        whole = all(
            is_whole(path) for path in run.folder.glob("*.pth")
        ) and names == sorted(path.name for path in run.folder.glob("*.pth"))
        if codes == [0]:
            good.append(
                whole
                and same(final_state(run.folder), final_state(straight.folder))
            )
        else:
            reported += 1
            kept = all(
                (run.folder / name).read_bytes() == before[name]
                for name in ("last.pth", "last.previous.pth")
            )
            wanted = (
                r"\S+: need [\d.]+ MB, free [\d.]+ MB" if limit else "a file: "
            )  # not even the lock
            message = re.search(
                rf"error\[6\]: disk full writing {wanted}", run.said[0]
            )
            good.append(
                codes == [6]
                and whole
                and kept
                and bool(message)
                and limit <= size
            )
        if not good[-1]:
            sys.stderr.write(
                f"limit {limit} of {size}: {codes} whole {whole} {run.said}\n"
            )
    note = f"{reported} ended with code 6 and the bytes needed and free, the others completed"
    yield (
        f"limits from 0 to 3 times the {size / 1e6:.1f} MB of last.pth",
        good,
        note,
    )


SERIES = {
    "resume": (resume, 1),
    "workers": (workers, 2),
    "signals": (signals, 20),
    "restarts": (restarts, 20),
    "ranks": (ranks, 10),
    "numbers": (numbers, 20),
    "disk": (disk, 10),
}
"""Function and count of each."""

if __name__ == "__main__":
    main()
