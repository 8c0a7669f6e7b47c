"""Measure latency and throughput of a detector in several engines, relative to a plain ViT-S/16.

    dfine benchmark best.pth
    dfine benchmark best.pth -d cuda:0 --engines torch compile

    # exported models in the same table
    dfine benchmark best.pth --engines torch --files best.int8.xml best.int8.onnx

    # random weights
    dfine benchmark dfine_dinov3_s_coco --engines torch onnx

    # the same configuration with other settings, in the same table
    dfine benchmark dfine_dinov3_s_coco --engines torch --variant DINOv3Backbone.windows=2

The engines take turns, run by run, so that other load on the machine affects all of them alike.
A run is one batch, from prepared images to detections on the host. The table has medians and
their ratios to the yardstick, timm's plain ViT-S/16 in eager torch with random weights at the same
input size, or at that of `--yardstick-size`. It has wall time and CPU time; CPU time is more
reliable on a machine that others use too, and its minimum over the runs is the most reliable figure.
On CUDA, only the engine torch has been run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import (
    add_family_argument,
    add_model_argument,
    parser_for,
    positive_integer,
    run,
    use_model,
    use_model_or_config,
    user_path,
)

YARDSTICK = "bare ViT-S/16"
ENGINES = ("torch", "compile", "onnx", "openvino")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    add_model_argument(parser)
    add_family_argument(parser)
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration, with random weights; with -r: for a checkpoint without a configuration",
    )
    parser.add_argument(
        "-d",
        "--device",
        default="cpu",
        help="cpu, cuda or cuda:N; default: cpu",
    )
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="input size; default: that of the configuration",
    )
    parser.add_argument(
        "--yardstick-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help=f"input size of the {YARDSTICK}; default: that of the model",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="also measure the configuration with these settings; repeat it for more variants",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        default=list(ENGINES),
        help="engines to measure; default: all",
    )
    parser.add_argument(
        "--files",
        nargs="+",
        type=user_path,
        default=[],
        metavar="FILE",
        help="also measure these exported models, .onnx in ONNX Runtime and .xml in OpenVINO",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="batch size; default: 1"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=30,
        help="measured runs of each engine; default: 30",
    )
    parser.add_argument(
        "--warmup",
        type=int,
        default=5,
        help="runs before these, not measured; default: 5",
    )
    parser.add_argument(
        "--threads",
        type=positive_integer,
        default=1,
        help="CPU threads; default: 1",
    )
    parser.add_argument(
        "--json",
        type=user_path,
        metavar="FILE",
        help="also write the numbers to this file",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    use_model(parser, arguments, required=False)
    run(lambda: benchmark(arguments), arguments)


def benchmark(arguments: argparse.Namespace) -> list[dict]:
    """Measure all engines, print the table, and return its rows."""
    import torch

    from ..core.counts import counted
    from ..core.errors import ConfigError
    from ..runtime.distributed import pick_device
    from ..runtime.log import say
    from ..runtime.own_files import prepare_report, write_report

    use_model_or_config(arguments)
    if arguments.json:
        prepare_report(arguments.json, "--json")
    if min(arguments.batch, arguments.repeats, arguments.threads) < 1:
        raise ConfigError("--batch, --repeats and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    detectors = open_detectors(arguments)
    size = detectors[""].preprocessing.input_size
    images = torch.rand(
        arguments.batch, 3, *size, generator=torch.Generator().manual_seed(0)
    )
    works = build_works(detectors, images, device, arguments)
    seconds = interleave(
        works, device, repeats=arguments.repeats, warmup=arguments.warmup
    )
    rows = [
        summarise(name, times, arguments.batch, seconds[YARDSTICK])
        for name, times in seconds.items()
    ]
    if arguments.json:
        write_report(
            arguments.json,
            {
                "input_size": list(size),
                "yardstick_size": list(arguments.yardstick_size or size),
                "batch": arguments.batch,
                "device": str(device),
                "threads": arguments.threads,
                "torch": torch.__version__,
                "rows": rows,
            },
        )
    other = ""
    if arguments.yardstick_size:
        height, width = arguments.yardstick_size
        other = f", {YARDSTICK} at {height} x {width}"
    say(
        f"{arguments.resume or arguments.config}: "
        f"input {size[0]} x {size[1]}, batch {arguments.batch}, {device}, "
        f"{counted(arguments.threads, 'thread')}, {counted(arguments.repeats, 'run')} each, "
        f"torch {torch.__version__}{other}"
    )
    say("")
    say(
        "| engine | median ms | p10 | p90 | CPU ms | images/s | "
        f"times {YARDSTICK} | by CPU time | by least CPU time |"
    )
    say("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        say(
            f"| {row['engine']} | {row['median_ms']:.1f} | {row['p10_ms']:.1f} | "
            f"{row['p90_ms']:.1f} | {row['cpu_ms']:.1f} | {row['images_per_second']:.2f} | "
            f"{row['ratio']:.2f} | {row['cpu_ratio']:.2f} | {row['least_cpu_ratio']:.3f} |"
        )
    return rows


def open_detectors(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the detector under an empty name and each variant under its settings, all of one input size."""
    from ..core.config_file import parse_overrides
    from ..core.errors import ConfigError

    if arguments.variant and arguments.resume:
        raise ConfigError(
            "--variant changes settings of a configuration, and a checkpoint brings its own; give a "
            "configuration (-c) instead of the checkpoint"
        )
    detectors = {"": open_detector(arguments, "cpu")}
    size = detectors[""].preprocessing.input_size
    for settings in arguments.variant:
        variant = open_detector(arguments, "cpu", parse_overrides(settings))
        name = " ".join(settings)
        if variant.preprocessing.input_size != size:
            raise ConfigError(
                f"--variant {name} has the input size {list(variant.preprocessing.input_size)}, expected "
                f"{list(size)} as without it; set one size for all with --input-size"
            )
        detectors[name] = variant
    return detectors


