"""Kill a small training at random moments and resume it, many times; damage its checkpoints bit by bit.

    python tests/harness/soak.py --kills 200 --seed 0                 # about two minutes on one core
    python tests/harness/soak.py --kills 0 --bits 200 --cuts 50       # damage only
    python tests/harness/soak.py --minutes 120 --seed 0     # one long run, killed every 20 to 60 seconds

A run on synthetic data saves every three steps. It is forked, ended by SIGKILL, and started again with
`-r auto`. Half of the kills come at any time, half wait for a step, a save or an evaluation. When a run ends,
its model, EMA weights and optimizer are compared bit for bit with those of an uninterrupted run, and the next
run begins, until the number of kills is reached. The exit code is 1 if anything was lost.

With `--minutes`, one run of 20000 epochs with a loader worker is killed again and again. An uninterrupted run
to compare with would take as long again. Instead, every step that is repeated after a kill must give a loss
bit-identical to the first one. Memory and open files of the training are sampled every second; the exit code
is also 1 if they grow by more than 5 %, within attempts or over all of them.
"""

import argparse
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PHASES = ("starting", "in a step", "saving", "evaluating")
LONGEST_WAIT = 0.6
"""Seconds from the start of an attempt to its end at the latest."""
TINY = {
    "epochs": 6,
    "pictures": False,
    "eval_spatial_size": [64, 64],
    "seed": 1,
    "save_every_steps": 3,
    "resume": "auto",
    "print_freq": 1000,
    "DINOv3Backbone": {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "tap_blocks": [0, 1],
        "out_channels": 32,
        "detail_channels": 4,
        "freeze_backbone_epochs": 1,
        "unfreeze_blocks": 1,
    },
    "HybridEncoder": {
        "in_channels": [32, 32, 32],
        "hidden_dim": 32,
        "nhead": 2,
        "dim_feedforward": 32,
    },
    "DFINETransformer": {
        "feat_channels": [32, 32, 32],
        "hidden_dim": 32,
        "nhead": 2,
        "num_layers": 2,
        "dim_feedforward": 32,
        "num_queries": 20,
        "num_denoising": 6,
    },
    "DFINEPostProcessor": {"num_top_queries": 20},
}
LONG_IMAGES, GROWTH, ENOUGH = 96, 0.05, 8
"""Of the long run: images of an epoch, and by how much memory and open files may grow."""
LOADERS = {
    "train": {
        "total_batch_size": 4,
        "num_workers": 0,
        "collate_fn": {"stop_epoch": 4},
    },
    "val": {"total_batch_size": 4, "num_workers": 0},
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=200,
        help="number of kills; not used with --minutes",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="duration of one long run that is killed repeatedly",
    )
    parser.add_argument(
        "--wait",
        type=float,
        nargs=2,
        default=(20, 60),
        metavar=("LEAST", "MOST"),
        help="minimum and maximum seconds between kills of the long run",
    )
    parser.add_argument(
        "--bits",
        type=int,
        default=0,
        help="number of single bits of last.pth to flip, one at a time",
    )
    parser.add_argument(
        "--cuts",
        type=int,
        default=0,
        help="number of places to truncate last.pth at, one at a time",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    import logging

    import torch

    torch.set_num_threads(1)
    logging.getLogger("dfine").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from src.data.dataset.synthetic import write_synthetic_coco

        write_synthetic_coco(
            folder, train=24, val=8, size=64, seed=3, max_objects=3
        )
        train(
            folder, "straight"
        )  # in this process: children find everything imported
        rng = random.Random(arguments.seed)
        lost = 0
        if arguments.minutes:
            write_synthetic_coco(
                folder / "long",
                train=LONG_IMAGES,
                val=8,
                size=64,
                seed=3,
                max_objects=3,
            )
            lost += long_soak(
                folder / "long", arguments.minutes, arguments.wait, rng
            )
        elif arguments.kills:
            lost += soak(folder, arguments.kills, rng)
        lost += damage(
            folder / "straight", "flipped bits", arguments.bits, rng, flip
        )
        lost += damage(
            folder / "straight",
            "cuts",
            arguments.cuts,
            rng,
            lambda raw, rng: raw[: rng.randrange(len(raw) - 80)],
        )
    sys.exit(1 if lost else 0)


def train(folder: Path, name: str, *, endless: bool = False) -> None:
    """Start or resume the run in a folder, until it is complete."""
    import torch

    from src.solver import DetSolver

    DetSolver(
        configuration(folder, name, endless=endless), torch.device("cpu")
    ).fit()


def configuration(folder: Path, name: str, *, endless: bool = False):
    """Return the configuration of a run on the data of a folder."""
    from src.core import YAMLConfig

    loaders = {
        f"{part}_dataloader": {
            **settings,
            "dataset": {
                "img_folder": str(folder / "images"),
                "ann_file": str(folder / f"{part}.json"),
            },
        }
        for part, settings in LOADERS.items()
    }
    settings = {**TINY, **loaders, "output_dir": str(folder / name)}
    if endless:
        settings |= {"epochs": 20_000, "save_every_steps": 12}
        settings["train_dataloader"] |= {
            "num_workers": 1,
            "collate_fn": {"stop_epoch": None},
        }
    return YAMLConfig(
        ROOT / "configs/dfine/demo/dfine_dinov3_demo.yml", **settings
    )


# ---- kills ----


def soak(folder: Path, kills: int, rng: random.Random) -> int:
    """Print the number of kills that lost something; return the number of faults."""
    mark = mmap.mmap(-1, 1)  # what the child is doing; shared with it
    met, unreadable, checked, ends, differing, began = (
        Counter(),
        0,
        0,
        0,
        0,
        time.monotonic(),
    )
    goal = final_state(folder / "straight")
    while sum(met.values()) < kills:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        while not attempt(folder, mark, rng, met, kills):
            read = [is_whole(path) for path in run.glob("*.pth")]
            checked, unreadable = (
                checked + len(read),
                unreadable + read.count(False),
            )
        ends, differing = (
            ends + 1,
            differing + (not same(final_state(run), goal)),
        )
    print(
        f"{sum(met.values())} kills in {time.monotonic() - began:.0f} s: "
        + ", ".join(f"{met[n]} while {phase}" for n, phase in enumerate(PHASES))
    )
    print(
        f"checkpoints that can be read after a kill: {checked - unreadable} of {checked}"
    )
    print(
        f"runs whose model, average and optimizer end equal to the bit: {ends - differing} of {ends}"
    )
    return unreadable + differing


def attempt(
    folder: Path, mark: mmap.mmap, rng: random.Random, met: Counter, kills: int
) -> bool:
    """Start the run once and kill it, if kills are left; return whether it was completed."""
    mark[0] = 0
    deadline, aimed, late = (
        rng.uniform(0.05, LONGEST_WAIT),
        rng.choice((None, None, None, 1, 2, 3)),
        rng.uniform(0, 0.01),
    )
    child = os.fork()
    if not child:
        try:
            watched(mark)
            with open(folder / "output.txt", "ab") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            train(folder, "run")
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    began = time.monotonic()
    while sum(met.values()) < kills and (
        mark[0] != aimed if aimed else time.monotonic() - began < deadline
    ):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.0005)
    if sum(met.values()) < kills:
        time.sleep(late)
        os.kill(child, signal.SIGKILL)
    phase, status = mark[0], os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        met[phase] += 1
        return False
    if os.WEXITSTATUS(status):
        sys.exit(
            f"an attempt failed: {(folder / 'output.txt').read_text()[-2000:]}"
        )
    return True


