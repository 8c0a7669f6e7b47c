"""Batches over all ranks."""

import numpy as np
import pytest
import torch

from src.core.build import create
from src.core.detection_data import DetectionData
from src.core.durations import RunLength
from src.core.errors import ConfigError, DataError
from src.data import dataloader
from src.data.collate import BatchImageCollateFunction
from src.data.dataloader import DataLoader, GlobalBatchSampler
from src.data.dataset.coco_dataset import CocoDetection
from src.data.transforms import (
    Compose,
    ConvertBoxes,
    ConvertPILImage,
    Mosaic,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomZoomOut,
    Resize,
)
from src.runtime.process import explain
from tests.fixtures.coco_files import sound_coco, write_coco
from tests.fixtures.lengths import built_for
from tests.fixtures.processes import on_ranks


@pytest.fixture
def ranks(monkeypatch):
    """Pretend to be rank `number` of `count`."""

    def pretend(number: int, count: int) -> None:
        monkeypatch.setattr(dataloader, "rank", lambda: number)
        monkeypatch.setattr(dataloader, "world_size", lambda: count)

    return pretend


@pytest.fixture
def shares(ranks):
    """Return the batches of each of `count` ranks that share `total` images a step."""

    def collect(
        length: int,
        count: int,
        total: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        epoch: int = 0,
        seed: int = 0,
        start: int = 0,
        equal: bool | None = None,
    ):
        batches = []
        for number in range(count):
            ranks(number, count)
            sampler = GlobalBatchSampler(
                length, total // count, shuffle=shuffle, drop_last=drop_last
            )
            sampler.epoch, sampler.seed, sampler.start = epoch, seed, start
            if equal is not None:
                sampler.equal_shares = equal
            batches.append(list(sampler))
        return batches

    return collect


def together(batches) -> list[set[int]]:
    """Return the images of each global batch."""
    return [set().union(*step) for step in zip(*batches)]


# ---- who gets which images ----


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_global_batches_are_the_same_for_any_number_of_ranks(
    shares, count, shuffle
):
    assert together(shares(32, count, 8, shuffle=shuffle)) == together(
        shares(32, 1, 8, shuffle=shuffle)
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_image_comes_once_in_an_epoch(shares, count):
    seen = [
        index
        for batches in shares(32, count, 8)
        for batch in batches
        for index in batch
    ]
    assert sorted(seen) == list(range(32))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 30, 31])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_training_gives_every_rank_equally_many_steps_and_images(
    shares, length, count
):
    batches = shares(length, count, 2 * count)
    assert len({len(b) for b in batches}) == 1
    assert all(
        len({len(batch) for batch in step}) == 1 for step in zip(*batches)
    )


@pytest.mark.parametrize("length", [1, 3, 7, 31])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_training_repeats_only_as_many_images_as_fill_the_ranks(
    shares, length, count
):
    seen = [
        index
        for batches in shares(length, count, 2 * count)
        for batch in batches
        for index in batch
    ]
    assert (set(seen), len(seen)) == (
        set(range(length)),
        length + -length % count,
    )


@pytest.mark.parametrize("length", [1, 2, 3, 7, 31, 32])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_evaluation_sees_every_image_exactly_once(shares, length, count):
    seen = [
        index
        for batches in shares(length, count, 2 * count, shuffle=False)
        for batch in batches
        for index in batch
    ]
    assert sorted(seen) == list(range(length))


def test_evaluation_keeps_the_order_of_the_file(shares):
    assert shares(7, 1, 3, shuffle=False) == [[[0, 1, 2], [3, 4, 5], [6]]]


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 4), (True, 3)])
def test_last_batch_that_is_not_full_is_kept_or_left_out(
    shares, drop_last, steps
):
    (batches,) = shares(31, 1, 8, drop_last=drop_last)
    assert [len(batch) for batch in batches] == [8, 8, 8, 7][:steps]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("length", [7, 8, 31, 32])
