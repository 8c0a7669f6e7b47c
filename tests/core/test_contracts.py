"""The shapes of what packages hand to each other."""

from torch import nn

from src.core.contracts import Deployable, Target


class Lean(nn.Module):
    def convert_to_deploy(self) -> None:
        pass


def test_module_with_a_leaner_form_is_deployable():
    assert isinstance(Lean(), Deployable)


def test_module_without_one_is_not():
    assert not isinstance(nn.Linear(1, 1), Deployable)


def test_target_names_what_the_criterion_needs():
    assert {"boxes", "labels"} <= Target.__annotations__.keys()
