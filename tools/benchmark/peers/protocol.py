"""Task, clock and result of the measurements of other libraries: JSON from stdin, and a file of figures.

These scripts run in the environment of the other library, so they import nothing of this project. Figures
relative to a bare ViT-S/16 need timm in that environment; without it, they are CPU seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PER_SECOND = "images per CPU second"


def answer(
    who: str, parts: Mapping[str, Callable[[dict[str, Any]], Iterator[dict]]]
) -> None:
    """Measure the part that stdin names, and write its figures.

    Args:
        who: name of the library in the table.
        parts: functions by the name of the part; each gets the task and yields figures. Parts that are not
            here have no figures.
    """
    task = json.loads(sys.stdin.read())
    result = Path(task.pop("result"))
    measure = parts.get(task["part"])
    figures = []
    yardstick = None
    if measure is not None:
        before = yardstick_seconds()
        for figure in measure(task):
            figures.append({"who": who, **figure})
        yardstick = min(before, yardstick_seconds())
    result.write_text(
        json.dumps(
            {"part": task["part"], "yardstick": yardstick, "figures": figures}
        )
    )


def least_cpu_seconds(
    works: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Run all works in turn, once without measuring; return the least CPU seconds of each."""
    least = dict.fromkeys(works, float("inf"))
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            seconds = time.process_time() - start
            if turn:
                least[name] = min(least[name], seconds)
    return least


def yardstick_seconds() -> float:
    """Return the least CPU seconds of a 1024 x 1024 float32 matrix product on one thread."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.rand(1024, 1024)
    return least_cpu_seconds({"matrix": lambda: matrix @ matrix}, 15)["matrix"]


def bare_vit(batch: int, size: int) -> Callable[[], object] | None:
    """Return the forward pass of a bare ViT-S/16 for images `[batch, 3, size, size]`; None without timm."""
    import torch

    try:
        import timm
    except ImportError:
        return None
    vit = timm.create_model(
        "vit_small_patch16_224", pretrained=False, num_classes=0, img_size=size
    ).eval()
    images = torch.rand(batch, 3, size, size)

    def forward() -> object:
        with torch.inference_mode():
            return vit(images)

    return forward


def compared_with_vit(
    row: int,
    works: dict[str, Callable[[], object]],
    vit: Callable[[], object] | None,
    repeats: int,
) -> Iterator[dict]:
    """Yield a figure for each work, relative to the bare ViT if there is one."""
    everything = dict(works)
    if vit is not None:
        everything["bare ViT"] = vit
    seconds = least_cpu_seconds(everything, repeats)
    for name in works:
        value, unit = seconds[name], "CPU seconds"
        if vit is not None:
            value, unit = value / seconds["bare ViT"], "of a bare ViT-S/16"
        yield {
            "row": row,
            "work": name,
            "value": value,
            "unit": unit,
            "seconds": seconds[name],
        }
