"""Lengths of a configuration, found by the types of arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict

import pytest

from src.core.build import create
from src.core.durations import (
    EpochLength,
    LengthUnit,
    LoaderEpochLength,
    RunLength,
    StepLength,
)
from src.core.errors import ConfigError
from src.core.lengths import (
    lengths_of,
    resolve_lengths,
    with_lengths,
)
from src.core.registry import register
from tests.fixtures.config_files import config_from
from tests.fixtures.lengths import resolve_specification

RUN = RunLength(epochs=20, steps_per_epoch=100)


class When(TypedDict, total=False):
    name: str
    epoch: EpochLength | list[EpochLength | None] | None


@pytest.fixture
def parts(own_registry):
    """Register a part with lengths of every kind, and a whole that takes it."""

    @register()
    class Part:
        def __init__(
            self,
            stop: EpochLength | None = None,
            ramp: StepLength = 7,
            half: Annotated[int, LengthUnit("epochs", default=0.5)] = 0,
            plan: Sequence[tuple[EpochLength, int]] = (),
            when: When | None = None,
            width: float = 1.0,
        ) -> None:
            self.settings = {
                "stop": stop,
                "ramp": ramp,
                "half": half,
                "plan": plan,
                "when": when,
            }
            self.width = width

    @register()
    class Limited:
        def __init__(
            self,
            ramp: StepLength,
            end: Annotated[int, LengthUnit("epochs", default=1.0)],
        ) -> None:
            self.ramp, self.end = ramp, end

        @staticmethod
        def __resolve_lengths__(
            settings: Mapping[str, Any], run: RunLength
        ) -> dict[str, Any]:
            return {
                "ramp": min(
                    run.in_steps(settings["ramp"], "ramp"), run.steps // 10
                )
            }

    @register()
    class Whole:
        __inject__ = ["part", "others"]

        def __init__(self, part: Part, others: list[Any] | None = None) -> None:
            self.part, self.others = part, others


@pytest.mark.parametrize(
    ("value", "annotation", "found"),
    [
        (0.5, EpochLength, [((), 0.5)]),
        (None, EpochLength | None, []),
        (
            [0.1, None, 3],
            Sequence[EpochLength | None],
            [((0,), 0.1), ((2,), 3)],
        ),
        (
            [[0.1, 4], ["5 %", 6]],
            Sequence[tuple[EpochLength, int]],
            [((0, 0), 0.1), ((1, 0), "5 %")],
        ),
        (100.0, float | Sequence[tuple[EpochLength, float]], []),
        ({"name": "a", "epoch": 0.9}, When, [(("epoch",), 0.9)]),
        (
            {"epoch": [1, None, 0.9]},
            When | None,
            [(("epoch", 0), 1), (("epoch", 2), 0.9)],
        ),
        (0.5, float, []),
        ([0.5], list[float], []),
    ],
)
def test_lengths_are_found_by_type_wherever_they_stand(
    value, annotation, found
):
    assert [
        (path, length) for path, length, _ in lengths_of(value, annotation)
    ] == found


def test_every_length_of_a_component_becomes_a_whole_number(parts):
    written = {
        "type": "Part",
        "stop": 0.9,
        "ramp": "2 epochs",
        "plan": [[0.1, 1], ["500 steps", 2]],
        "when": {"epoch": [0, 0.5, None]},
        "width": 0.5,
    }
    resolved = resolve_specification(written, RUN)
    assert resolved == {
        "type": "Part",
        "stop": 18,
        "ramp": 200,
        "half": 10,
        "plan": [[2, 1], [5, 2]],
        "when": {"epoch": [0, 10, None]},
        "width": 0.5,
    }
    assert written["plan"] == [[0.1, 1], ["500 steps", 2]]


def test_lengths_of_injected_parts_are_found_in_their_sections_and_in_place(
    parts,
):
    values = {
        "Whole": {"part": "Part", "others": [{"type": "Part", "stop": 0.5}]},
        "Part": {"stop": 0.9},
        "block": {"type": "Limited", "ramp": 0.05},
    }
    resolved = with_lengths(values, resolve_lengths(values, RUN, ["block"]))
    assert (
        resolved["Part"]["stop"],
        resolved["Whole"]["others"][0]["stop"],
    ) == (
        18,
        10,
    )
    assert resolved["block"] == {"type": "Limited", "ramp": 100, "end": 20}


def test_a_named_part_without_a_section_gets_the_lengths_that_follow_the_run(
    parts,
):
    values = {"Whole": {"part": "Part"}}
    assert with_lengths(values, resolve_lengths(values, RUN))["Part"] == {
        "half": 10
    }


def test_a_class_may_state_rules_about_its_lengths(parts):
    assert (
        resolve_specification({"type": "Limited", "ramp": 1000}, RUN)["ramp"]
        == 200
    )


@pytest.mark.parametrize("end", [None, 1.0, "20 epochs"])
def test_null_stands_for_the_fraction_of_the_run_that_the_type_names(
    parts, end
):
    assert (
        resolve_specification({"type": "Limited", "ramp": 3, "end": end}, RUN)[
            "end"
        ]
        == 20
    )


def test_without_a_number_of_steps_a_length_that_needs_it_keeps_the_default_and_says_why(
    parts,
):
    (length,) = [
        found
        for found in resolve_lengths(
            {"Part": {"stop": "500 steps", "half": 3}}, RunLength(20)
        )
        if found.unknown
    ]
    assert (length.path, length.written, length.value) == (
        ("Part", "stop"),
        "500 steps",
        None,
    )
    assert length.unknown == (
        "Part.stop is '500 steps', but the number of steps in an epoch is known only after the data are read"
    )


def test_a_length_that_depends_on_the_run_is_not_built_without_one(parts):
    with pytest.raises(ConfigError) as caught:
        create({"type": "Part", "plan": [[0.5, 1]]})
    assert (
        str(caught.value)
        == "Part.plan is 0.5, which depends on the length of the run; expected an integer number of epochs"
    )


def test_a_text_in_the_unit_of_the_argument_needs_no_run(parts):
    assert create({"type": "Part", "stop": "5 epochs"}).settings["stop"] == 5


def test_written_and_whole_number_stand_side_by_side(parts):
    values = {
        "Part": {"stop": 0.9, "ramp": 3, "half": "1 epoch"},
        "block": {"type": "Limited", "ramp": 1000},
    }
    assert [
        str(length) for length in resolve_lengths(values, RUN, ["block"])
    ] == [
        "Part.stop: 0.9 -> 18 epochs",
        "Part.half: 1 epoch -> 1 epoch",
        "block.end: 1.0 -> 20 epochs",
        "block.ramp: 1000 -> 200 steps",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "ema: {type: ModelEMA, start: soon}\n",
            "ema.start is 'soon', expected an integer number of steps, a fraction of the run",
        ),
        (
            "lr_scheduler: {type: MultiStepLR, milestones: [3, 1.5]}\n",
            "lr_scheduler.milestones[1] is 1.5, expected an integer number of epochs",
        ),
        (
            "BatchImageCollateFunction: {stop_epoch: 500 steps}\n",
            "BatchImageCollateFunction.stop_epoch is '500 steps', "
            "but the data are built before the number of steps is known; "
            "give it in epochs or as a fraction of the run (config.yml:1)",
        ),
    ],
)
def test_an_invalid_length_is_a_fault_of_the_configuration(
    tmp_path, text, fault
):
    with pytest.raises(ConfigError) as caught:
        config_from(tmp_path, text)
    assert fault in str(caught.value).replace(f"{tmp_path}/", "")


def test_type_of_a_loaders_length_says_that_it_is_needed_before_the_data():
    ((_, _, unit),) = lengths_of(0.9, LoaderEpochLength)
    assert unit.before_data