@pytest.mark.parametrize("count", [1, 2])
def test_length_is_the_number_of_steps(shares, ranks, length, count, drop_last):
    ranks(0, count)
    sampler = GlobalBatchSampler(length, 2, shuffle=True, drop_last=drop_last)
    assert len(sampler) == len(list(sampler))


# ---- in which order ----


def test_epochs_have_orders_of_their_own(shares):
    assert shares(64, 1, 8, epoch=0) != shares(64, 1, 8, epoch=1)


def test_seeds_have_orders_of_their_own(shares):
    assert shares(64, 1, 8, seed=0) != shares(64, 1, 8, seed=1)


def test_same_seed_and_epoch_have_the_same_order(shares):
    assert shares(64, 1, 8, seed=3, epoch=5) == shares(
        64, 1, 8, seed=3, epoch=5
    )


def test_order_does_not_depend_on_torchs_random_state(shares):
    before = shares(64, 1, 8)
    torch.manual_seed(99)
    assert shares(64, 1, 8) == before


@pytest.mark.parametrize("count", [1, 2])
def test_epoch_can_be_resumed_in_the_middle(shares, count):
    assert [batches[2:] for batches in shares(31, count, 8)] == shares(
        31, count, 8, start=2
    )


def test_largest_seeds_and_epochs_will_do(shares):
    assert len(shares(8, 1, 8, seed=(1 << 62), epoch=10**6)[0]) == 1


# ---- the loader ----


def images(folder) -> CocoDetection:
    """Return a data set with every random transform, from a folder with labels.json."""
    transforms = Compose(
        [
            Mosaic(32),
            RandomPhotometricDistort(),
            RandomZoomOut(),
            RandomIoUCrop(p=0.8),
            RandomHorizontalFlip(),
            Resize([64, 64]),
            ConvertPILImage(),
            ConvertBoxes("cxcywh", True),
        ],
        mosaic_prob=0.5,
    )
    return CocoDetection(str(folder), str(folder / "labels.json"), transforms)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("images"), sound_coco(12)).parent


@pytest.fixture
def loader(data_folder):
    def make(**settings) -> DataLoader:
        collate = BatchImageCollateFunction(
            base_size=64,
            base_size_repeat=1,
            mixup_prob=0.4,
            copyblend_prob=0.5,
            area_threshold=20,
        )
        return DataLoader(
            images(data_folder),
            collate,
            **{"total_batch_size": 4, "shuffle": True, **settings},
        )

    return make


def epoch_of(
    loader: DataLoader, epoch: int = 0, seed: int = 0, start: int = 0
) -> list:
    loader.set_seed(seed)
    loader.set_epoch(epoch, start)
    return [
        (
            batch.clone(),
            [
                {
                    k: v.clone() if isinstance(v, torch.Tensor) else v
                    for k, v in t.items()
                }
                for t in targets
            ],
        )
        for batch, targets in loader
    ]


def equal(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y)
        and len(s) == len(t)
        and all(
            p.keys() == q.keys()
            and all(
                torch.equal(p[k], q[k])
                if isinstance(p[k], torch.Tensor)
                else p[k] == q[k]
                for k in p
            )
            for p, q in zip(s, t)
        )
        for (x, s), (y, t) in zip(a, b)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_never_changes_a_batch(loader, workers):
    assert equal(epoch_of(loader(num_workers=workers)), epoch_of(loader()))


@pytest.mark.parametrize("workers", [0, 2])
def test_same_epoch_gives_the_same_batches_again(loader, workers):
    one = loader(num_workers=workers)
    first = epoch_of(one, 3)
    epoch_of(one, 4)
    assert equal(epoch_of(one, 3), first)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}], ids=str)
