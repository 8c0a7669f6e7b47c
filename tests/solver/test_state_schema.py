"""A damaged training state is refused with one clear message, whatever the damage."""

import copy

import pytest
import torch

from src.core.errors import CheckpointError
from src.solver.state_schema import check_optimizer_state, check_state
from tests.fixtures.states import small_state


def test_a_whole_state_passes():
    check_state("last.pth", small_state())
    identity = {
        "names": torch.tensor([1]),
        "labels": torch.tensor([2]),
        "classes": [[1, "cat"]],
    }
    check_state(
        "last.pth",
        small_state()
        | {
            "data": {"train": identity},
            "unreadable": [3],
            "first_loss": 2.5,
            "explained": True,
        },
    )


@pytest.mark.parametrize("key", small_state())
def test_a_part_that_is_missing_is_named(key):
    state = small_state()
    del state[key]
    with pytest.raises(
        CheckpointError, match=f"^last.pth: the training state has no {key}; "
    ):
        check_state("last.pth", state)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("progress", [0, 1]),
        ("progress", {"epoch": 0, "step": -5, "total_steps": 1}),
        ("progress", {"epoch": "0", "step": 0}),
        ("progress", {"step": 1}),
        ("seed", None),
        ("seed", True),
        ("model", {"w": 1}),
        ("ema", {"module": {}}),
        ("ema", []),
        ("optimizer", {}),
        ("optimizer", {"state": {}, "param_groups": [{}]}),
        ("guard", {"in_a_row": None, "in_epoch": 0}),
        ("best", {"score": float("inf"), "epoch": 1, "stage_one_weights": {}}),
        ("best", {"score": 0.1, "epoch": "1", "stage_one_weights": {}}),
        ("best", {"score": 0.1}),
        ("meta", {"config": 1, "classes": []}),
        ("world_size", 0),
        ("unreadable", ["a.jpg"]),
        ("data", {"train": {}}),
        (
            "data",
            {
                "train": {
                    "names": torch.ones(1),
                    "labels": torch.ones(1),
                    "classes": [],
                }
            },
        ),
        ("meter", 3),
    ],
    ids=str,
)
def test_a_part_of_another_kind_is_named(key, value):
    with pytest.raises(
        CheckpointError,
        match=f"^last.pth: {key} of the training state is damaged: ",
    ):
        check_state("last.pth", small_state() | {key: value})


def test_tensors_of_an_optimizer_have_the_shapes_of_their_parameters():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    check_optimizer_state("last.pth", state, [weight])
    state["state"][0]["exp_avg"] = torch.zeros(7)
    with pytest.raises(
        CheckpointError,
        match=r"exp_avg of the optimizer's parameter 0 has the shape \[7\], expected \[3, 2\]",
    ):
        check_optimizer_state("last.pth", state, [weight])
