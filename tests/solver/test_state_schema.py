"""A damaged training state is refused with one clear message, whatever the damage."""

import copy
import re

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
        CheckpointError, match=f"^last.pth: the content has no {key}; "
    ):
        check_state("last.pth", state)


NAN = float("nan")
WEIGHT = {"w": torch.ones(1)}
DIGESTS = torch.ones(2, dtype=torch.int64)
SCALER = {
    "scale": 65536.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 0,
}
METER = {
    "names": ["loss"],
    "total": torch.ones(1),
    "steps": 1,
    "images": 2,
    "waited": 0.0,
    "seconds": 1.0,
}
BEST = {"score": 0.1, "epoch": 1, "stage_one_weights": {}}


def test_states_of_a_scaler_and_a_meter_pass():
    check_state("last.pth", small_state() | {"scaler": SCALER, "meter": METER})
    check_state("last.pth", small_state() | {"scaler": {}, "best": BEST})


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("progress", [0, 1], "progress"),
        (
            "progress",
            {"epoch": 0, "step": -5, "total_steps": 1},
            "progress.step",
        ),
        ("progress", {"epoch": "0", "step": 0}, "progress.epoch"),
        ("progress", {"epoch": 1.5, "step": 0}, "progress.epoch"),
        ("progress", {"epoch": 10**30, "step": 0}, "progress.epoch"),
        ("progress", {"epoch": 1, "step": 5, "total_steps": 2}, "progress"),
        ("progress", {"step": 1}, "progress has no epoch"),
        ("seed", None, "seed"),
        ("seed", True, "seed"),
        ("seed", 2**63, "seed"),
        ("model", {"w": 1}, "model.w"),
        ("model", {1: torch.ones(1)}, "model has the key 1"),
        ("ema", {"module": {}}, "ema has no updates"),
        ("ema", [], "ema"),
        ("ema", {"module": WEIGHT, "updates": -1}, "ema.updates"),
        ("ema", {"module": WEIGHT, "updates": 1, "decay": 2.0}, "ema.decay"),
        (
            "ema",
            {"module": WEIGHT, "updates": 1, "configured_decay": 0.9},
            "ema",
        ),
        ("optimizer", {}, "optimizer has no state"),
        (
            "optimizer",
            {"state": {}, "param_groups": [{}]},
            "optimizer.param_groups[0] has no params",
        ),
        (
            "optimizer",
            {"state": {0: {"exp_avg": "x"}}, "param_groups": []},
            "optimizer",
        ),
        (
            "optimizer",
            {"state": {"a": {}}, "param_groups": []},
            "optimizer.state has the key 'a'",
        ),
        ("distillation", {"weight": 5.0}, "distillation has no projector"),
        (
            "distillation",
            {"projector": WEIGHT, "weight": 0.0},
            "distillation.weight",
        ),
        (
            "distillation",
            {"projector": WEIGHT, "weight": 5.0, "share_sum": NAN},
            "distillation.share_sum",
        ),
        ("scaler", 3, "scaler"),
        ("scaler", SCALER | {"scale": 0.0}, "scaler.scale"),
        ("scaler", SCALER | {"scale": NAN}, "scaler.scale"),
        ("scaler", SCALER | {"growth_interval": 0}, "scaler.growth_interval"),
        ("scaler", {"scale": 1.0}, "scaler has no growth_factor"),
        ("guard", {"in_a_row": None, "in_epoch": 0}, "guard.in_a_row"),
        ("best", BEST | {"score": float("inf")}, "best.score"),
        ("best", BEST | {"epoch": "1"}, "best.epoch"),
        (
            "best",
            BEST | {"stage_one_weights": {"w": 0}},
            "best.stage_one_weights.w",
        ),
        ("best", {"score": 0.1}, "best has no epoch"),
        ("meta", {"config": 1, "classes": []}, "meta."),
        ("meta", {"config": "epochs: 1"}, "meta has no classes"),
        ("world_size", 0, "world_size"),
        ("world_size", "2", "world_size"),
        ("first_loss", NAN, "first_loss"),
        ("explained", "yes", "explained"),
        ("effective_batch_size", 0, "effective_batch_size"),
        ("unreadable", ["a.jpg"], "unreadable[0]"),
        ("unreadable", [-1], "unreadable[0]"),
        ("data", {"train": {}}, "data.train has no names"),
        (
            "data",
            {
                "train": {
                    "names": torch.ones(1),
                    "labels": DIGESTS,
                    "classes": [],
                }
            },
            "data.train",
        ),
        (
            "data",
            {"train": {"names": DIGESTS[:1], "labels": DIGESTS, "classes": []}},
            "data.train",
        ),
        (
            "data",
            {"train": {"names": DIGESTS, "labels": DIGESTS, "classes": [[1]]}},
            "data.train.classes[0]",
        ),
        ("meter", 3, "meter"),
        ("meter", METER | {"seconds": -1.0}, "meter.seconds"),
        ("meter", METER | {"total": torch.ones(2)}, "meter"),
        ("meter", METER | {"steps": 0}, "meter"),
        (
            "meter",
            METER | {"boxes_lost": {"Crop": -1}},
            "meter.boxes_lost.Crop",
        ),
    ],
    ids=str,
)
def test_an_odd_value_is_refused_with_its_key(key, value, place):
    with pytest.raises(CheckpointError, match=f"^last.pth: {re.escape(place)}"):
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
