"""The table of everything that a configuration can name."""

from typing import Literal

import pytest

from src.core import register
from src.core.errors import ConfigError
from src.core.registry import (
    REQUIRED,
    Argument,
    arguments_of,
    find,
    names,
    shared_names,
)

pytestmark = pytest.mark.usefixtures("own_registry")


def test_class_is_registered_under_its_own_name():
    @register()
    class Shiny:
        pass

    assert find("Shiny").factory is Shiny


def test_class_is_registered_without_parentheses_too():
    @register
    class Shiny:
        pass

    assert find("Shiny").factory is Shiny


def test_class_is_registered_under_another_name():
    @register("Bright")
    class Shiny:
        pass

    assert (find("Bright").factory, find("Shiny")) == (Shiny, None)


def test_function_is_registered():
    @register()
    def build_shiny(width: int = 3):
        return width

    assert find("build_shiny").arguments == {"width": Argument(3, int)}


def test_registration_returns_the_class_itself():
    class Shiny:
        pass

    assert register()(Shiny) is Shiny


def test_registered_names_are_sorted():
    assert names() == sorted(names())
    assert "DFINE" in names()


def test_name_taken_by_another_class_is_refused_with_both_places():
    def make():
        class Other:
            pass

        return Other

    other = make()
    other.__qualname__ = "Other"
    register("Shiny")(other)

    with pytest.raises(ConfigError) as caught:

        @register()
        class Shiny:
            pass

    assert str(caught.value) == (
        f"'Shiny' is registered by {other.__module__}.Other already; "
        f"rename {__name__}.test_name_taken_by_another_class_is_refused_with_both_places.<locals>.Shiny"
    )


def test_name_may_be_taken_over_by_force():
    register("Shiny")(type("First", (), {}))
    second = register("Shiny", force=True)(type("Second", (), {}))
    assert find("Shiny").factory is second


def test_same_class_may_be_registered_again_as_by_a_reloaded_module():
    register("Shiny")(
        type("Same", (), {"__module__": "m", "__qualname__": "Same"})
    )
    again = register("Shiny")(
        type("Same", (), {"__module__": "m", "__qualname__": "Same"})
    )
    assert find("Shiny").factory is again


def test_arguments_carry_defaults_and_types():
    @register()
    class Shiny:
        def __init__(
            self,
            width: int,
            kind: Literal["a", "b"] = "a",
            other=None,
            *args,
            key: float = 1.0,
            **kwargs,
        ) -> None:
            pass

    assert find("Shiny").arguments == {
        "width": Argument(REQUIRED, int),
        "kind": Argument("a", Literal["a", "b"]),
        "other": Argument(None, arguments_of(lambda x: x)["x"].annotation),
        "key": Argument(1.0, float),
    }


def test_annotation_that_cannot_be_resolved_counts_as_anything():
    def build(width: "NoSuchType", height: int = 1):  # noqa: F821
        pass

    arguments = arguments_of(build)
    assert (
        arguments["width"].annotation.__name__,
        arguments["height"].annotation,
    ) == (
        "Any",
        int,
    )


def test_extra_arguments_are_listed():
    def build(width: int, **settings):
        pass

    build.__extra_arguments__ = lambda: {"depth": Argument(2, int)}
    register()(build)
    assert (set(find("build").arguments), find("build").accepts_anything) == (
        {"width", "depth"},
        False,
    )


def test_constructor_with_open_keywords_accepts_anything():
    @register()
    class Shiny:
        def __init__(self, **kwargs):
            pass

    assert find("Shiny").accepts_anything


def test_supplied_argument_can_be_left_out_of_the_list():
    assert set(arguments_of(lambda model, width=1: None, skip="model")) == {
        "width"
    }


def test_shared_argument_is_known_at_the_top_level():
    @register()
    class Shiny:
        __share__ = ["brightness"]

        def __init__(self, brightness: int = 3) -> None:
            pass

    assert "brightness" in shared_names()


@pytest.mark.parametrize("signature", ["brightness", "width=1"])
def test_shared_argument_without_a_default_is_refused(signature):
    scope = {}
    exec(
        f"class Shiny:\n    __share__ = ['brightness']\n    def __init__(self, {signature}): pass",
        scope,
    )
    with pytest.raises(
        ConfigError,
        match="^Shiny.brightness is in __share__, so it needs a default in the constructor$",
    ):
        register()(scope["Shiny"])


@pytest.mark.parametrize(
    "name",
    [
        "DFINE",
        "HybridEncoder",
        "DFINETransformer",
        "DFINECriterion",
        "HungarianMatcher",
        "DFINEPostProcessor",
        "HGNetv2",
        "DINOv3Backbone",
        "CocoDetection",
        "CocoEvaluator",
        "DataLoader",
        "BatchImageCollateFunction",
        "Compose",
        "ModelEMA",
        "LinearWarmup",
        "GradScaler",
        "AdamW",
        "Adam",
        "SGD",
        "MultiStepLR",
        "CosineAnnealingLR",
        "OneCycleLR",
        "RandomPhotometricDistort",
        "RandomZoomOut",
        "RandomIoUCrop",
        "RandomHorizontalFlip",
        "RandomCrop",
        "Resize",
        "Normalize",
        "SanitizeBoundingBoxes",
        "PadToSize",
        "ConvertPILImage",
        "ConvertBoxes",
        "EmptyTransform",
    ],
)
def test_name_that_users_write_is_registered(name):
    assert find(name) is not None
