"""Models, training steps and whole runs on a real GPU, compared with the CPU; skipped without one.

    pytest tests/gpu

`tests/pretend_gpu` runs the same code without a GPU; here it is the arithmetic of the GPU that is tested.
"""

import json
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch

from src.core import YAMLConfig
from src.inference import Detector
from src.runtime.precision import full_float32
from src.solver.det_engine import seed_step
from tests.fixtures.commands import write_tiny_config
from tests.fixtures.tiny import ROOT, write_tiny_data
from tests.fixtures.trained_tiny import TRAINED
from tests.pretend_gpu.scenarios import (
    make_batch,
    make_step,
    pinned,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no GPU"
)

MODELS = (  # with random weights
    "dfine/dfine_dinov3_s_coco",
    "dfine/dfine_dinov3_s2_coco",
    "dfine/dfine_dinov3_s2_windows_coco",
    "dfine/dfine_dinov3_t_coco",
    "dfine/dfine_hgnetv2_s_coco",
    "deimv2/deimv2_hgnetv2_atto_coco",
    "deimv2/deimv2_dinov3_s_coco",
)

TRAINED_MODELS = MODELS[:5]

SYNCHRONIZING = {"src/runtime/distributed.py", "src/zoo/dfine/matcher.py"}
"""Files that synchronize host and device in a step, as in `tests/pretend_gpu/test_steps.py`."""


def configuration(name, size):
    """Return a configuration with random weights for square images."""
    cfg = YAMLConfig(
        f"configs/{name}.yml", eval_spatial_size=[size, size], num_classes=80
    )
    cfg.without_pretrained()
    return cfg


def relative_error(value, reference) -> float:
    value, reference = value.double().cpu(), reference.double().cpu()
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("name", MODELS)
def test_a_deployed_model_computes_the_maps_of_the_cpu(name):
    cfg = configuration(name, 320)
    torch.manual_seed(0)
    model = cfg.model.deploy().eval()
    images = torch.rand(2, 3, 320, 320)
    with torch.inference_mode(), full_float32():
        expected = model.encoder(model.backbone(images))
        model.cuda()
        found = model.encoder(model.backbone(images.cuda()))
    for here, there in zip(found, expected, strict=True):
        assert relative_error(here, there) < 1e-4


def test_the_doctor_finds_no_fault():
    ended = subprocess.run(
        [sys.executable, "tools/doctor.py", "-d", "cuda"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "on CPU and cuda:0" in ended.stdout


def losses_of_steps(name, amp, steps, batch=4, size=320):
    """Return the sum of the losses of some training steps."""
    step = make_step(
        configuration(name, size), torch.device("cuda", 0), amp=amp
    )
    sums = []
    for number in range(steps):
        seed_step(0, number)
        images, targets = make_batch([7] * batch, size, num_classes=80)
        losses = step(number, [pinned(images, targets)])
        sums.append(float(sum(losses.values())))
    return sums


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_losses_in_bf16_are_close_to_those_in_float32(name):
    exact = losses_of_steps(name, amp=False, steps=1)
    rounded = losses_of_steps(name, amp=True, steps=1)
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_a_step_synchronizes_host_and_device_at_two_known_places(name):
    step = make_step(
        configuration(name, 320), torch.device("cuda", 0), amp=True
    )
    batches = []
    for _ in range(4):
        batches.append([pinned(*make_batch([7] * 4, 320, num_classes=80))])
    for number in range(3):
        step(number, batches[number])
    places = []

    def note(message, *_, **__):
        if "called a synchronizing" in str(message):
            places.append(place_in_project())

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(3, batches[3])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    files = {place.partition(":")[0] for place in places}
    assert files <= SYNCHRONIZING, places
    assert 0 < len(places) <= 2, places


def place_in_project() -> str:
    """Return the innermost line of `src` that is being executed."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT / "src"):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "outside of src"


def test_a_detector_finds_the_boxes_of_the_cpu():
    seed_step(0, 0)
    image = (torch.rand(64, 64, 3) * 255).byte().numpy()
    boxes = {}
    for name in ("cpu", "cuda"):
        detector = Detector.from_checkpoint(TRAINED, device=name)
        boxes[name] = detector.predict(image, threshold=0.1).boxes.tolist()
    assert len(boxes["cuda"]) == len(boxes["cpu"]) > 0
    for here, there in zip(boxes["cuda"], boxes["cpu"], strict=True):
        assert here == pytest.approx(there, abs=0.05)


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """Eight training and four validation scenes."""
    return write_tiny_data(tmp_path_factory.mktemp("data"), train=8, val=4)


RUNS = {
    "float32": ({"use_amp": False}, False),
    "mixed precision": ({"use_amp": True}, False),
    "a compiled backbone": ({"use_amp": True, "compile": "backbone"}, False),
    "torchrun": ({"use_amp": True}, True),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_trains_evaluates_and_resumes(kind, small_data, tmp_path):
    settings, under_torchrun = RUNS[kind]
    settings = {"train_dataloader": {"total_batch_size": 4}, **settings}
    config = write_tiny_config(tmp_path, small_data, **settings)
    launcher = [sys.executable]
    if under_torchrun:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node=1"]
    command = [
        *launcher,
        "train.py",
        "-c",
        str(config),
        "--seed=1",
        "-r",
        "auto",
    ]
    for more in (["-u", "epochs=1"], ["--override"]):
        ended = subprocess.run(
            [*command, *more],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