def open_detector(
    arguments: argparse.Namespace,
    device: str,
    overrides: dict[str, Any] | None = None,
) -> Any:
    """Return a detector of the checkpoint, or of the configuration with random weights.

    Args:
        arguments: arguments of the command.
        device: device of the detector.
        overrides: settings that override the configuration.
    """
    import torch

    from ..core import YAMLConfig
    from ..core.errors import ConfigError
    from ..detection.class_names import named_classes
    from ..inference import Detector, Preprocessing
    from ..inference.engines import TorchEngine

    if arguments.resume:
        return Detector.from_checkpoint(
            arguments.resume,
            device=device,
            config=arguments.config,
            input_size=arguments.input_size,
            family=arguments.family,
        )
    if not arguments.config:
        raise ConfigError("give a checkpoint (-r) or a configuration (-c)")
    cfg = YAMLConfig(arguments.config, **(overrides or {}))
    cfg.without_pretrained()
    if cfg.yaml_cfg.get("num_classes") is None:
        cfg.set("num_classes", 80, "benchmark.py, since the data decides")
    preprocessing = Preprocessing.from_config(cfg)
    preprocessing = (
        preprocessing.resized(arguments.input_size)
        if arguments.input_size
        else preprocessing
    )
    cfg.set(
        "eval_spatial_size", list(preprocessing.input_size), "the input size"
    )
    torch.manual_seed(0)
    engine = TorchEngine(
        cfg.model.deploy(), cfg.postprocessor.deploy(), torch.device(device)
    )
    return Detector.from_parts(
        engine, preprocessing, named_classes(None, cfg.yaml_cfg["num_classes"])
    )


def build_works(
    detectors: dict[str, Any], images, device, arguments: argparse.Namespace
) -> dict:
    """Return a function for the yardstick and for each engine of each detector that runs one batch."""
    import torch

    sizes = torch.tensor([[images.shape[3], images.shape[2]]] * len(images))
    own_size = tuple(images.shape[-2:])
    yardstick_size = tuple(arguments.yardstick_size or own_size)
    vit_images = images
    if yardstick_size != own_size:
        vit_images = torch.rand(len(images), 3, *yardstick_size)
    vit = bare_vit(yardstick_size).to(device)
    files = open_files(own_size, arguments)
    engines: dict[str, Any] = {}
    for variant, detector in detectors.items():
        for name, engine in engines_of(detector, device, arguments).items():
            engines[f"{name}, {variant}" if variant else name] = engine
    engines |= files

    def look() -> None:
        with torch.inference_mode():
            vit(vit_images.to(device)).cpu()

    return {YARDSTICK: look} | {
        name: (lambda engine=engine: engine(images, sizes))
        for name, engine in engines.items()
    }


