"""Functions that tests run on pretended GPUs through `Host.call`."""

from __future__ import annotations

import errno
import functools
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import timm  # noqa: F401  imported before forks
import torch
from torch import Tensor, nn
from torch.multiprocessing import reductions

from src.core import YAMLConfig, create
from src.core.contracts import Detections
from src.core.durations import RunLength
from src.core.errors import ConfigError, NumericsError
from src.data.evaluation import CocoEvaluator
from src.inference import Detector
from src.runtime.distributed import join_group, pick_device, world_size
from src.runtime.sync_batch_norm import synchronize_batch_norms
from src.solver.building import amp_dtype_of_run
from src.solver.det_engine import seed_step
from src.solver.numerics import NumericsGuard
from src.solver.phases import Phases
from src.solver.training_step import TrainStep
from tests.fixtures.tiny import tiny_config
from tests.fixtures.trained_tiny import TRAINED
from tests.pretend_gpu.device import PretendedGpu

STEPS_PER_EPOCH = 100


def train(gpu: PretendedGpu, *, arguments: Sequence[str]) -> None:
    """Run `train.py`."""
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")


def train_on_cpu(
    gpu: PretendedGpu, *, arguments: Sequence[str]
) -> dict[str, bool]:
    """Run `train.py -d cpu`; return whether it opened a CUDA context."""
    try:
        train(gpu, arguments=[*arguments, "-d", "cpu"])
    except SystemExit as end:
        if end.code:
            raise
    return {"opened": torch.cuda.is_initialized()}


def train_and_die(gpu: PretendedGpu, *, arguments: Sequence[str]) -> None:
    """Run `train.py`, which is killed in its first step."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    TrainStep.__call__ = die
    train(gpu, arguments=arguments)


def train_without_file_descriptors(
    gpu: PretendedGpu, *, arguments: Sequence[str]
) -> None:
    """Run `train.py`; threads other than the main one cannot receive tensors from workers."""
    receive = reductions.rebuild_storage_fd

    @functools.wraps(receive)
    def refuse(*values: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return receive(*values)

    reductions.rebuild_storage_fd = refuse
    train(gpu, arguments=arguments)


def count(
    gpu: PretendedGpu,
    *,
    config: str,
    batch: int = 2,
    phase: str = "B",
    boxes: int = 15,
    size: int = 160,
) -> dict[str, Any]:
    """Return the report of the third mixed-precision step: state and DDP's buckets exist by then."""
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    join_group(device)
    cfg = YAMLConfig(config, eval_spatial_size=[size, size])
    step = make_step(cfg, device, amp=True, phase=phase)
    for number in range(3):
        gpu.reset()
        seed_step(0, number)
        images, targets = make_batch([boxes] * batch, size, num_classes=80)
        step(number, [pinned(images, targets)])
    return gpu.report()


def compare_losses(gpu: PretendedGpu) -> dict[str, list[dict[str, float]]]:
    """Return the losses of float32 steps on a GPU and on the CPU, with many, few and no objects."""
    found = {}
    for name in ("cuda", "cpu"):
        device = torch.device(name, 0)
        step = make_step(tiny_config(num_classes=4), device, amp=False)
        found[name] = []
        for number, counts in enumerate(((3, 9), (2, 1), (0, 0), (3, 1))):
            seed_step(0, number)
            images, targets = make_batch(counts, 64, num_classes=4)
            losses = step(number, [pinned(images, targets)])
            assert losses is not None
            values = {key: loss.item() for key, loss in losses.items()}
            found[name].append(values)
    return found


class Line(nn.Module):
    """The smallest model and criterion of a step: a weight, its product with the images, their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.constant = 0.0
        """Added to the loss."""

    def forward(self, images: Tensor, targets: Any) -> dict[str, Tensor]:
        if isinstance(images, dict):  # as a criterion
            return {"loss": images["product"].sum() + self.constant}
        return {"product": images.mean((2, 3)) * self.weight}


def overflow(
    gpu: PretendedGpu, *, steps: int, loss: str = "0", gradient: str = "1"
) -> dict[str, Any]:
    """Return the weights after fp16 steps with a constant added to the loss and a factor on the gradient."""
    device = torch.device("cuda", 0)
    model = Line().to(device)
    model.constant = float(loss)
    factor = float(gradient)
    model.weight.register_hook(lambda grad: grad * factor)
    step = TrainStep(
        model=model,
        criterion=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.1),
        ema=None,
        scaler=torch.amp.GradScaler("cuda"),
        device=device,
        amp_dtype=torch.float16,
        clip_max_norm=0.1,
        guard=NumericsGuard(STEPS_PER_EPOCH),
    )
    error = ""
    try:
        for number in range(steps):
            step(number, [(torch.ones(2, 3, 4, 4), [])])
    except NumericsError as raised:
        error = str(raised)
    return {"weights": model.weight.tolist(), "error": error}


def pick(gpu: PretendedGpu, *, name: str | None) -> str:
    """Return the device that a rank uses, or the message of the error."""
    try:
        return str(pick_device(name))
    except ConfigError as error:
        return f"ConfigError: {error}"


def detect(gpu: PretendedGpu) -> dict[str, Any]:
    """Return the boxes of a detector on a GPU and on the CPU, and the report of the GPU's second batch."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    found = {}
    for name in ("cuda", "cpu"):
        detector = Detector.from_checkpoint(TRAINED, device=name)
        detector.predict(image)
        gpu.reset()
        found[name] = detector.predict(image, threshold=0.1).boxes.tolist()
        if name == "cuda":
            found["report"] = gpu.report()
    return found


