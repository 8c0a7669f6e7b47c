"""From names and settings to objects."""

import pytest
import torch

from src.core import create, register
from src.core.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("own_registry")


class Part:
    """A component that records its arguments."""

    def __init__(self, width: int = 1, depth: int = 1) -> None:
        self.width, self.depth = width, depth


@pytest.fixture
def part(own_registry):
    register()(Part)


@pytest.fixture
def whole(part):
    @register()
    class Whole:
        __inject__ = ["part", "parts"]

        def __init__(self, part=None, parts=None, name: str = "") -> None:
            self.part, self.parts, self.name = part, parts, name


@pytest.mark.usefixtures("part")
class TestPart:
    def test_name_takes_its_settings_from_the_section_of_that_name(self):
        assert create("Part", {"Part": {"width": 5}}).width == 5

    def test_name_without_a_section_is_built_with_defaults(self):
        assert create("Part").width == 1

    def test_mapping_with_a_type_is_built_with_its_own_settings_alone(self):
        part = create({"type": "Part", "depth": 3}, {"Part": {"width": 5}})
        assert (part.width, part.depth) == (1, 3)

    def test_runtime_arguments_win_over_settings(self):
        assert create("Part", {"Part": {"width": 5}}, width=7).width == 7

    def test_specification_is_not_changed(self):
        spec = {"type": "Part", "width": 2}
        create(spec)
        assert spec == {"type": "Part", "width": 2}

    def test_every_call_builds_another_object(self):
        assert create("Part") is not create("Part")

    def test_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(
            ConfigError,
            match="^'Prt' is not registered; did you mean 'Part'\\?$",
        ):
            create("Prt")

    def test_mapping_without_a_type_is_refused(self):
        with pytest.raises(
            ConfigError, match="^{'width': 2} has no 'type' that names a class$"
        ):
            create({"width": 2})

    def test_unknown_argument_is_refused(self):
        with pytest.raises(
            ConfigError,
            match="^Part cannot be built: .*unexpected keyword argument 'height'$",
        ):
            create({"type": "Part", "height": 2})


@pytest.mark.usefixtures("whole")
class TestInjection:
    def test_name_is_replaced_by_the_part_that_it_names(self):
        assert (
            create(
                "Whole", {"Whole": {"part": "Part"}, "Part": {"width": 5}}
            ).part.width
            == 5
        )

    def test_mapping_is_replaced_by_the_part_that_it_describes(self):
        assert (
            create(
                "Whole", {"Whole": {"part": {"type": "Part", "width": 4}}}
            ).part.width
            == 4
        )

    def test_list_is_replaced_by_a_list_of_parts(self):
        parts = create(
            "Whole",
            {
                "Whole": {"parts": ["Part", {"type": "Part", "width": 4}]},
                "Part": {"width": 5},
            },
        ).parts
        assert [p.width for p in parts] == [5, 4]

    def test_null_stays_null(self):
        assert create("Whole", {"Whole": {"part": None}}).part is None

    def test_finished_object_is_passed_on(self):
        part = Part()
        assert create("Whole", {}, part=part).part is part

    def test_argument_that_is_not_injected_stays_a_word(self):
        assert create("Whole", {"Whole": {"name": "Part"}}).name == "Part"

    def test_parts_are_injected_at_every_depth(self):
        nested = create(
            {
                "type": "Whole",
                "part": {
                    "type": "Whole",
                    "parts": [{"type": "Whole", "part": "Part"}],
                },
            },
            {"Part": {"depth": 9}},
        )
        assert nested.part.parts[0].part.depth == 9


class TestSharing:
    @pytest.fixture(autouse=True)
    def shared(self, own_registry):
        @register()
        class Sharing:
            __share__ = ["width"]

            def __init__(self, width: int = 1) -> None:
                self.width = width

    def test_top_level_value_reaches_the_component(self):
        assert create("Sharing", {"width": 8}).width == 8

    def test_own_value_acts_where_the_top_level_says_nothing(self):
        assert create("Sharing", {"Sharing": {"width": 3}}).width == 3

    def test_default_acts_where_nobody_says_anything(self):
        assert create("Sharing", {}).width == 1

    def test_contradiction_is_refused_with_both_values(self):
        with pytest.raises(
            ConfigError,
            match="^Sharing.width is 3 but the top level says width: 8; keep one of them$",
        ):
            create("Sharing", {"width": 8, "Sharing": {"width": 3}})


def test_load_method_is_called_after_construction():
    @register()
    class Loading:
        __load__ = "load_weights"

        def __init__(self) -> None:
            self.steps = ["built"]

        def load_weights(self) -> None:
            self.steps.append("loaded")

    assert create("Loading").steps == ["built", "loaded"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("7 is odd"),
        TypeError("7 is odd"),
        RuntimeError("7 is odd"),
        ZeroDivisionError("7 is odd"),
        AssertionError("7 is odd"),
    ],
)
def test_value_that_the_constructor_refuses_is_a_fault_of_the_configuration(
    error,
):
    @register()
    def build_odd():
        raise error

    with pytest.raises(
        ConfigError, match="^build_odd cannot be built: 7 is odd$"
    ):
        create("build_odd")


def test_expected_error_of_a_constructor_passes_through():
    @register()
    def build_from_data():
        raise DataError("labels are wrong")

    with pytest.raises(DataError, match="^labels are wrong$"):
        create("build_from_data")


def test_size_that_cannot_be_is_a_fault_of_the_configuration():
    @register()
    def build_layer(width: int):
        return torch.nn.Linear(width, 1)

    with pytest.raises(
        ConfigError,
        match="^build_layer cannot be built: .*negative dimension -3",
    ):
        create({"type": "build_layer", "width": -3})
