"""Measure a training step for each way of training the backbone: parameters, CPU seconds, peak memory.

    # the table of docs/training.md, about 10 minutes
    python tests/harness/training_cost.py

    # some rows, relative to the full step
    python tests/harness/training_cost.py --only "phase A" "full fine-tuning"

Every row is measured in a process of its own, on one thread: the minimum of several steps in CPU seconds, and
the peak of memory beyond that before the model was built (weights, gradients, optimizer, activations). Images
are noise; the cost of a step does not depend on their content. The result is a Markdown table.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

FULL = "full fine-tuning"

ROWS = {
    FULL: ({}, 1),
    "phase A: ViT frozen": ({"freeze_backbone": True}, 1),
    "phase B: last 4 blocks": ({"unfreeze_plan": [[0, 4]]}, 1),
    "full, checkpointing": ({"gradient_checkpointing": True}, 1),
    "LoRA, rank 16": ({"lora_rank": 16}, 1),
    "full, accumulation": ({}, 2),
    "full, accumulation, not exact": ({}, 2, False),
}
"""Settings of `DINOv3Backbone`, in how many batches a step is cut, whether these are normalised as one."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c",
        "--config",
        default=str(ROOT / "configs/dfine/dfine_dinov3_s_finetune_coco.yml"),
    )
    parser.add_argument(
        "--size", type=int, default=640, help="height and width of the images"
    )
    parser.add_argument("--batch", type=int, default=2, help="batch size")
    parser.add_argument(
        "--boxes", type=int, default=15, help="objects per image"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=2,
        help="number of measured steps, after one warm-up step; the minimum is reported",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ROW",
        help="only rows whose name begins with one of these texts",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    names = [
        name
        for name in ROWS
        if not arguments.only
        or name == FULL
        or name.startswith(tuple(arguments.only))
    ]
    print(
        f"| {arguments.size} pixels, batch {arguments.batch} | trained | CPU seconds a step | "
        "of the full step | peak memory | of the full step |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    full = None
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            trained, seconds, memory = pool.apply(
                measure, (arguments, *ROWS[name])
            )
        full = full or (seconds, memory)
        print(
            f"| {name} | {trained / 1e6:.2f} M | {seconds:.1f} | {seconds / full[0]:.2f} | "
            f"{memory / 2**30:.2f} GiB | {memory / full[1]:.2f} |",
            flush=True,
        )


def measure(
    arguments: argparse.Namespace,
    backbone: dict,
    parts: int,
    exact: bool = True,
) -> tuple[int, float, int]:
    """Return the number of trained parameters, CPU seconds of a step, and bytes."""
    import timm  # noqa: F401  (its memory is not the model's)
    import torch

    from src.core import YAMLConfig
    from src.solver.numerics import NumericsGuard
    from src.solver.training_step import TrainStep

    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = resident()
    cfg = YAMLConfig(
        arguments.config,
        eval_spatial_size=[arguments.size] * 2,
        DINOv3Backbone={"pretrained": False, **backbone},
    )
    model = cfg.model.train()
    step = TrainStep(
        model=model,
        criterion=cfg.criterion.train(),
        optimizer=cfg.optimizer,
        ema=None,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=cfg.settings.clip_max_norm,
        guard=NumericsGuard(1000),
        exact=exact,
    )
    count = arguments.batch // parts
    window = [
        (
            torch.rand(count, 3, arguments.size, arguments.size),
            targets(count, arguments.boxes),
        )
        for _ in range(parts)
    ]
    seconds = []
    for number in range(arguments.steps + 1):
        start = time.process_time()
        step(number, window)
        seconds.append(time.process_time() - start)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (
        trained,
        min(seconds[1:]),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
    )


def targets(images: int, boxes: int) -> list[dict]:
    """Draw objects of 5 to 35 % of the image's sides."""
    import torch

    return [
        {
            "boxes": torch.cat(
                [
                    torch.rand(boxes, 2) * 0.5 + 0.25,
                    torch.rand(boxes, 2) * 0.3 + 0.05,
                ],
                1,
            ),
            "labels": torch.randint(0, 80, (boxes,)),
        }
        for _ in range(images)
    ]


def resident() -> int:
    """Return the memory that this process holds, in bytes."""
    return (
        int(Path("/proc/self/statm").read_text().split()[1])
        * resource.getpagesize()
    )


if __name__ == "__main__":
    main()
