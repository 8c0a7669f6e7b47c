"""Importing timm without torch's compiler; each case in a process of its own."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from src.runtime.quick_imports import collector_paused

ROOT = Path(__file__).resolve().parents[2]


def output_of(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def imported() -> list[str]:
    """Lines of a process that imports timm, and uses the compiler afterwards."""
    return output_of(
        """
import sys
from src.runtime.quick_imports import import_timm
import_timm()
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
import timm
import torch
import torchvision
print(len(timm.list_models()) > 1000)
print(torchvision.ops.roi_align.__module__)
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
print(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).sum().item())
print(type(torch._dynamo).__name__, torch._dynamo.__name__)
iterator = timm.models.naflexvit.NaFlexRopeIterator
print(iterator.__next__.__name__)
print(torch.compile(torch.nn.Linear(2, 1), backend="eager")(torch.ones(1, 2)).shape)
"""
    ).splitlines()


def test_the_compiler_is_not_loaded(imported):
    assert imported[0] == "False False"


def test_timm_and_torchvision_are_complete(imported):
    assert imported[1] == "True"
    assert imported[2] == "torchvision.ops.roi_align"
    assert imported[3] == "4.0"


def test_the_compiler_can_be_used_afterwards(imported):
    assert imported[4] == "module torch._dynamo"
    assert imported[5] == "__next__"
    assert imported[6] == "torch.Size([1, 1])"


@pytest.mark.slow
def test_another_name_of_the_compiler_loads_it():
    lines = output_of(
        """
import sys
import torch
from src.runtime.quick_imports import without_compiler
with without_compiler():
    from torch._dynamo.utils import is_compile_supported, counters
    import torch._dynamo.config
    print(type(sys.modules["torch._dynamo"]).__name__)
    print(type(counters).__name__, is_compile_supported("meta"))
print(type(sys.modules["torch._dynamo"]).__name__)
"""
    ).splitlines()
    assert lines == ["module", "defaultdict False", "module"]


@pytest.mark.slow
def test_a_compiler_that_is_loaded_stays():
    lines = output_of(
        """
import sys
import torch._dynamo as loaded
from src.runtime.quick_imports import without_compiler
with without_compiler():
    print(sys.modules["torch._dynamo"] is loaded)
print(sys.modules["torch._dynamo"] is loaded)
"""
    ).splitlines()
    assert lines == ["True", "True"]


def test_the_first_prediction_does_not_load_the_compiler():
    lines = output_of(
        """
import sys
import numpy as np
from src import Detector
path = "tests/fixtures/trained_tiny.pth"
detector = Detector.from_checkpoint(path, device="cpu")
detector.predict(np.zeros((64, 64, 3), np.uint8))
print(sorted({"timm", "torch._dynamo"} & sys.modules.keys()))
"""
    ).splitlines()
    assert lines[-1] == "['timm']"


def test_the_collector_runs_again_after_a_pause_unless_it_was_disabled():
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
