"""The list of transforms, and when each acts."""

import pytest

from src.core.build import create
from src.core.durations import RunLength
from src.core.errors import ConfigError
from src.data.transforms import (
    Compose,
    EmptyTransform,
    Mosaic,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomZoomOut,
    Resize,
    Sample,
)
from tests.fixtures.lengths import built_for, resolve_specification
from tests.fixtures.samples import plain_sample

POLICY = {"name": "stop_epoch", "epoch": 3, "ops": ["RandomZoomOut"]}
LENGTH = (
    "expected an integer number of epochs, a fraction of the run from 0.0 to 1.0, "
    "or a text such as '5 epochs', '500 steps' or '10 %'"
)
EXPECTED = (
    "expected epoch (the epoch in which the named transforms stop, or null; or a list of three: "
    "when they start, when Mosaic stops, when all stop) and ops (a list of class names)"
)
THREE = {
    "name": "stop_epoch",
    "epoch": [4, 34, 60],
    "ops": ["Mosaic", "RandomZoomOut", "PadToSize"],
}


class Remembers:
    """Notes that it acted."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def __call__(self, sample) -> None:
        self.log.append(self.name)


def test_transforms_act_in_order():
    log = []
    Compose([Remembers(name, log) for name in "abc"])(plain_sample(4, 4))
    assert log == ["a", "b", "c"]


def test_sample_is_returned():
    sample = plain_sample(4, 4)
    assert Compose([EmptyTransform()])(sample) is sample


@pytest.mark.parametrize("ops", [None, []])
def test_empty_list_changes_nothing(ops):
    assert Compose(ops)(plain_sample(4, 6)).canvas == (4, 6)


@pytest.mark.parametrize(
    ("epoch", "canvas"),
    [(0, (12, 20)), (2, (12, 20)), (3, (6, 10)), (99, (6, 10))],
)
def test_named_transforms_are_left_out_from_the_stop_epoch_on(epoch, canvas):
    compose = Compose([RandomZoomOut(side_range=[2, 2], p=1)], POLICY)
    assert compose(plain_sample(6, 10), epoch).canvas == canvas


def test_other_transforms_act_in_every_epoch():
    assert Compose([Resize([5, 7])], POLICY)(
        plain_sample(6, 10), 99
    ).canvas == (7, 5)


@pytest.mark.parametrize(
    "policy", [None, {"name": "default"}, {}, POLICY | {"epoch": None}]
)
def test_without_a_stop_epoch_all_transforms_act_for_ever(policy):
    assert Compose([RandomZoomOut(side_range=[2, 2], p=1)], policy)(
        plain_sample(6, 10), 10**6
    ).canvas == (
        12,
        20,
    )


# ---- three points ----


def who_acts(policy: dict, epoch: int, run: RunLength | None = None) -> str:
    """Return which of four transforms act, by their initials."""
    log = []
    ops = [
        type(name, (Remembers,), {})(name[:1], log)
        for name in ("Mosaic", "RandomZoomOut", "PadToSize", "Flip")
    ]
    if run is not None:
        policy = resolve_specification(
            {"type": "Compose", "policy": policy}, run
        )["policy"]
    compose = Compose(ops, policy)
    compose(plain_sample(4, 4), epoch)
    return "".join(log)


@pytest.mark.parametrize(
    ("epoch", "acting"),
    [
        (0, "F"),
        (3, "F"),
        (4, "MRPF"),
        (33, "MRPF"),
        (34, "RPF"),
        (59, "RPF"),
        (60, "F"),
        (99, "F"),
    ],
)
@pytest.mark.parametrize(
    "points",
    [[4, 34, 60], ["4 epochs", 0.34, "60 epochs"], [0.04, "34 %", 0.6]],
    ids=str,
)
def test_three_points_start_the_named_transforms_stop_mosaic_and_stop_all(
    points, epoch, acting
):
    assert who_acts(THREE | {"epoch": points}, epoch, RunLength(100)) == acting


@pytest.mark.parametrize(
    ("epoch", "acting"), [(0, "MRPF"), (63, "MRPF"), (64, "F")]
)
def test_single_point_may_be_a_fraction_of_the_run(epoch, acting):
    assert who_acts(THREE | {"epoch": 0.9}, epoch, RunLength(72)) == acting


def test_point_that_depends_on_the_runs_length_is_refused_without_one():
    with pytest.raises(
        ConfigError,
        match="Compose.policy.epoch is 0.9, which depends on the length of the run",
    ):
        create({"type": "Compose", "policy": THREE | {"epoch": 0.9}})


def test_transform_that_the_policy_does_not_name_acts_in_every_epoch_even_mosaic():
    assert [
        who_acts(THREE | {"ops": ["PadToSize"]}, epoch) for epoch in (0, 40, 99)
    ] == [
        "MRF",
        "MRPF",
        "MRF",
    ]


def test_points_that_ascend_no_more_in_a_short_run_are_refused():
    with pytest.raises(ConfigError) as caught:
        built_for(
            RunLength(6),
            {"type": "Compose", "policy": THREE | {"epoch": [4, 0.5, 0.9]}},
        )
    assert (
        str(caught.value)
        == "Compose.policy.epoch is [4, 3, 5], which are the epochs 4, 3, 5; they must be in ascending order"
    )


# ---- mosaics ----


def with_others(seed: int = 0) -> Sample:
    """Return a sample of a data set of equal images."""
    sample = plain_sample(60, 40, [[10, 10, 40, 30]], seed)
    sample.draw_other = lambda rng: plain_sample(60, 40, [[10, 10, 40, 30]])
    return sample


@pytest.mark.parametrize(
    ("mosaic_prob", "probability", "share"),
    [(0.5, 1.0, 0.5), (1.0, 0.5, 0.5), (0.5, 0.5, 0.25), (0, 1, 0), (1, 1, 1)],
)
def test_mosaic_acts_on_its_fraction_of_the_samples(
    mosaic_prob, probability, share
):
    compose = Compose(
        [Mosaic(32, probability=probability)], mosaic_prob=mosaic_prob
    )
    acted = sum(compose(with_others(seed)).is_mosaic for seed in range(400))
    assert abs(acted - 400 * share) <= 4 * (400 * share * (1 - share)) ** 0.5


def test_mosaics_are_neither_zoomed_out_nor_cropped_by_overlap():
    alone, followed = (
        Compose([Mosaic(32)]),
        Compose([Mosaic(32), RandomZoomOut(p=1), RandomIoUCrop(p=1)]),
    )
    for seed in range(20):
        assert (
            followed(with_others(seed)).canvas
            == alone(with_others(seed)).canvas
        )


def test_samples_without_mosaic_are_zoomed_out():
    sample = Compose(
        [Mosaic(32), RandomZoomOut(side_range=[2, 2], p=1)], mosaic_prob=0
    )(with_others())
    assert sample.canvas == (120, 80)


def test_mosaics_are_distorted_in_colour_and_flipped():
    sample = Compose(
        [Mosaic(32), RandomPhotometricDistort(p=1), RandomHorizontalFlip(p=1)]
    )(with_others())
    assert (sample.colour is not None, sample.scale.tolist()) == (True, [-1, 1])


@pytest.mark.parametrize("epoch", [0, 34, 60])
def test_in_epochs_without_mosaic_no_random_number_is_drawn_for_it(epoch):
    sample, alone = with_others(), with_others()
    Compose([Mosaic(32)], THREE, mosaic_prob=0.5)(sample, epoch)
    assert sample.rng.random() == alone.rng.random()


def test_mosaic_stands_first():
    with pytest.raises(
        ConfigError,
        match="^Compose.ops has Mosaic after Resize; it combines unchanged images, move it to the front$",
    ):
        Compose([EmptyTransform(), Resize([32, 32]), Mosaic()])


def test_an_invalid_probability_of_mosaic_is_refused():
    with pytest.raises(
        ConfigError, match="^Compose.mosaic_prob is -0.1, expected 0 to 1$"
    ):
        Compose([Mosaic()], mosaic_prob=-0.1)


def test_list_is_built_from_a_configuration():
    compose = create(
        {
            "type": "Compose",
            "ops": [
                {"type": "Resize", "size": [5, 7]},
                {"type": "RandomHorizontalFlip", "p": 0.25},
            ],
        }
    )
    assert ([type(op) for op in compose.ops], compose.ops[1].p) == (
        [Resize, RandomHorizontalFlip],
        0.25,
    )


@pytest.mark.parametrize(
    ("ops", "size"),
    [
        ([Resize([5, 7])], (5, 7)),
        ([RandomZoomOut()], None),
        ([Resize([5, 7]), EmptyTransform()], (5, 7)),
        ([Resize([5, 7]), Resize([8, 9])], (8, 9)),
    ],
)
def test_size_that_all_samples_leave_with_is_known(ops, size):
    assert Compose(ops).output_size == size


@pytest.mark.parametrize(
    ("size", "tile"), [([640, 640], 320), ([768, 768], 384), ([480, 640], 240)]
)
def test_tiles_of_a_mosaic_without_a_size_are_half_of_the_input(size, tile):
    mosaic = Mosaic(output_size=None)
    Compose([mosaic, Resize(size)])
    assert mosaic.output_size == tile


def test_a_size_of_tiles_that_is_set_does_not_follow_the_input():
    mosaic = Mosaic(output_size=64)
    Compose([mosaic, Resize([640, 640])])
    assert mosaic.output_size == 64


def test_a_mosaic_whose_size_is_neither_set_nor_known_is_refused():
    with pytest.raises(ConfigError) as caught:
        Compose([Mosaic(output_size=None), RandomZoomOut()])
    assert str(caught.value) == (
        "Mosaic.output_size is not set, and no transform after it gives all images one size; set it to the "
        "shorter side of a tile in pixels, or add Resize"
    )


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        (
            {"name": "stop_sample"},
            "Compose.policy.name is 'stop_sample', expected 'default' or 'stop_epoch'",
        ),
        (POLICY | {"epoch": "3"}, f"Compose.policy.epoch is '3', {LENGTH}"),
        (
            POLICY | {"epoch": [4, 34, -1]},
            f"Compose.policy.epoch is -1, {LENGTH}",
        ),
        (
            POLICY | {"epoch": [34, 4, 60]},
            (
                "Compose.policy.epoch is [34, 4, 60], which are the epochs 34, 4, 60; "
                "they must be in ascending order"
            ),
        ),
        (
            POLICY | {"epoch": [4, 34]},
            f"Compose.policy is {POLICY | {'epoch': [4, 34]}}, {EXPECTED}",
        ),
        (
            {"name": "stop_epoch", "epoch": 3},
            f"Compose.policy is {{'name': 'stop_epoch', 'epoch': 3}}, {EXPECTED}",
        ),
        (
            {"name": "stop_epoch", "epoc": 3, "ops": []},
            "unknown key 'Compose.policy.epoc'; did you mean 'epoch'?",
        ),
        (
            POLICY | {"ops": ["RandomZoomIn"]},
            "Compose.policy.ops names 'RandomZoomIn', which is not registered; did you mean 'RandomZoomOut'?",
        ),
    ],
)
def test_policy_that_is_not_known_is_refused(policy, fault):
    with pytest.raises(ConfigError) as caught:
        create({"type": "Compose", "policy": policy})
    assert str(caught.value) == fault


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"mean": [0.5], "std": [0.5, 0.5, 0.5]},
            "Normalize: mean [0.5] and std [0.5, 0.5, 0.5] need three numbers each, std above 0",
        ),
        (
            {"mean": [0, 0, 0], "std": [1, 0, 1]},
            "Normalize: mean [0, 0, 0] and std [1, 0, 1] need three numbers each, std above 0",
        ),
    ],
)
def test_normalisation_that_divides_by_nothing_is_refused(settings, fault):
    with pytest.raises(ConfigError) as caught:
        create({"type": "Normalize", **settings})
    assert str(caught.value) == fault