def score(gpu: PretendedGpu) -> dict[str, Any]:
    """Return the scores of a batch of detections on a GPU, and the report of adding them."""
    coco_gt = {
        "images": [{"id": image} for image in range(4)],
        "annotations": [
            {
                "image_id": image,
                "category_id": 1,
                "bbox": [0, 0, 8, 8],
                "area": 64.0,
            }
            for image in range(4)
        ],
        "categories": [{"id": 1, "name": "one"}],
    }
    batch = {}
    for image in range(4):
        batch[image] = Detections(
            boxes=torch.tensor([[0.0, 0, 8, 8]], device="cuda"),
            scores=torch.tensor([0.5], device="cuda"),
            labels=torch.tensor([1], device="cuda"),
        )
    evaluator = CocoEvaluator(coco_gt)
    gpu.reset()
    evaluator.update(batch)
    report = gpu.report()
    return {"report": report, "AP": evaluator.summarize()["AP"]}


def make_step(
    cfg: YAMLConfig, device: torch.device, *, amp: bool, phase: str = "B"
) -> TrainStep:
    """Build a training step as `solver.building` does, in the first or the last phase of a run."""
    cfg.resolve_lengths(RunLength(cfg.settings.epochs, STEPS_PER_EPOCH))
    cfg.without_pretrained()
    seed_step(0, 0)
    model = cfg.model
    if cfg.settings.sync_bn and world_size() > 1:
        model = synchronize_batch_norms(model)
    model = model.to(device)
    criterion = cfg.criterion.to(device).train()
    distillation = distillation_of(cfg)
    if distillation:
        distillation.to(device).attach()
    optimizer = cfg.optimizer
    dtype = amp_dtype_of_run(amp, device, named=False)
    scaler = cfg.scaler(device.type) if dtype == torch.float16 else None
    step = TrainStep(
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        ema=cfg.ema,
        scaler=scaler,
        device=device,
        amp_dtype=dtype,
        clip_max_norm=cfg.settings.clip_max_norm,
        guard=NumericsGuard(STEPS_PER_EPOCH),
        distillation=distillation,
    )
    starts = [group.get("thaw_epoch", 0) for group in optimizer.param_groups]
    Phases(step).begin(max(starts) if phase == "B" else 0)
    model.train()
    return step


def distillation_of(cfg: YAMLConfig) -> Any:
    """Return the distillation of a configuration, whose teacher has random weights."""
    settings = cfg.yaml_cfg.get("distillation")
    if settings:
        built = create(
            settings, cfg.yaml_cfg, load_files=False, model=cfg.model
        )
        vars(cfg)["distillation"] = built
    return cfg.distillation


def make_batch(
    counts: Sequence[int], size: int, num_classes: int
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return images of noise with these numbers of objects."""
    targets = []
    for objects in counts:
        centres = torch.rand(objects, 2) * 0.5 + 0.25
        sizes = torch.rand(objects, 2) * 0.3 + 0.05
        labels = torch.randint(num_classes, (objects,))
        boxes = torch.cat([centres, sizes], 1)
        targets.append(
            {"labels": labels, "boxes": boxes, "image_path": "noise"}
        )
    return torch.rand(len(counts), 3, size, size), targets


def pinned(images: Tensor, targets: list[dict]) -> tuple[Tensor, list[dict]]:
    """Return a batch in pinned memory, as the loader gives it to a GPU."""
    copies = []
    for target in targets:
        copy = dict(target)
        for name in ("labels", "boxes"):
            copy[name] = target[name].pin_memory()
        copies.append(copy)
    return images.pin_memory(), copies


def mistakes(gpu: PretendedGpu) -> dict[str, Any]:
    """Return the message of each mistake on a device, and the report of the synchronizations on purpose."""
    one = torch.ones(3, device="cuda")
    found = {}

    def note(name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except RuntimeError as error:
            found[name] = str(error)

    note("another device", lambda: one + torch.ones(3, device="cuda:1"))
    note("the host", lambda: one + torch.ones(3))
    note("a number on the host", lambda: one + torch.tensor(2.0))
    note("an index on the host", lambda: one[torch.tensor([0])])
    gpu.reset()
    one.sum().item()
    one[one > 0]
    one[one > 0] = 2.0  # no synchronization
    one[torch.zeros(1, dtype=torch.int64, device="cuda")] = 2.0
    torch.tensor([1.0], device="cuda")
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    found["report"] = gpu.report()
    with ThreadPoolExecutor(1) as pool:  # without the mode
        note("a thread", pool.submit(one.sum).result)
    found["launches"] = gpu.report()["launches"]
    return found