def watched(mark: mmap.mmap) -> None:
    """Make this process publish its current activity."""
    from src.solver import checkpoint, training_loop, training_step

    def marking(function, phase: int):
        def call(*arguments, **keywords):
            before, mark[0] = mark[0], phase
            try:
                return function(*arguments, **keywords)
            finally:
                mark[0] = before

        return call

    training_step.TrainStep.__call__ = marking(
        training_step.TrainStep.__call__, 1
    )
    checkpoint.write_tensor_file = marking(checkpoint.write_tensor_file, 2)
    training_loop.evaluate = marking(training_loop.evaluate, 3)


# ---- one long run ----


def long_soak(
    folder: Path, minutes: float, wait: tuple[float, float], rng: random.Random
) -> int:
    """Kill one run repeatedly; print steps, resources and files; return the number of faults."""
    end = time.monotonic() + 60 * minutes
    attempts, own, disk, losses = [], [], [], {}
    unreadable = checked = differing = again = 0
    while time.monotonic() < end:
        attempts.append(
            long_attempt(
                folder,
                min(rng.uniform(*wait), max(end - time.monotonic(), wait[0])),
            )
        )
        before, losses = losses, read_losses(folder)
        again, differing = (
            again + len(before.keys() & losses),
            differing
            + sum(
                before[step] != losses[step] for step in before.keys() & losses
            ),
        )
        read = [is_whole(path) for path in (folder / "run").glob("*.pth")]
        checked, unreadable = (
            checked + len(read),
            unreadable + read.count(False),
        )
        own.append(taken(os.getpid()))
        disk.append(
            {
                path: path.stat().st_size
                for path in (folder / "run").rglob("*")
                if path.is_file()
            }
        )
    print(f"{len(attempts)} kills in {minutes:g} min, {max(losses)} steps")
    print(
        f"checkpoints that can be read after a kill: {checked - unreadable} of {checked}"
    )
    print(
        f"steps learned again whose loss is equal to the bit: {again - differing} of {again}"
    )
    faults = unreadable + differing
    quarter = max(len(attempts) // 4, 1)
    for index, (name, unit) in enumerate(
        (("memory", " MB"), ("open files", ""))
    ):
        within = [
            (late[index] - early[index]) / early[index]
            for early, late in attempts
        ]
        over = [
            statistics.median(late[index] for _, late in part)
            for part in (attempts[:quarter], attempts[-quarter:])
        ]
        ours = [
            statistics.median(sample[index] for sample in part)
            for part in (own[:quarter], own[-quarter:])
        ]
        print(
            f"{name} of the training: within an attempt {statistics.median(within):+.1%} "
            f"(median; at most {max(within):+.1%}); "
            f"first to last quarter of the attempts {over[0]:.1f} to {over[1]:.1f}{unit} "
            f"({over[1] / over[0] - 1:+.1%}); of this process {ours[0]:.1f} to {ours[1]:.1f}{unit}"
        )
        if len(attempts) >= ENOUGH:
            faults += statistics.median(within) > GROWTH or over[1] > over[
                0
            ] * (1 + GROWTH)
    for name, pattern in (
        ("checkpoints", "*.pth"),
        ("half-written files", ".*.dfine-tmp"),
        ("log.txt", "log.txt"),
        ("curves", "events.*"),
    ):
        sizes = [
            [size for path, size in files.items() if path.match(pattern)]
            for files in (disk[0], disk[-1])
        ]
        print(
            f"{name} in the output folder: {len(sizes[0])} of {sum(sizes[0]) / 1e6:.1f} MB, "
            f"at the end {len(sizes[1])} of {sum(sizes[1]) / 1e6:.1f} MB"
        )
    return faults


def long_attempt(
    folder: Path, seconds: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Start the long run and kill it; return its resources after its first steps and at the end."""
    (folder / "losses").unlink(missing_ok=True)
    child = os.fork()
    if not child:
        try:
            with (
                open(folder / "losses", "ab", buffering=0) as losses,
                open(folder / "output.txt", "wb") as output,
            ):
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                note_losses(losses)
                train(folder, "run", endless=True)
        except BaseException as error:
            os.write(2, repr(error).encode())
        os._exit(1)
    samples, began = [], time.monotonic()
    while time.monotonic() - began < seconds or len(samples) < 2:
        time.sleep(min(1, seconds / 8))
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit(
                f"an attempt failed: {(folder / 'output.txt').read_text()[-2000:]}"
            )
        if (folder / "losses").exists() and (folder / "losses").stat().st_size:
            samples.append(taken(child))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    part = max(len(samples) // 5, 1)
    early, late = samples[part : 2 * part], samples[-part:]
    return tuple(map(statistics.median, zip(*early))), tuple(
        map(statistics.median, zip(*late))
    )


def taken(process: int) -> tuple[float, float]:
    """Return the resident megabytes and the open files of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1e3, len(
        os.listdir(f"/proc/{process}/fd")
    )


def note_losses(file) -> None:
    """Make this process write the number and the loss of each step."""
    from src.solver.training_step import TrainStep

    ordinary = TrainStep.__call__

    def call(self, step, window):
        losses = ordinary(self, step, window)
        file.write(
            struct.pack(
                "<qd", step, float(sum(losses.values())) if losses else 0.0
            )
        )
        return losses

    TrainStep.__call__ = call


def read_losses(folder: Path) -> dict[int, float]:
    return dict(struct.iter_unpack("<qd", (folder / "losses").read_bytes()))


# ---- damage ----


def flip(raw: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(raw)
    damaged[rng.randrange(len(raw) - 80)] ^= 1 << rng.randrange(
        8
    )  # the last 80 bytes are the digest and its frame
    return bytes(damaged)


def damage(run: Path, kind: str, count: int, rng: random.Random, spoil) -> int:
    """Damage `last.pth` repeatedly; print and return how often this was missed or no older file was used."""
    from src.solver.checkpoint import CheckpointFolder

    if not count:
        return 0
    path, checkpoints = run / "last.pth", CheckpointFolder(run)
    raw, before = (
        path.read_bytes(),
        checkpoints.load_last(run / "last.previous.pth")[0]["progress"],
    )
    noticed = 0
    for _ in range(count):
        path.write_bytes(spoil(raw, rng))
        noticed += checkpoints.load_last(path)[0]["progress"] == before
    path.write_bytes(raw)
    print(
        f"{kind} of last.pth noticed, last.previous.pth taken: {noticed} of {count}"
    )
    return count - noticed


def is_whole(path: Path) -> bool:
    from src.core.errors import CheckpointError
    from src.runtime.weight_files import read_tensor_file, verify_digest

    try:
        read_tensor_file(path)
    except CheckpointError:
        return False
    return verify_digest(path) is True


def final_state(run: Path) -> dict:
    from src.runtime.weight_files import read_tensor_file

    state = read_tensor_file(run / "last.pth")
    return {
        key: state[key]
        for key in ("model", "ema", "optimizer", "progress", "best")
    }


def same(one, two) -> bool:
    """Return whether nested containers of tensors are equal bit for bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return (
            isinstance(two, dict)
            and one.keys() == two.keys()
            and all(same(one[key], two[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return (
            isinstance(two, list | tuple)
            and len(one) == len(two)
            and all(map(same, one, two))
        )
    return one == two


if __name__ == "__main__":
    main()
