"""Faults of data loading: sharding, dead or hanging workers, links (F31, F33, F39, F40, F42, F74, F76)."""

import os
import resource
import signal
import sys
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import get_worker_info

from src.core.errors import ResourceError
from src.core.yaml_config import YAMLConfig
from src.data import worker_watch
from src.data.dataset.coco_dataset import CocoDetection
from src.runtime.process import explain
from tests.faults.runs import fit
from tests.fixtures.commands import write_tiny_config
from tests.fixtures.processes import on_ranks, run_forked
from tests.fixtures.tiny import tiny_config
from tests.fixtures.train_here import (
    change_labels,
    image_path,
    private_copy,
    train_here,
)


@pytest.fixture
def own_data(tiny_data, tmp_path):
    """A data set of the test's own."""
    return private_copy(tiny_data, tmp_path / "data")


@pytest.fixture
def in_a_worker(monkeypatch):
    """Return a function that injects an action where a worker decodes the image of this index."""
    original = CocoDetection.raw_sample

    def let(index: int, happen) -> None:
        def raw_sample(self, asked, rng=None):
            if asked == index and get_worker_info() is not None:
                self.policy.flags.begin(asked)
                happen()
            return original(self, asked, rng)

        monkeypatch.setattr(CocoDetection, "raw_sample", raw_sample)
        monkeypatch.setattr(worker_watch, "POLL_SECONDS", 0.5)
        monkeypatch.setattr("src.data.dataloader.POLL_SECONDS", 0.5)

    return let


def first_annotated(labels, count: int) -> None:
    """Keep only the objects of the first images."""
    labels["annotations"] = [
        a for a in labels["annotations"] if a["image_id"] <= count
    ]


# ---- ranks ----


def test_f31_ranks_without_boxes_in_their_batches_train_along(
    own_data, tmp_path
):
    change_labels(own_data, lambda labels: first_annotated(labels, 6))
    config = write_tiny_config(tmp_path, own_data, epochs=1, seed=1)

    def trained():
        state = fit(YAMLConfig(config)).state
        weights = torch.cat(
            [p.detach().flatten() for p in state.model.parameters()]
        )
        return state.progress.total_steps, state.guard.in_epoch, weights

    (steps, dropped, weights), (_, _, others) = on_ranks(2, trained)
    assert (steps, dropped) == (6, 0)
    assert torch.equal(weights, others)


@pytest.mark.parametrize("images", [7, 1])
def test_f33_ranks_score_every_image_once_and_train_equally_long(
    own_data, images
):
    for part in ("train", "val"):
        change_labels(
            own_data,
            lambda labels: (
                labels.update(images=labels["images"][:images]),
                first_annotated(labels, images),
            ),
            part,
        )

    def load():
        cfg = tiny_config(own_data, train_dataloader={"drop_last": False})
        cfg.train_dataloader.batch_sampler.equal_shares = True
        return (
            [
                int(t["image_id"])
                for _, targets in cfg.val_dataloader
                for t in targets
            ],
            [len(targets) for _, targets in cfg.train_dataloader],
        )

    (scored, steps), (also_scored, other_steps) = on_ranks(2, load)
    assert sorted(scored + also_scored) == list(range(1, images + 1))
    assert steps == other_steps


# ---- processes that load ----


def test_f39_killed_worker_ends_the_run_with_its_signal_and_images(
    own_data, tmp_path, in_a_worker
):
    assert worker_watch.POLL_SECONDS <= 5
    in_a_worker(13, lambda: os.kill(os.getpid(), signal.SIGKILL))
    ended = train_here(
        "-c",
        write_tiny_config(
            tmp_path,
            own_data,
            train_dataloader={"num_workers": 2, "total_batch_size": 24},
        ),
        "--seed=0",
    )
    assert ended.code == 6
    assert (
        ended.err.startswith("error[6]: loader worker ")
        and "reduce num_workers" in ended.err
    )
    assert (
        "was killed by SIGKILL, likely because memory ran out; its last image: 14 (train_00013.jpg)"
        in ended.err
    )


def test_f40_hanging_worker_ends_the_run_after_the_timeout(
    own_data, tmp_path, in_a_worker, monkeypatch
):
    hangs, seconds = torch.zeros(1).share_memory_(), count(1)

    def hang() -> None:
        hangs.fill_(1)
        signal.pause()

    in_a_worker(13, hang)
    monkeypatch.setattr(
        worker_watch,
        "time",
        SimpleNamespace(monotonic=lambda: next(seconds) if hangs else 0),
    )
    settings = {"num_workers": 1, "total_batch_size": 24, "data_timeout": 1.0}
    ended = train_here(
        "-c",
        write_tiny_config(tmp_path, own_data, train_dataloader=settings),
        "--seed=0",
    )
    assert ended.code == 6
    assert ended.err.startswith(
        "error[6]: no batch arrived within 1 s (data_timeout): "
        "a loader worker hangs or is very slow; last images of the workers: "
    )
    assert "14 (train_00013.jpg)" in ended.err


# ---- limits of the system ----