def open_files(
    input_size: tuple[int, int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the engines of the exported models by file name, or by path if several have the same name."""
    names = [file.name for file in arguments.files]
    engines = {}
    for file in arguments.files:
        name = file.name if names.count(file.name) == 1 else str(file)
        engines[name] = open_file(file, input_size, arguments)
    return engines


def open_file(
    path: Path, input_size: tuple[int, int], arguments: argparse.Namespace
) -> Any:
    """Return the engine of an exported model.

    Raises:
        ConfigError: if the model has another input size or batch size, or its kind is not measured.
    """
    from ..core.errors import ConfigError
    from ..inference.exported_engines import OnnxEngine, OpenVinoEngine

    threads = arguments.threads
    engine: OnnxEngine | OpenVinoEngine
    if path.suffix.lower() == ".onnx":
        engine = OnnxEngine(path, arguments.device, threads=threads)
    elif path.suffix.lower() == ".xml":
        engine = OpenVinoEngine(path, threads=threads)
    else:
        raise ConfigError(
            f"--files has {path}, expected exported models that end with .onnx or .xml"
        )
    if engine.input_size not in (None, input_size):
        raise ConfigError(
            f"{path} has the input size {list(engine.input_size)}, expected {list(input_size)} as the model"
        )
    size = engine.batch_size
    if size is not None and arguments.batch % size:
        # the engine would fill the batch up with copies, which also take time
        raise ConfigError(
            f"{path} has the fixed batch size {size}, but --batch is {arguments.batch}; give --batch {size}"
        )
    return engine


def engines_of(
    detector, device, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the engines of a detector by their names in the table."""
    import copy

    import torch

    from ..inference.engines import TorchEngine
    from ..inference.export import export_onnx
    from ..inference.exported_engines import OnnxEngine, OpenVinoEngine

    engines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if {"onnx", "openvino"} & set(arguments.engines):
            file = export_onnx(detector, Path(folder) / "model.onnx")
        own = (
            copy.deepcopy(detector.engine.model),
            copy.deepcopy(detector.engine.postprocessor),
        )
        for name in arguments.engines:
            if name == "torch":
                engines["torch"] = TorchEngine(*own, device)
            elif name == "compile":
                compiled: Any = torch.compile(copy.deepcopy(own[0]))
                engines["torch.compile"] = TorchEngine(compiled, own[1], device)
            elif name == "onnx":
                engine = OnnxEngine(
                    file, str(device), threads=arguments.threads
                )
                provider = engine.providers[0].removesuffix("ExecutionProvider")
                engines[f"ONNX Runtime ({provider})"] = engine
            elif name == "openvino":
                engines["OpenVINO (CPU)"] = OpenVinoEngine(
                    file, threads=arguments.threads
                )
    return engines


def bare_vit(size):
    """Return ViT-S/16 without a head, for images of a size."""
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(
        "vit_small_patch16_224",
        pretrained=False,
        num_classes=0,
        img_size=tuple(size),
    ).eval()


def interleave(
    works: dict, device, *, repeats: int, warmup: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Run all works in turn; return wall and CPU seconds of each run."""
    for work in works.values():
        for _ in range(max(1, warmup)):
            work()
    seconds: dict[str, tuple[list[float], list[float]]] = {
        name: ([], []) for name in works
    }
    for _ in range(repeats):
        for name, work in works.items():
            cpu = time.process_time()
            wall = timed(work, device)
            seconds[name][0].append(wall)
            seconds[name][1].append(time.process_time() - cpu)
    return seconds


def timed(work, device) -> float:
    """Return the seconds of a run: wall time on a CPU, events on CUDA; the device is idle at both ends."""
    import torch

    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (
        torch.cuda.Event(enable_timing=True),
        torch.cuda.Event(enable_timing=True),
    )
    torch.cuda.synchronize(device)
    begin.record()
    work()
    torch.cuda.synchronize(device)  # engines may use streams of their own
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def summarise(
    name: str,
    times: tuple[list[float], list[float]],
    batch: int,
    yardstick: tuple[list[float], list[float]],
) -> dict:
    """Return the row of an engine from the wall and CPU seconds of its runs."""
    import numpy as np

    wall, cpu = times
    low, median, high = np.quantile(wall, (0.1, 0.5, 0.9)).tolist()
    return {
        "engine": name,
        "median_ms": 1000 * median,
        "p10_ms": 1000 * low,
        "p90_ms": 1000 * high,
        "cpu_ms": 1000 * statistics.median(cpu),
        "images_per_second": batch / median,
        "ratio": median / statistics.median(yardstick[0]),
        "cpu_ratio": statistics.median(cpu) / statistics.median(yardstick[1]),
        "least_cpu_ms": 1000 * min(cpu),
        "least_cpu_ratio": min(cpu) / min(yardstick[1]),
    }
