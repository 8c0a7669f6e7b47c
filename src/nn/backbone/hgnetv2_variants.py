"""Channel tables of PP-HGNetV2 B0 to B6, and of DEIMv2's shorter Pico, Femto and Atto."""

from __future__ import annotations

from typing import NamedTuple


class StageSpec(NamedTuple):
    """Widths and depths of one stage."""

    mid: int
    """Channels inside the blocks."""
    out: int
    """Channels of the output."""
    blocks: int
    """Number of blocks."""
    layers: int
    """Number of layers in each block."""


class Variant(NamedTuple):
    """Channels of a variant, and its ImageNet weights."""

    stem: tuple[int, int]
    """Channels inside the stem, and of its output."""
    stages: tuple[StageSpec, ...]
    """The stages: four, or three in DEIMv2's variants."""
    timm_name: str
    """Name of the ImageNet weights at timm."""
    late_kernel: int = 5
    """Kernel size of the blocks from the third stage on."""
    start_from: str | None = None
    """Variant whose ImageNet weights are used where names and shapes agree, for one that has none itself."""


def _variant(
    timm_name: str,
    stem: tuple[int, int],
    layers: int,
    *stages: tuple[int, int, int],
) -> Variant:
    """Return a variant; a stage is given as (mid, out, blocks), and all have the same number of layers."""
    specs = [StageSpec(mid, out, blocks, layers) for mid, out, blocks in stages]
    return Variant(stem, tuple(specs), timm_name)


VARIANTS: dict[str, Variant] = {
    "B0": _variant(
        "hgnetv2_b0.ssld_stage1_in22k_in1k",
        (16, 16),
        3,
        (16, 64, 1),
        (32, 256, 1),
        (64, 512, 2),
        (128, 1024, 1),
    ),
    "B1": _variant(
        "hgnetv2_b1.ssld_stage1_in22k_in1k",
        (24, 32),
        3,
        (32, 64, 1),
        (48, 256, 1),
        (96, 512, 2),
        (192, 1024, 1),
    ),
    "B2": _variant(
        "hgnetv2_b2.ssld_stage1_in22k_in1k",
        (24, 32),
        4,
        (32, 96, 1),
        (64, 384, 1),
        (128, 768, 3),
        (256, 1536, 1),
    ),
    "B3": _variant(
        "hgnetv2_b3.ssld_stage1_in22k_in1k",
        (24, 32),
        5,
        (32, 128, 1),
        (64, 512, 1),
        (128, 1024, 3),
        (256, 2048, 1),
    ),
    "B4": _variant(
        "hgnetv2_b4.ssld_stage1_in22k_in1k",
        (32, 48),
        6,
        (48, 128, 1),
        (96, 512, 1),
        (192, 1024, 3),
        (384, 2048, 1),
    ),
    "B5": _variant(
        "hgnetv2_b5.ssld_stage1_in22k_in1k",
        (32, 64),
        6,
        (64, 128, 1),
        (128, 512, 2),
        (256, 1024, 5),
        (512, 2048, 2),
    ),
    "B6": _variant(
        "hgnetv2_b6.ssld_stage1_in22k_in1k",
        (48, 96),
        6,
        (96, 192, 2),
        (192, 512, 3),
        (384, 1024, 6),
        (768, 2048, 3),
    ),
}

_B0 = VARIANTS["B0"]


def _shortened_b0(third: StageSpec, late_kernel: int = 5) -> Variant:
    """Return B0 with another third stage and without the fourth (DEIMv2, Huang et al., 2025)."""
    stages = (*_B0.stages[:2], third)
    return Variant(_B0.stem, stages, _B0.timm_name, late_kernel, "B0")


VARIANTS["Pico"] = _shortened_b0(_B0.stages[2])
VARIANTS["Femto"] = _shortened_b0(StageSpec(64, 512, 1, 3))
VARIANTS["Atto"] = _shortened_b0(StageSpec(64, 256, 1, 3), late_kernel=3)
