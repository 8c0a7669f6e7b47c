"""Checks of the settings of `DFINETransformer`, which raise before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.validate import require


def check_levels(
    feat_channels: Sequence[int],
    feat_strides: Sequence[int],
    num_levels: int,
    points: list[int],
) -> None:
    """Check that the settings that have one entry per level agree.

    Args:
        feat_channels: channels of the encoder's maps.
        feat_strides: strides of the encoder's maps, in pixels.
        num_levels: number of levels that the decoder reads.
        points: number of sampling points in each level.

    Raises:
        ConfigError: if they do not agree.
    """
    num_maps = len(feat_channels)
    require(
        num_maps == len(feat_strides),
        f"DFINETransformer: feat_channels {list(feat_channels)} and feat_strides {list(feat_strides)} differ "
        f"in length",
    )
    require(
        num_maps <= num_levels,
        f"DFINETransformer: num_levels is {num_levels}, but there are {num_maps} feat_channels",
    )
    require(
        len(points) == num_levels,
        f"DFINETransformer: num_points {points} needs one number for each of {num_levels} levels",
    )


def check_layers(
    num_layers: int, eval_idx: int, layer_scale: float, reg_max: int
) -> None:
    """Check the settings of the layers and of their edge distributions.

    Args:
        num_layers: number of decoder layers.
        eval_idx: index of the layer whose output is used, from 0.
        layer_scale: relative width of the layers after it.
        reg_max: number of bins less one.

    Raises:
        ConfigError: if a number is out of range.
    """
    require(
        0 <= eval_idx < num_layers,
        f"DFINETransformer: eval_idx must point at one of {num_layers} layers",
    )
    check_minimum("layer_scale", layer_scale, 1)
    require(
        reg_max >= 4 and reg_max % 2 == 0,
        f"DFINETransformer: reg_max is {reg_max}, expected an even number from 4",
    )


def check_minimum(name: str, value: float, minimum: int) -> None:
    """Raise a ConfigError if the value of a setting is less than its minimum."""
    require(
        value >= minimum,
        f"DFINETransformer: {name} is {value}, expected at least {minimum}",
    )
