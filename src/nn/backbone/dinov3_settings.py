"""Settings of `DINOv3Backbone` that depend on each other: tapped blocks, windows, training and the adapter.

The functions choose defaults and refuse contradictions. They are separate because they need
only numbers, no ViT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NoReturn

from ...core.counts import counted
from ...core.errors import ConfigError
from .concat_adapter import ConcatAdapter
from .spatial_tuning_adapter import SpatialTuningAdapter


def checked_taps(taps: Sequence[int] | None, depth: int) -> list[int]:
    """Return the blocks to read, by default those at 1/2, 3/4 and 4/4 of the depth.

    Raises:
        ConfigError: if they are not ascending numbers of blocks.
    """
    if taps is None:
        ends = {round(depth * part / 4) for part in (2, 3, 4)}
        return sorted(end - 1 for end in ends if end)
    taps = list(taps)
    if (
        not taps
        or taps != sorted(set(taps))
        or not 0 <= taps[0] <= taps[-1] < depth
    ):
        raise ConfigError(
            f"DINOv3Backbone.tap_blocks is {taps}, expected ascending numbers from 0 to {depth - 1}"
        )
    return taps


def checked_window_blocks(
    windows: int, blocks: Sequence[int] | None, taps: Sequence[int]
) -> list[int]:
    """Return the blocks that attend within windows, by default all before the last tap that are not tapped.

    The list is empty if there is one window.

    Raises:
        ConfigError: if the blocks do not exist, or if windows and blocks contradict each other.
    """
    if windows < 1:
        raise ConfigError(
            f"DINOv3Backbone.windows is {windows}, expected at least 1, which means no windows"
        )
    if windows == 1 and blocks is None:
        return []
    if blocks is None:
        blocks = sorted(set(range(taps[-1])) - set(taps))
        if not blocks:
            raise ConfigError(
                f"DINOv3Backbone.windows is {windows}, but every block up to the last tap is tapped "
                f"(tap_blocks {list(taps)}); name the blocks with windows in window_blocks"
            )
    blocks = list(blocks)
    if windows == 1:
        raise ConfigError(
            f"DINOv3Backbone.window_blocks is {blocks}, but windows is 1, which means no windows; remove "
            "window_blocks, or set windows to 2"
        )
    is_ascending = blocks == sorted(set(blocks))
    if (
        not blocks
        or not is_ascending
        or not 0 <= blocks[0] <= blocks[-1] <= taps[-1]
    ):
        raise ConfigError(
            f"DINOv3Backbone.window_blocks is {blocks}, expected ascending numbers from 0 to {taps[-1]}, the "
            "last block that is read"
        )
    return blocks


def build_adapter(
    kind: Literal["mixture", "concat"],
    width: int,
    out_channels: int | Sequence[int],
    feat_strides: Sequence[int],
    num_taps: int,
    *,
    tap_norm: Literal["final", "own", "none"],
    upsample_mode: Literal["bilinear", "nearest"],
    position_encoding: bool,
    detail_channels: int,
    detail_strides: Sequence[int] | None,
    start: Literal["smooth", "random"],
) -> SpatialTuningAdapter | ConcatAdapter:
    """Build the adapter; the arguments are those of `DINOv3Backbone`, `width` is that of the ViT.

    Raises:
        ConfigError: for settings that "concat" does not have.
    """
    if kind == "concat":
        _refuse_for_concat(
            tap_norm, upsample_mode, position_encoding, detail_strides, start
        )
        return ConcatAdapter(
            width,
            out_channels,
            feat_strides,
            num_taps,
            detail_channels=detail_channels,
        )
    return SpatialTuningAdapter(
        width,
        out_channels,
        feat_strides,
        num_taps,
        upsample_mode=upsample_mode,
        detail_channels=detail_channels,
        detail_strides=detail_strides,
        layer_norm=tap_norm == "own",
        position_encoding=position_encoding,
        start=start,
    )


def refuse_for_frozen(
    lora_rank: int, windows: int, window_blocks: Sequence[int]
) -> None:
    """Raise `ConfigError` for LoRA or windows in a ViT that is never trained."""
    if lora_rank:
        raise ConfigError(
            "DINOv3Backbone: no block is ever trained (freeze_backbone, unfreeze_blocks, unfreeze_plan), "
            "so that LoRA would never learn; let some train (with LoRA the ViT's own weights stay frozen "
            "anyway), or set lora_rank to 0"
        )
    if window_blocks:
        raise _untrained_windows(windows, "no block is ever trained")


def refuse_windows_for_short_run(windows: int, epochs: int) -> NoReturn:
    """Raise `ConfigError` for windows in a run that ends before any block of the ViT is trained."""
    raise _untrained_windows(
        windows,
        f"no block is trained in the {counted(epochs, 'epoch')} of this run",
    )


def _untrained_windows(windows: int, reason: str) -> ConfigError:
    return ConfigError(
        f"DINOv3Backbone.windows is {windows}, but {reason} (freeze_backbone, freeze_backbone_epochs, "
        "unfreeze_blocks, unfreeze_plan); expected a ViT that is trained, since published weights attend "
        "globally and must adapt to windows; let it train, or set windows to 1"
    )


def _refuse_for_concat(
    tap_norm: str,
    upsample_mode: str,
    position_encoding: bool,
    detail_strides: Sequence[int] | None,
    adapter_start: str,
) -> None:
    """Raise for settings that only the other adapter has."""
    unused = {
        "tap_norm: own": tap_norm == "own",
        "upsample_mode: nearest": upsample_mode != "bilinear",
        "position_encoding: True": position_encoding,
        f"detail_strides: {detail_strides}": detail_strides is not None,
        "adapter_start: random": adapter_start != "smooth",
    }
    for setting, is_set in unused.items():
        if is_set:
            raise ConfigError(
                f"DINOv3Backbone: adapter: concat has no {setting}; remove it, or set adapter: mixture"
            )
