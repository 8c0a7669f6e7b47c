"""CPU time of the first prediction in a new process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .figures import CPU_SECONDS, Figure, Settings

CONFIG = "dfine/dfine_dinov3_s_coco.yml"
CLASSES = 80
RUNS = 3
"""Measured processes; the least CPU time counts."""


def measure(settings: Settings) -> Iterator[Figure]:
    """Measure processes that import the package, open a checkpoint and predict one image."""
    path = settings.folder / "start.pth"
    write_checkpoint(path, CONFIG)
    runs = min(RUNS, settings.repeats)
    first_prediction_seconds(path)  # fills the file cache
    seconds = min(first_prediction_seconds(path) for _ in range(runs))
    work = "first prediction in a new process, DINOv3-S"
    yield Figure(8, work, seconds, CPU_SECONDS, target=5.5, seconds=seconds)


def write_checkpoint(path: Path, config: str) -> None:
    """Write a checkpoint with random weights and its configuration, as a training writes it.

    Args:
        path: file to write.
        config: path of the configuration within the package's configurations.
    """
    import torch

    from ...core import YAMLConfig
    from ...core.package_configs import configs_folder
    from ...runtime.weight_files import write_tensor_file

    cfg = YAMLConfig(str(configs_folder() / config))
    cfg.without_pretrained()
    cfg.set("num_classes", CLASSES, "the measurement")
    torch.manual_seed(0)
    classes = [{"id": i, "name": str(i)} for i in range(CLASSES)]
    meta = {"config": cfg.to_yaml(), "classes": classes}
    write_tensor_file(path, {"model": cfg.model.state_dict(), "meta": meta})


def first_prediction_seconds(path: Path) -> float:
    """Return the CPU time of a process that predicts one image with a checkpoint."""
    package = __name__.split(".")[0]
    code = (
        "import sys, numpy\n"
        f"from {package} import Detector\n"
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "detector = Detector.from_checkpoint(sys.argv[1], device='cpu')\n"
        "detector.predict(numpy.zeros((480, 640, 3), numpy.uint8))\n"
    )
    root = Path(__file__).resolve().parents[3]
    paths = f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user = after.ru_utime - before.ru_utime
    return user + after.ru_stime - before.ru_stime
