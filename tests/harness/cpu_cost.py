"""Measure model, loss and data pipeline on one CPU thread, in multiples of a matrix product.

    python tests/harness/cpu_cost.py                    # model and loss
    python tests/harness/cpu_cost.py --only labels      # reading 860,000 boxes

    # model, loss and the data pipeline
    python tests/harness/cpu_cost.py --images DATA/images --annotations DATA/train.json

The unit is a 1024 x 1024 float32 matrix product timed in the same process. CPU time is measured: on a
shared machine, wall time varies by a factor of five. The result is a Markdown table.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

COCO_IMAGES, COCO_BOXES = 118_000, 860_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--images", help="folder of images, for the data pipeline"
    )
    parser.add_argument("--annotations", help="COCO file of these images")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="measure only these rows: criterion, step, latency, data, labels",
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=5,
        help="number of runs; the minimum is reported",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    import torch

    torch.set_num_threads(1)
    rows = {
        "criterion": lambda: [
            measure_criterion(boxes, arguments.runs) for boxes in (15, 100)
        ],
        "step": lambda: [measure_step(arguments.runs)],
        "latency": lambda: [
            measure_latency(name, arguments.runs)
            for name in ("hgnetv2_n", "hgnetv2_l", "dinov3_s")
        ],
        "data": lambda: (
            [
                measure_loader(part, arguments.images, arguments.annotations)
                for part in ("train", "val")
            ]
            if arguments.images
            else []
        ),
        "labels": lambda: [measure_labels()],
    }
    matrix = torch.rand(1024, 1024)
    yardstick = least(lambda: matrix @ matrix, 15)
    print("| work | CPU seconds | yardsticks |\n| --- | --- | --- |")
    for name, measure in rows.items():
        if not arguments.only or name in arguments.only:
            for work, seconds, remark in measure():
                print(
                    f"| {work} | {seconds:.4f}{remark} | {seconds / yardstick:.2f} |",
                    flush=True,
                )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\nyardstick {1000 * yardstick:.1f} ms, peak memory {peak:.0f} MiB, torch {torch.__version__}"
    )


def least(work: Callable[[], object], runs: int) -> float:
    """Return the minimum CPU seconds of several runs, after one warm-up run."""
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def configuration(name: str, **overrides):
    from src.core import YAMLConfig

    backbone = "DINOv3Backbone" if "dinov3" in name else "HGNetv2"
    return YAMLConfig(
        ROOT / f"configs/dfine/dfine_{name}_coco.yml",
        **{backbone: {"pretrained": False}},
        **overrides,
    )


def draw_targets(images: int, boxes: int) -> list[dict]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return [
        {
            "boxes": torch.cat(
                [
                    torch.rand(boxes, 2, generator=generator) * 0.5 + 0.25,
                    torch.rand(boxes, 2, generator=generator) * 0.3 + 0.05,
                ],
                1,
            ),
            "labels": torch.randint(0, 80, (boxes,), generator=generator),
        }
        for _ in range(images)
    ]


def measure_criterion(boxes: int, runs: int) -> tuple[str, float, str]:
    import torch

    cfg, targets = configuration("hgnetv2_l"), draw_targets(4, boxes)
    outputs = cfg.model.train()(torch.rand(4, 3, 256, 256), targets=targets)

    def work() -> None:
        fresh = leaves(outputs)
        sum(cfg.criterion(fresh, targets).values()).backward()

    return (
        f"criterion and matcher with backward, L, batch 4, {boxes} boxes an image",
        least(work, runs),
        "",
    )


def leaves(outputs):
    """Detach outputs from their graph, so that only the criterion is timed."""
    import torch

    if torch.is_tensor(outputs):
        return outputs.detach().requires_grad_(outputs.is_floating_point())
    if isinstance(outputs, dict):
        return {
            key: value if key == "dn_meta" else leaves(value)
            for key, value in outputs.items()
        }
    return (
        [leaves(item) for item in outputs]
        if isinstance(outputs, list)
        else outputs
    )


def measure_step(runs: int) -> tuple[str, float, str]:
    import torch

    cfg, targets, images = (
        configuration("hgnetv2_n"),
        draw_targets(2, 15),
        torch.rand(2, 3, 640, 640),
    )
    model, criterion, optimizer = (
        cfg.model.train(),
        cfg.criterion.train(),
        cfg.optimizer,
    )

    def work() -> None:
        loss = sum(criterion(model(images, targets=targets), targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return "training step, N, batch 2, 640 pixels", least(work, runs), ""


def measure_latency(name: str, runs: int) -> tuple[str, float, str]:
    import torch

    cfg, images = configuration(name), torch.rand(1, 3, 640, 640)
    model = cfg.model.deploy()
    with torch.inference_mode():
        return (
            f"evaluation forward after deploy(), {name}, batch 1, 640 pixels",
            least(lambda: model(images), runs),
            "",
        )


def measure_loader(
    part: str, images: str, annotations: str
) -> tuple[str, float, str]:
    """Decode, transform and collate; return CPU seconds per image."""
    from src.core import YAMLConfig

    settings = {
        "dataset": {"img_folder": images, "ann_file": annotations},
        "total_batch_size": 8,
        "num_workers": 0,
    }
    cfg = YAMLConfig(
        ROOT / "configs/dfine/custom/dfine_hgnetv2_n_custom.yml",
        num_classes=None,
        **{f"{part}_dataloader": settings},
    )
    loader = getattr(cfg, f"{part}_dataloader")
    loader.set_epoch(0)
    seconds = least(lambda: [None for _ in loader], 2) / (
        len(loader) * 8 if loader.drop_last else len(loader.dataset)
    )
    return (
        f"loading a {part} image to 640 pixels, batch 8",
        seconds,
        f" ({1 / seconds:.0f} images/s)",
    )


def measure_labels() -> tuple[str, float, str]:
    """Read and check a label file as large as COCO's, with a polygon for each box."""
    from src.data.dataset.coco_format import load_coco

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.json"
        polygon = [[float(i) for i in range(40)]]
        path.write_text(
            json.dumps(
                {
                    "images": [
                        {
                            "id": i,
                            "file_name": f"{i:012}.jpg",
                            "width": 640,
                            "height": 480,
                        }
                        for i in range(COCO_IMAGES)
                    ],
                    "annotations": [
                        {
                            "id": i + 1,
                            "image_id": i % COCO_IMAGES,
                            "category_id": i % 80 + 1,
                            "bbox": [10.5, 20.5, 30.25, 40.75],
                            "area": 900.0,
                            "iscrowd": 0,
                            "segmentation": polygon,
                        }
                        for i in range(COCO_BOXES)
                    ],
                    "categories": [
                        {"id": i, "name": f"class {i}"} for i in range(1, 81)
                    ],
                }
            )
        )
        size = path.stat().st_size / 1e6
        labels, start = None, time.process_time()
        labels = load_coco(path)
        seconds = time.process_time() - start
    kept = (
        sum(
            value.nbytes
            for value in vars(labels).values()
            if hasattr(value, "nbytes")
        )
        / 1e6
    )
    return (
        f"reading {COCO_BOXES:,} boxes from {size:.0f} MB",
        seconds,
        f" ({kept:.0f} MB kept)",
    )


if __name__ == "__main__":
    main()
