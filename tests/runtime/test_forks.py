"""A forked process can predict, or ends with the reason why not, and never waits for its parent's threads."""

import os
import subprocess
import sys

import pytest

from src.core.errors import ConfigError
from src.inference import Detector
from src.inference.exported_engines import ExportedEngine
from tests.fixtures.tiny import ROOT
from tests.fixtures.trained_tiny import TRAINED

SECONDS = 60
"""A child that has not predicted by then is ended by SIGALRM; on an idle machine it takes a second."""

SCRIPT = f"""
import os, signal, sys
import numpy as np
import torch
torch.set_num_threads(2)
from src.inference import Detector

def loaded():
    return Detector.from_checkpoint("{TRAINED}", device="cpu")

def boxes(detector):
    scene = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
    found = detector.predict([scene] * 8, threshold=0)
    assert all(len(one) == 20 for one in found)
    return found[0].boxes

detector = loaded()
expected = boxes(detector)
child = os.fork()
if not child:
    signal.alarm({SECONDS})
    if sys.argv[1] == "its own detector":
        detector = loaded()
    np.testing.assert_allclose(boxes(detector), expected, atol=0.01)
    boxes(detector)
    print("threads:", torch.get_num_threads(), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
boxes(detector)
print("threads of the parent:", torch.get_num_threads())
"""


@pytest.mark.parametrize(
    "detector", ["its parent's detector", "its own detector"]
)
def test_child_of_a_process_that_used_threads_predicts(detector):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, detector],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert result.returncode == 0, result.stderr
    assert "threads: 1\nthreads of the parent: 2" in result.stdout
    assert result.stderr.count("torch computes on 1 thread instead of 2") == 1


class Exported(ExportedEngine):
    """Stands for a runtime with threads of its own."""

    def _compute(self, images, sizes):
        raise AssertionError("computed")


def test_exported_model_of_the_parent_is_refused(monkeypatch):
    loaded = Detector.from_checkpoint(TRAINED, device="cpu")
    detector = Detector.from_parts(
        Exported(), loaded.preprocessing, loaded.classes
    )
    parent = os.getpid()
    monkeypatch.setattr("src.inference.detector.os.getpid", lambda: parent + 1)
    with pytest.raises(
        ConfigError, match="create the Detector in each process"
    ):
        detector.predict(str(ROOT / "docs/images/demo.jpg"))