def test_another_epoch_or_seed_gives_other_batches(loader, workers, change):
    one = loader(num_workers=workers)
    assert not equal(epoch_of(one), epoch_of(one, **change))


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_resumed_in_the_middle_continues_with_the_same_batches(
    loader, workers
):
    one = loader(num_workers=workers)
    assert equal(epoch_of(one, 2)[1:], epoch_of(one, 2, start=1))


def test_epoch_reaches_data_set_and_collate_function(loader):
    one = loader()
    one.set_epoch(7)
    assert (
        one.dataset.epoch,
        one.collate_fn.epoch,
        one.batch_sampler.epoch,
    ) == (
        7,
        7,
        7,
    )


def test_lengths_of_transforms_and_collate_function_follow_the_epochs_of_the_run(
    data_folder,
):
    policy = {"name": "stop_epoch", "epoch": 0.9, "ops": ["RandomZoomOut"]}
    dataset = {
        "type": "CocoDetection",
        "img_folder": str(data_folder),
        "ann_file": str(data_folder / "labels.json"),
        "transforms": {"type": "Compose", "policy": policy},
    }
    collate = {"type": "BatchImageCollateFunction", "stop_epoch": 0.9}
    specification = {
        "type": "DataLoader",
        "dataset": dataset,
        "collate_fn": collate,
        "batch_size": 2,
    }
    one = built_for(RunLength(20), specification)
    assert (one.dataset.transforms.stop, one.collate_fn.stop_epoch) == (18, 18)


def test_seed_reaches_data_set_and_sampler(loader):
    one = loader()
    one.set_seed(7)
    assert (one.dataset.seed, one.batch_sampler.seed) == (7, 7)


def test_two_ranks_together_load_what_one_loads(data_folder, loader):
    def work():
        return [
            [int(t["image_id"]) for t in targets]
            for _, targets in epoch_of(loader())
        ]

    parts, alone = on_ranks(2, work), work()
    assert [sorted(a + b) for a, b in zip(*parts)] == [
        sorted(batch) for batch in alone
    ]
    assert [len(batch) for batch in parts[0]] == [2, 2, 2]


def test_data_set_with_the_required_members_alone_is_loaded_too():
    class Plain(DetectionData):
        class_names = ("cat",)

        def objects(self, index):
            raise NotImplementedError

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.full((3, 32, 32), float(index)), {
                "idx": torch.tensor([index])
            }

    plain = DataLoader(Plain(), batch_size=2)
    plain.set_epoch(1)
    plain.set_seed(1)
    plain.report_images()
    assert [batch[:, 0, 0, 0].tolist() for batch, _ in plain] == [
        [0, 1],
        [2, 3],
    ]


def test_data_set_that_lacks_a_member_is_refused():
    class Plain(torch.utils.data.Dataset):
        def __len__(self):
            return 4

    with pytest.raises(
        ConfigError,
        match=r"^Plain cannot be used as a data set: it lacks class_names \(a list",
    ):
        DataLoader(Plain(), batch_size=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_faulty_image_is_named_in_one_line_wherever_it_was_found(
    tmp_path, workers
):
    data = images(write_coco(tmp_path, sound_coco(4)).parent)
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError) as caught:
        list(DataLoader(data, batch_size=2, num_workers=workers))
    assert explain(caught.value) == (
        3,
        f"image {tmp_path / '3.png'} cannot be read: No such file or directory",
    )


# ---- batch sizes ----


@pytest.mark.parametrize(
    ("settings", "count", "size", "total"),
    [
        ({"batch_size": 3}, 1, 3, 3),
        ({"batch_size": 3}, 2, 3, 6),
        ({"total_batch_size": 6}, 2, 3, 6),
        ({"total_batch_size": 6}, 1, 6, 6),
    ],
)
def test_batch_size_is_that_of_a_rank_or_of_all(
    ranks, loader, settings, count, size, total
):
    ranks(0, count)
    made = loader(**{"total_batch_size": None, **settings})
    assert (made.batch_sampler.batch_size, made.total_batch_size) == (
        size,
        total,
    )


