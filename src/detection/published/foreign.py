"""Describe a file that does not hold a detector of this project, as far as its keys show."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...core.counts import counted
from ..model_table import TITLES, title_of
from .signatures import most_similar

_VIT_NAMES = {
    192: "ViT-Tiny",
    256: "ViT-Tiny+",
    384: "ViT-S",
    768: "ViT-B",
    1024: "ViT-L",
    1280: "ViT-H",
    4096: "ViT-7B",
}
"""Usual name of a ViT by its width; ViT-Tiny+ is DEIMv2's."""

_REGISTERS = ("storage_tokens", "reg_token", "embeddings.register_tokens")

_CLASSIFIERS = (
    "fc.weight",
    "head.weight",
    "head.fc.weight",
    "classifier.weight",
    "classifier.1.weight",
)
"""Weights of the last layer of classification models of torchvision and timm."""


def describe_foreign(weights: Mapping[str, Tensor]) -> str:
    """Return what a state dict without this project's class head is, as a noun phrase."""
    keys = {key.removeprefix("backbone.") for key in weights}
    count = f"{counted(len(weights), 'tensor')}, first {next(iter(weights), 'none')}"
    if any(key.startswith("model.") for key in weights):
        if any(".bbox_embed." in key for key in weights):
            return (
                f"a detector of transformers other than D-FINE, such as its own port of DEIMv2 ({count}); of "
                "transformers only D-FINE is supported, use the file of the detector's authors"
            )
        return f"a model whose keys begin with 'model.' ({count})"
    width = _vit_width(weights)
    if width is not None:
        name = _VIT_NAMES.get(width, f"ViT of width {width}")
        if keys.isdisjoint(_CLASSIFIERS):
            has_registers = not keys.isdisjoint(_REGISTERS)
            kind = "DINOv3 " if has_registers else ""
            return (
                f"a {kind}{name} backbone without a detector ({count}); a configuration loads it with "
                "DINOv3Backbone.checkpoint_path"
            )
    if not keys.isdisjoint(_CLASSIFIERS):
        kind = ""
        if "layer1.0.conv1.weight" in keys:
            kind = "ResNet "
        elif width is not None:
            kind = "ViT "
        return f"a classification model, {kind}with a last layer for classes ({count})"
    if any(key.startswith("stem.stem1.") for key in keys):
        return f"an HGNetv2 backbone without a detector ({count})"
    return f"a file with {count}"


def describe_unknown_detector(weights: Mapping[str, Tensor]) -> str:
    """Return which architecture a detector resembles most, as a clause."""
    found = most_similar(weights)
    if found is None:
        family = _family_of_parts(weights)
        return f"no part of it has the shapes of a known model; its keys are those of {family}"
    name, differing = found
    parts = " and ".join(differing)
    verb = "differs" if len(differing) == 1 else "differ"
    return f"it resembles {title_of(name)} most, but its {parts} {verb}"


def _family_of_parts(weights: Mapping[str, Tensor]) -> str:
    if any(key.startswith("backbone.adapter.detail.") for key in weights):
        return TITLES["deimv2"]
    if any(
        key.startswith("decoder.") and key.endswith("norm1.scale")
        for key in weights
    ):
        return TITLES["deimv2"]
    if any(key.startswith("backbone.vit.") for key in weights):
        return TITLES["dfine_dinov3"]
    return TITLES["dfine"]


def _vit_width(weights: Mapping[str, Tensor]) -> int | None:
    """Return the width of a ViT, or None if the state dict is not one."""
    for key, value in weights.items():
        if key.endswith("cls_token") and value.ndim == 3:
            return value.shape[-1]
    return None
