"""Channel tables of PP-HGNetV2 B0 to B6."""

from __future__ import annotations

from typing import NamedTuple


class StageSpec(NamedTuple):
    """One stage: width inside blocks, output width, number of blocks, layers in each block."""

    mid: int
    out: int
    blocks: int
    layers: int


class Variant(NamedTuple):
    """Stem widths (middle, output), four stages, and the name of timm's ImageNet weights."""

    stem: tuple[int, int]
    stages: tuple[StageSpec, ...]
    """Four of them."""
    timm_name: str


def _variant(
    timm_name: str, stem: tuple[int, int], layers: int, *stages: tuple[int, int, int]
) -> Variant:
    return Variant(
        stem,
        tuple(StageSpec(mid, out, blocks, layers) for mid, out, blocks in stages),
        timm_name,
    )


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