@pytest.mark.parametrize(
    ("count", "total", "fault"),
    [
        (
            2,
            5,
            (
                "total_batch_size is 5, which cannot be divided among 2 ranks; "
                "the nearest valid sizes are 4 and 6"
            ),
        ),
        (
            8,
            33,
            (
                "total_batch_size is 33, which cannot be divided among 8 ranks; "
                "the nearest valid sizes are 32 and 40"
            ),
        ),
        (
            4,
            3,
            "total_batch_size is 3, which cannot be divided among 4 ranks; the minimum is 4",
        ),
        (
            1,
            0,
            "total_batch_size is 0, which cannot be divided among 1 ranks; the minimum is 1",
        ),
        (
            2,
            -4,
            "total_batch_size is -4, which cannot be divided among 2 ranks; the minimum is 2",
        ),
    ],
)
def test_total_that_the_ranks_cannot_share_is_refused_with_the_nearest_that_can(
    ranks, loader, count, total, fault
):
    ranks(0, count)
    with pytest.raises(ConfigError) as caught:
        loader(total_batch_size=total)
    assert str(caught.value) == fault


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"total_batch_size": None}, "None and None"),
        ({"batch_size": 2}, "2 and"),
    ],
)
def test_batch_size_is_given_once(loader, settings, found):
    with pytest.raises(
        ConfigError,
        match=r"^DataLoader needs either batch_size \(images per rank\) or total_batch_size "
        rf"\(images over all ranks\), found {found}",
    ):
        loader(**settings)


@pytest.mark.parametrize("count", [1, 2])
def test_data_smaller_than_a_batch_are_refused(ranks, loader, count):
    ranks(0, count)
    with pytest.raises(
        ConfigError,
        match="^0 steps per epoch: 12 images cannot fill one batch of 14; reduce total_batch_size$",
    ):
        loader(total_batch_size=14, drop_last=True)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"batch_size": 0, "total_batch_size": None},
            "batch_size is 0, expected at least 1",
        ),
        ({"num_workers": -1}, "num_workers is -1, expected at least 0"),
        (
            {"data_timeout": -1},
            "data_timeout is -1, expected seconds, or 0 for no limit",
        ),
        (
            {"persistent_workers": True},
            (
                "persistent_workers is true, which is not supported: "
                "workers are restarted every epoch; set it to false"
            ),
        ),
    ],
)
def test_setting_out_of_range_is_refused(loader, settings, fault):
    with pytest.raises(ConfigError, match=fault):
        loader(**settings)


def test_setting_that_torch_refuses_is_a_fault_of_the_configuration(
    data_folder,
):
    with pytest.raises(
        ConfigError,
        match="^DataLoader cannot be built: prefetch_factor option could only be "
        "specified in multiprocessing",
    ):
        create(
            {"type": "DataLoader", "batch_size": 2, "prefetch_factor": 4},
            dataset=images(data_folder),
        )


def test_loader_is_built_from_a_configuration(data_folder):
    made = create(
        {
            "type": "DataLoader",
            "total_batch_size": 5,
            "collate_fn": {
                "type": "BatchImageCollateFunction",
                "base_size": 64,
            },
            "dataset": {
                "type": "CocoDetection",
                "img_folder": str(data_folder),
                "ann_file": str(data_folder / "labels.json"),
                "transforms": {
                    "type": "Compose",
                    "ops": [{"type": "Resize", "size": [64, 64]}],
                },
            },
        }
    )
    assert [tuple(batch.shape) for batch, _ in made] == [
        (5, 3, 64, 64),
        (5, 3, 64, 64),
        (2, 3, 64, 64),
    ]


def test_the_random_states_of_numpy_and_torch_are_unchanged(loader):
    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(3)
    torch.manual_seed(3)
    one = loader()
    one.set_epoch(0)
    one.dataset.sample(0)
    assert (np.random.rand(), torch.rand(1).item()) == expected
