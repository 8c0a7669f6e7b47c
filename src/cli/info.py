"""Count parameters by part and operations, and measure the memory of a forward pass.

    dfine info dfine_hgnetv2_l_coco
    dfine info best.pth [--batch 8] [-d cuda:0]

Pre-trained weights are not needed. Operations are counted on the deploy form with
torch.utils.flop_counter: 2 for each multiply-add of convolutions, matrix products and attention,
fused attention included. Norms, activations, softmax, resizing and the sampling of deformable
attention are not counted.
"""

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # the profiler would speak of every start, and of a missing GPU
from .common import (
    add_family_argument,
    add_model_argument,
    parser_for,
    run,
    use_model,
    use_model_or_config,
    user_path,
)

PARTS = ("backbone", "encoder", "decoder")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration")
    add_model_argument(parser)
    add_family_argument(parser)
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="input size; default: that of the configuration",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="batch size of the pass whose memory is measured; default: 1",
    )
    parser.add_argument(
        "-d",
        "--device",
        default="cpu",
        help="device of that pass; default: cpu",
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
    run(lambda: report(arguments), arguments)


def report(arguments: argparse.Namespace) -> dict:
    """Print the numbers of a model, and return them."""
    import torch

    from ..core.errors import ConfigError
    from ..runtime.distributed import pick_device
    from ..runtime.log import say_lines
    from ..runtime.own_files import prepare_report, write_report

    use_model_or_config(arguments)
    if arguments.json:
        prepare_report(arguments.json, "--json")
    if arguments.batch < 1:
        raise ConfigError(f"--batch is {arguments.batch}, expected at least 1")
    device, cfg = pick_device(arguments.device), open_config(arguments)
    size = tuple(
        arguments.input_size
        or cfg.yaml_cfg.get("eval_spatial_size")
        or (640, 640)
    )
    cfg.set("eval_spatial_size", list(size), "the input size")
    model = cfg.model
    info = {
        "torch": torch.__version__,
        "input_size": list(size),
        "parameters": {"train": count_parameters(model)},
        "trainable": sum(
            p.numel() for p in model.parameters() if p.requires_grad
        ),
    }
    model = model.deploy()
    info["parameters"]["deploy"] = count_parameters(model)
    info["flops"] = count_flops(model, size)
    info["forward_memory_mib"], info["memory_of"] = (
        forward_memory(
            model.to(device),
            torch.rand(arguments.batch, 3, *size, device=device),
        ),
        arguments.batch,
    )
    if arguments.json:
        write_report(arguments.json, info)
    say_lines(as_text(info, device))
    return info


def open_config(arguments):
    """Return the configuration of `-c` or `-r`, with the checkpoint's classes and without start weights."""
    from ..core import YAMLConfig
    from ..core.errors import ConfigError
    from ..detection.model_config import model_config
    from ..detection.weight_file import read_weights

    if arguments.resume:
        file = read_weights(arguments.resume, arguments.family)
        cfg = model_config(file, arguments.config)
        cfg.set("num_classes", file.num_classes, f"counted in {file.path}")
        if file.input_size is not None:
            cfg.set(
                "eval_spatial_size",
                list(file.input_size),
                f"the input size of {file.path}",
            )
    elif arguments.config:
        cfg = YAMLConfig(arguments.config)
    else:
        raise ConfigError("give a configuration (-c) or a checkpoint (-r)")
    cfg.without_pretrained()
    if cfg.yaml_cfg.get("num_classes") is None:
        cfg.set("num_classes", 80, "get_info.py, since the data decides")
    return cfg


def count_parameters(model) -> dict[str, int]:
    """Return the number of parameters of each part, each parameter once, and in all."""
    counts = {
        part: sum(p.numel() for p in getattr(model, part).parameters())
        for part in PARTS
    }
    return counts | {"all": sum(p.numel() for p in model.parameters())}


def count_flops(model, size: tuple[int, int]) -> dict[str, int]:
    """Return the operations of one image by part and in all."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def product(_, left, right, **__) -> int:
        return 2 * left[0] * left[1] * right[1]

    # the counter does not know the product that is added in place
    in_place = {torch.ops.aten.addmm_: product}
    # attention as matrix products: the counter does not know every fused kernel
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(
            display=False, depth=2, custom_mapping=in_place
        ) as counter,
    ):
        model(torch.zeros(1, 3, *size))
    by_module = counter.get_flop_counts()
    name = type(model).__name__
    return {
        part: sum(by_module.get(f"{name}.{part}", {}).values())
        for part in PARTS
    } | {"all": counter.get_total_flops()}


def forward_memory(model, images) -> float:
    """Return the most MiB that a forward pass holds besides weights and images.

    torch counts them on CUDA; on the CPU, the profiler records all allocations, which are summed up.
    """
    import torch

    with torch.inference_mode():
        model(images)  # what is made once is not counted
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
            torch.cuda.reset_peak_memory_stats(images.device)
            before = torch.cuda.memory_allocated(images.device)
            model(images)
            torch.cuda.synchronize(images.device)
            return (
                torch.cuda.max_memory_allocated(images.device) - before
            ) / 2**20
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            profile_memory=True,
        ) as profile:
            kept = model(images)
        del kept
    total = peak = 0
    for event in sorted(
        (
            e
            for e in profile.profiler.kineto_results.events()
            if e.name() == "[memory]"
        ),
        key=lambda e: e.start_ns(),
    ):
        total += event.nbytes()
        peak = max(peak, total)
    return peak / 2**20


def as_text(info: dict, device) -> str:
    """Return the numbers as a Markdown table."""
    from ..core.counts import counted

    train, deploy, flops = (
        info["parameters"]["train"],
        info["parameters"]["deploy"],
        info["flops"],
    )
    lines = [
        "| part | parameters, training | parameters, deployed | GFLOPs | GMACs |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {part} | {train[part]:,} | {deploy[part]:,} | {flops[part] / 1e9:.3f} | {flops[part] / 2e9:.3f} |"
        for part in (*PARTS, "all")
    ]
    height, width = info["input_size"]
    return "\n".join(
        [
            *lines,
            "",
            f"{info['trainable']:,} parameters are trained at the start; "
            f"input {height} x {width}; a forward pass of {counted(info['memory_of'], 'image')} on "
            f"{device} holds at most {info['forward_memory_mib']:.0f} MiB besides weights and "
            f"images (torch {info['torch']})",
        ]
    )
