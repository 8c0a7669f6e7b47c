"""The list of transforms, and when each acts."""

import pytest

from src.core.build import create
from src.core.errors import ConfigError
from src.data.transforms import Compose, EmptyTransform, RandomHorizontalFlip, RandomZoomOut, Resize
from tests.fixtures.samples import plain_sample

POLICY = {"name": "stop_epoch", "epoch": 3, "ops": ["RandomZoomOut"]}


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


@pytest.mark.parametrize(("epoch", "canvas"), [(0, (12, 20)), (2, (12, 20)), (3, (6, 10)), (99, (6, 10))])
def test_named_transforms_are_left_out_from_the_stop_epoch_on(epoch, canvas):
    compose = Compose([RandomZoomOut(side_range=[2, 2], p=1)], POLICY)
    assert compose(plain_sample(6, 10), epoch).canvas == canvas


def test_other_transforms_act_in_every_epoch():
    assert Compose([Resize([5, 7])], POLICY)(plain_sample(6, 10), 99).canvas == (7, 5)


@pytest.mark.parametrize("policy", [None, {"name": "default"}, {}, POLICY | {"epoch": None}])
def test_without_a_stop_epoch_all_transforms_act_for_ever(policy):
    assert Compose([RandomZoomOut(side_range=[2, 2], p=1)], policy)(plain_sample(6, 10), 10**6).canvas == (12, 20)


def test_list_is_built_from_a_configuration():
    compose = create({"type": "Compose", "ops": [{"type": "Resize", "size": [5, 7]}, {"type": "RandomHorizontalFlip", "p": 0.25}]})
    assert ([type(op) for op in compose.ops], compose.ops[1].p) == ([Resize, RandomHorizontalFlip], 0.25)


@pytest.mark.parametrize(("ops", "size"), [([Resize([5, 7])], (5, 7)), ([RandomZoomOut()], None), ([Resize([5, 7]), EmptyTransform()], (5, 7)),
                                           ([Resize([5, 7]), Resize([8, 9])], (8, 9))])
def test_size_that_all_samples_leave_with_is_known(ops, size):
    assert Compose(ops).output_size == size


@pytest.mark.parametrize(("policy", "fault"), [
    ({"name": "stop_sample"}, "Compose.policy.name is 'stop_sample', expected 'default' or 'stop_epoch'"),
    (POLICY | {"epoch": "3"}, f"Compose.policy is {POLICY | {'epoch': '3'}}, expected epoch (a whole number, or null for never) and ops "
                              "(a list of class names)"),
    ({"name": "stop_epoch", "epoch": 3}, "Compose.policy is {'name': 'stop_epoch', 'epoch': 3}, expected epoch (a whole number, or null for never) "
                                         "and ops (a list of class names)"),
    ({"name": "stop_epoch", "epoc": 3, "ops": []}, "unknown key 'Compose.policy.epoc'; did you mean 'epoch'?"),
    (POLICY | {"ops": ["RandomZoomIn"]}, "Compose.policy.ops names 'RandomZoomIn', which is not registered; did you mean 'RandomZoomOut'?"),
])
def test_policy_that_is_not_known_is_refused(policy, fault):
    with pytest.raises(ConfigError) as caught:
        Compose([], policy)
    assert str(caught.value) == fault


@pytest.mark.parametrize(("settings", "fault"), [
    ({"mean": [0.5], "std": [0.5, 0.5, 0.5]}, "Normalize: mean [0.5] and std [0.5, 0.5, 0.5] need three numbers each, std above 0"),
    ({"mean": [0, 0, 0], "std": [1, 0, 1]}, "Normalize: mean [0, 0, 0] and std [1, 0, 1] need three numbers each, std above 0")])
def test_normalisation_that_divides_by_nothing_is_refused(settings, fault):
    with pytest.raises(ConfigError) as caught:
        create({"type": "Normalize", **settings})
    assert str(caught.value) == fault
