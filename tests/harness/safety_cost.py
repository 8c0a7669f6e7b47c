"""Measure the cost of safety: atomic checkpoints, the data check at the start, the checks of every step.

    python tests/harness/safety_cost.py                       # about two minutes on one core
    python tests/harness/safety_cost.py --millions 25 --images 20000 --steps 30

Saves are measured in wall time, alternating with plain saves, and the median is reported. Everything else
is measured in CPU seconds of this process. The steps are those of the demo, on synthetic data. The result
is a Markdown table, as in docs/reliability.md.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--millions",
        type=float,
        default=25,
        help="parameters of the larger model in millions, with EMA and AdamW's state",
    )
    parser.add_argument(
        "--saves", type=int, default=5, help="number of saves of each kind"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=20000,
        help="number of images of the labels to check, seven boxes each",
    )
    parser.add_argument(
        "--steps", type=int, default=30, help="number of steps of the demo"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    import logging

    import torch

    torch.set_num_threads(1)
    logging.getLogger("dfine").addHandler(logging.NullHandler())
    print("| what | figure |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step_row, state = demo_steps(folder, arguments.steps)
        pieces = int(arguments.millions * 4)
        big = {
            part: [torch.randn(250_000) for _ in range(pieces)]
            for part in ("model", "average", "first moment", "second moment")
        }
        print(
            saves(folder, "the demo's state", state, arguments.saves),
            flush=True,
        )
        print(
            saves(
                folder,
                f"{arguments.millions:g} M parameters, average, AdamW",
                big,
                arguments.saves,
            ),
            flush=True,
        )
        print(data_check(folder / "many", arguments.images), flush=True)
        print(step_row)


def saves(folder: Path, what: str, state: dict, count: int) -> str:
    """Time a save as `last.pth` and one by `torch.save` alone, which does not wait for the disk."""
    import torch

    from src.runtime.weight_files import write_tensor_file

    ways: dict[str, Callable] = {
        "plain": lambda: torch.save(state, folder / "plain.pth"),
        "whole": lambda: write_tensor_file(
            folder / "last.pth",
            state,
            keep_previous=folder / "last.previous.pth",
        ),
    }
    seconds = {way: [] for way in ways}
    for _ in range(count):
        for way, save in ways.items():
            began = time.perf_counter()
            save()
            seconds[way].append(time.perf_counter() - began)
    plain, whole = (
        statistics.median(seconds[way]) for way in ("plain", "whole")
    )
    size = (folder / "plain.pth").stat().st_size / 1e6
    return (
        f"| save of {what}, {size:.0f} MB | {whole:.2f} s, plain {plain:.2f} s; "
        f"allowed (1.5 x + 0.5 s): {1.5 * plain + 0.5:.2f} s |"
    )


def data_check(folder: Path, count: int) -> str:
    """Time the data check before a model is built: read every record, list the folder, open headers."""
    import numpy as np
    from PIL import Image

    from src.data.dataset.coco_dataset import CocoDetection

    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(
        folder / "images" / "0.png"
    )
    for number in range(1, count):
        (folder / "images" / f"{number}.png").hardlink_to(
            folder / "images" / "0.png"
        )
    records = [
        {
            "id": 7 * image + n + 1,
            "image_id": image,
            "category_id": n,
            "bbox": [n, n, 20.5, 30.25],
            "area": 620.1,
            "iscrowd": 0,
        }
        for image in range(count)
        for n in range(7)
    ]
    labels = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 64, "height": 64}
            for n in range(count)
        ],
        "annotations": records,
        "categories": [{"id": n, "name": f"class {n}"} for n in range(7)],
    }
    (folder / "labels.json").write_text(json.dumps(labels))
    began = time.process_time()
    data = CocoDetection(
        str(folder / "images"), str(folder / "labels.json"), transforms=None
    )
    data.check_images_exist()
    rates = [count / (time.process_time() - began)]
    for _ in range(2):
        began = time.process_time()
        data.scan_images(folder / "images.npz")
        rates.append(count / (time.process_time() - began))
    return (
        f"| labels and file names at the start | {rates[0]:.0f} images a CPU second |\n"
        "| headers of images, in the page cache, "
        f"at the first start and at the next | {rates[1]:.0f} and "
        f"{rates[2]:.0f} images a CPU second |"
    )


def demo_steps(folder: Path, count: int) -> tuple[str, dict]:
    """Take steps of the demo; return the table row of their checks, and the state to save."""
    import torch

    from src.core import YAMLConfig
    from src.data.dataset.synthetic import write_synthetic_coco
    from src.runtime.watchdog import Watchdog
    from src.solver import DetSolver, numerics, training_step
    from src.solver.saving import Saver

    spent, depth = {}, 0

    def counted(name: str, function: Callable) -> Callable:
        def call(*arguments, **keywords):
            nonlocal depth
            depth += 1
            began = time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                depth -= 1
                if (
                    name == "step" or depth <= 1
                ):  # a check within another is part of it
                    spent.setdefault(name, []).append(
                        time.process_time() - began
                    )

        return call

    checks = {
        "batch statistics kept": (numerics.BatchStatistics, "remember"),
        "loss": (training_step.Part, "is_finite"),
        "finite": (torch, "isfinite"),
        "agreed over ranks": (training_step, "everywhere"),
        "watchdog": (Watchdog, "beat"),
        "save due": (Saver, "save_if_due"),
    }
    write_synthetic_coco(folder, train=64, val=8, size=128, seed=3)
    loaders = {
        f"{part}_dataloader": {
            "num_workers": 0,
            "dataset": {
                "img_folder": str(folder / "images"),
                "ann_file": str(folder / f"{part}.json"),
            },
        }
        for part in ("train", "val")
    }
    cfg = YAMLConfig(
        ROOT / "configs/dfine/demo/dfine_dinov3_demo.yml",
        **loaders,
        output_dir=str(folder / "run"),
        seed=0,
        print_freq=1000,
    )

    class Enough(Exception):
        """The number of steps is reached."""

    solver = DetSolver(cfg, torch.device("cpu"))
    kept = {}

    def end(saver: Saver) -> None:
        if saver.state.progress.total_steps == count:
            kept.update(saver.state.state_dict(saver.facts))
            raise Enough

    originals = {
        (owner, name): getattr(owner, name)
        for owner, name in (
            *checks.values(),
            (training_step.TrainStep, "__call__"),
        )
    }
    due = originals[(Saver, "save_if_due")]
    for what, (owner, name) in checks.items():
        setattr(owner, name, counted(what, getattr(owner, name)))
    timed = counted("save due", due)
    Saver.save_if_due = lambda self: (timed(self), end(self))
    training_step.TrainStep.__call__ = counted(
        "step", originals[(training_step.TrainStep, "__call__")]
    )
    try:
        solver.fit()
    except Enough:
        pass
    finally:
        for (owner, name), function in originals.items():
            setattr(owner, name, function)
    whole, safety = (
        sum(spent.pop("step")),
        {what: sum(seconds) for what, seconds in spent.items()},
    )
    dearest = max(safety, key=safety.get)
    return (
        f"| checks within a step of the demo | {sum(safety.values()) / whole:.2%} of its "
        f"{whole / count:.2f} CPU seconds; the dearest: {dearest}, {safety[dearest] / whole:.2%} |"
    ), kept


if __name__ == "__main__":
    main()