def test_f42_too_few_open_files_are_named_with_the_limit_and_what_to_set(
    own_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("src.data.dataloader.POLL_SECONDS", 0.5)
    config = write_tiny_config(
        tmp_path,
        own_data,
        train_dataloader={"num_workers": 1, "total_batch_size": 8},
    )

    def train() -> None:
        resource.setrlimit(
            resource.RLIMIT_NOFILE,
            (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        )
        train_here_and_exit("-c", config, "--seed=0")

    ended = run_forked(train, tmp_path)
    assert ended.code == 6
    assert (
        "error[6]: " in ended.err
    )  # of the worker that hands over a batch, or of the run itself
    assert (
        "too many open files: this process may have 64 (ulimit -n); "
        in ended.err
    )
    assert (
        "4096" in ended.err
        and "num_workers" in ended.err
        and "Traceback" not in ended.err
    )


def train_here_and_exit(*arguments) -> None:
    ended = train_here(*arguments)
    sys.stderr.write(ended.err)
    sys.stderr.flush()
    os._exit(ended.code)


class Unsendable:
    """A stand-in for a batch that does not fit into shared memory."""

    def __reduce__(self):
        raise RuntimeError(
            "unable to write to file </torch_1_2_3>: No space left on device (28)"
        )


def test_f42_full_shared_memory_is_named_with_its_size_and_what_to_set(
    tiny_data, monkeypatch
):
    monkeypatch.setattr("src.data.dataloader.POLL_SECONDS", 0.5)
    loader = tiny_config(
        tiny_data, train_dataloader={"num_workers": 1}
    ).train_dataloader
    loader.collate_fn = lambda _: Unsendable()
    with pytest.raises(
        ResourceError,
        match=r"^loader worker 0 could not hand over a batch: shared memory is full \(/dev/shm has \d+ MB, ",
    ) as caught:
        next(iter(loader))
    assert "--shm-size=8g" in str(caught.value) and "num_workers" in str(
        caught.value
    )


def test_f42_worker_killed_by_sigbus_points_to_shared_memory(
    own_data, tmp_path, in_a_worker
):
    in_a_worker(13, lambda: os.kill(os.getpid(), signal.SIGBUS))
    ended = train_here(
        "-c",
        write_tiny_config(
            tmp_path,
            own_data,
            train_dataloader={"num_workers": 1, "total_batch_size": 24},
        ),
        "--seed=0",
    )
    assert ended.code == 6
    assert (
        "was killed by SIGBUS, likely because shared memory is full (/dev/shm has "
        in ended.err
        and "--shm-size=8g" in ended.err
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(24, "Too many open files", "a.jpg"), "too many open files"),
        (RuntimeError("received 0 items of ancdata"), "too many open files"),
        (
            RuntimeError(
                "unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"
            ),
            "too many open files",
        ),
        (
            OSError(28, "No space left on device"),
            "a disk or shared memory is full: No space left on device",
        ),
        (
            OSError(28, "No space left on device", "log.txt"),
            "disk full writing log.txt",
        ),
    ],
)
def test_f42_limits_of_the_system_are_exit_6(error, text):
    code, message = explain(error)
    assert code == 6 and message.startswith(text)


def test_f42_an_image_is_not_called_unreadable_when_files_cannot_be_opened(
    tiny_data, monkeypatch
):
    data = tiny_config(tiny_data).val_dataloader.dataset
    monkeypatch.setattr(
        "builtins.open",
        lambda *_, **__: (_ for _ in ()).throw(
            OSError(24, "Too many open files")
        ),
    )
    with pytest.raises(OSError, match="Too many open files"):
        data[0]


# ---- files outside the folder, hostile names ----


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../val.json", "leaves the image folder"),
        ("a/../../val.json", "leaves the image folder"),
        ("/etc/passwd", "is an absolute path"),
        ("a\0.jpg", "contains a control character"),
        ("\\\\host\\share\\a.jpg", "is an absolute path"),
        ("https://host/a.jpg", "is an address"),
    ],
)
def test_f74_name_that_leaves_the_image_folder_is_refused_with_its_record(
    own_data, tmp_path, name, reason
):
    change_labels(
        own_data, lambda labels: labels["images"][5].update(file_name=name)
    )
    ended = train_here("-c", write_tiny_config(tmp_path, own_data))
    assert ended.code == 3
    assert (
        "images[5] (id 6): file_name is " in ended.err and reason in ended.err
    )


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_f74_link_out_of_the_image_folder_is_refused_with_its_record(
    own_data, tmp_path, linked
):
    image = image_path(own_data, 5)
    outside = tmp_path / "outside"
    outside.mkdir()
    image.rename(outside / image.name)
    if linked == "file":
        image.symlink_to(outside / image.name)
    else:
        (image.parent / "sub").symlink_to(outside)
        change_labels(
            own_data,
            lambda labels: labels["images"][5].update(
                file_name=f"sub/{image.name}"
            ),
        )
    ended = train_here("-c", write_tiny_config(tmp_path, own_data))
    assert ended.code == 3
    assert (
        "1 of 24 images of" in ended.err
        and "images[5] (id 6)" in ended.err
        and f"-> {outside / image.name}" in ended.err
    )


def test_f76_hostile_class_names_stay_on_one_line_of_bounded_length(
    own_data, tmp_path
):
    names = [
        "\x1b[2J\x1b]0;x\x07",
        "=cmd()\n\rerror[0]: done",
        "x" * 1_000_000,
        "\u202egnp.exe",
    ]
    change_labels(
        own_data,
        lambda labels: [
            category.update(name=name)
            for category, name in zip(labels["categories"], names)
        ],
    )
    ended = train_here("-c", write_tiny_config(tmp_path, own_data))
    status = (tmp_path / "run/run_status.json").read_text()
    assert ended.code == 3
    assert (
        ended.err.count("\n") == 1
        and len(ended.err) < 25_000
        and len(status) < 30_000
    )
    assert not {"\x1b", "\x07", "\r", "\u202e"} & {
        *ended.err,
        *ended.out,
        *status,
    }
