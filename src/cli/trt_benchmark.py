"""Measure the latency of TensorRT engines on one GPU, one image at a time. Untested.

    python tools/benchmark/trt_benchmark.py --infer_dir /data/COCO2017/val2017 --engine_dir engines/

Reading and preparing the images is not included. Each engine.json, as the export wrote it, must be
in the same folder as its .engine.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .common import parser_for, run, user_path


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "--infer_dir",
        type=user_path,
        default=Path("/data/COCO2017/val2017"),
        help="folder of images; default: /data/COCO2017/val2017",
    )
    parser.add_argument(
        "--engine_dir",
        type=user_path,
        required=True,
        help="folder of .engine files",
    )
    parser.add_argument(
        "--busy",
        action="store_true",
        help="the GPU is shared: report the mean of the fastest tenth instead of the median",
    )
    parser.add_argument(
        "-d",
        "--device",
        default="cuda:0",
        help="cuda or cuda:N; default: cuda:0",
    )
    parser.add_argument(
        "--warmup", type=int, default=1000, help="warm-up runs; default: 1000"
    )
    parser.add_argument(
        "--count",
        type=int,
        default=1000,
        help="number of images; default: 1000",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)
    run(lambda: benchmark(arguments), arguments)


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure all engines of the folder and print their latencies."""
    import numpy as np

    from ..core.errors import DataError
    from ..data.dataset.decoding import load_image
    from ..inference import Detector
    from ..inference.sources import image_files
    from ..runtime.distributed import pick_device
    from ..runtime.log import say

    if not arguments.engine_dir.is_dir():
        raise DataError(f"--engine_dir {arguments.engine_dir} is not a folder")
    engines = sorted(arguments.engine_dir.glob("*.engine"))
    if not engines:
        raise DataError(f"{arguments.engine_dir} has no .engine files")
    files = image_files(arguments.infer_dir)[: arguments.count]
    device = pick_device(arguments.device)
    say("| engine | median ms | p10 | p90 | mean of the fastest tenth |")
    say("| --- | --- | --- | --- | --- |")
    for path in engines:
        detector = Detector.from_tensorrt(path, device=arguments.device)
        inputs = [
            tuple(
                part.to(device)
                for part in detector.preprocessing(
                    [load_image(file, bit_depth=detector.bit_depth)]
                )
            )
            for file in files
        ]
        for turn in range(arguments.warmup):
            detector.engine(*inputs[turn % len(inputs)])
        times = (
            np.sort([timed(detector.engine, device, *pair) for pair in inputs])
            * 1000
        )
        low, median, high = np.quantile(times, (0.1, 0.5, 0.9)).tolist()
        fastest = float(times[: max(1, len(times) // 10)].mean())
        say(
            f"| {path.name} | {'-' if arguments.busy else f'{median:.3f}'} | {low:.3f} | "
            f"{high:.3f} | {fastest:.3f} |"
        )


def timed(engine, device, images, sizes) -> float:
    """Return the seconds of one run, from inputs on the device to results on the host."""
    import time

    import torch

    torch.cuda.synchronize(device)
    start = time.perf_counter()
    engine(images, sizes)
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
