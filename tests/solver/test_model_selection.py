import pytest
import torch

from src.core.errors import NumericsError
from src.solver.model_selection import BestModel, require_ap

WEIGHTS = {"w": torch.ones(2)}


def test_the_first_evaluation_is_the_best_even_at_zero():
    assert BestModel().consider(0, {"AP": 0.0}, WEIGHTS, stage=1)


def test_an_equal_score_is_no_better():
    best = BestModel()
    best.consider(0, {"AP": 0.3}, WEIGHTS, stage=1)
    assert not best.consider(1, {"AP": 0.3}, WEIGHTS, stage=1)
    assert best.epoch == 0


def test_weights_of_stage_one_are_copies():
    best, weights = BestModel(), {"w": torch.ones(2)}
    best.consider(0, {"AP": 0.3}, weights, stage=1)
    weights["w"].zero_()
    assert best.stage_one_weights["w"].tolist() == [1, 1]


def test_stage_two_keeps_no_weights():
    best = BestModel()
    best.consider(0, {"AP": 0.3}, WEIGHTS, stage=1)
    best.consider(1, {"AP": 0.4}, WEIGHTS, stage=2)
    assert best.stage_one_weights == {}


def test_state_survives_a_round_trip():
    best, copy = BestModel(), BestModel()
    best.consider(4, {"AP": 0.3}, WEIGHTS, stage=1)
    copy.load_state_dict(best.state_dict())
    assert (copy.score, copy.epoch, list(copy.stage_one_weights)) == (
        0.3,
        4,
        ["w"],
    )


@pytest.mark.parametrize("undefined", [None, float("nan")])
def test_an_undefined_score_is_never_better_and_any_score_is_better_than_it(
    undefined,
):
    best = BestModel("AP_large")
    assert best.consider(0, {"AP_large": undefined}, WEIGHTS, stage=1)
    assert best.score is None and best.epoch == 0
    assert not best.consider(1, {"AP_large": undefined}, WEIGHTS, stage=1)
    assert best.consider(2, {"AP_large": 0.0}, WEIGHTS, stage=1)
    assert not best.consider(3, {"AP_large": undefined}, WEIGHTS, stage=1)
    assert (best.score, best.epoch) == (0.0, 2)


def test_a_forgotten_score_makes_the_next_one_the_best():
    best = BestModel()
    best.consider(0, {"AP": 0.9}, WEIGHTS, stage=1)
    best.forget()
    assert best.stage_one_weights == {}
    assert best.consider(1, {"AP": 0.1}, WEIGHTS, stage=1)


@pytest.mark.parametrize("score", [0.5, 0.51])
def test_an_ap_that_reaches_the_minimum_is_accepted(score):
    require_ap({"AP": score}, 0.5)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (0.4999, "AP is 0.4999, but --min-ap requires at least 0.5: train"),
        (None, "AP is not defined, but --min-ap requires at least 0.5"),
        (float("nan"), "AP is not defined"),
    ],
)
def test_an_ap_below_the_minimum_is_an_error(score, message):
    with pytest.raises(NumericsError, match=message):
        require_ap({"AP": score}, 0.5)
