"""The detector: backbone, encoder and decoder in sequence."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ...core.contracts import Deployable
from ...core.errors import ConfigError
from ...core.registry import register


@register()
class DFINE(nn.Module):
    """D-FINE detector, which maps images to boxes and class logits."""

    __role__ = "model"
    __inject__ = ["backbone", "encoder", "decoder"]

    def __init__(
        self, backbone: nn.Module, encoder: nn.Module, decoder: nn.Module
    ) -> None:
        """Connect the parts.

        Raises:
            ConfigError: if channels or strides of neighbours do not agree (both lists are named), or the
                decoder's `eval_spatial_size` is not a multiple of 32.
        """
        super().__init__()
        size = getattr(decoder, "eval_spatial_size", None)
        if size:
            check_image_size(*size, name="eval_spatial_size")
        _check_joint(backbone, encoder, "in_channels")
        _check_joint(encoder, decoder, "feat_channels")
        self.backbone = backbone
        self.decoder = decoder
        self.encoder = encoder

    def forward(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Any]:
        """Detect objects.

        Args:
            images: `[B, 3, H, W]` in 0..1, RGB; H and W multiples of 32.
            targets: for training, for each image `labels [T]` and `boxes [T, 4]` (cxcywh, 0..1).

        Returns:
            Eval: `pred_logits [B, Q, C]` and `pred_boxes [B, Q, 4]` (cxcywh, 0..1). Training: these and what
            `DFINECriterion` needs.

        Raises:
            ConfigError: if a side is not a multiple of 32.
        """
        check_image_size(images.shape[-2], images.shape[-1])
        return self.decoder(self.encoder(self.backbone(images)), targets)

    def deploy(self) -> DFINE:
        """Return a copy for inference: eval mode, norms fused into convolutions, training heads dropped."""
        model = copy.deepcopy(self).eval()
        for module in list(model.modules()):
            if isinstance(module, Deployable):
                module.convert_to_deploy()
        return model.eval()  # modules that the conversion made start in training mode


def check_image_size(
    height: int, width: int, multiple: int = 32, *, name: str = "image"
) -> None:
    """Refuse sizes that the pyramid cannot halve five times; `name` says whose size it is.

    Raises:
        ConfigError: with the nearest valid sizes.
    """
    for axis, side in (("height", height), ("width", width)):
        if side % multiple or side < multiple:
            below = max(side // multiple, 1) * multiple
            above = (side // multiple + 1) * multiple
            nearest = f"{below} or {above}" if below < side else str(below)
            raise ConfigError(
                f"{name} {axis} {side} is not a multiple of {multiple}; the nearest valid sizes are {nearest}"
            )


def _check_joint(giver: nn.Module, taker: nn.Module, taker_key: str) -> None:
    """Compare what one part gives with what the next expects; parts of a user's own may not say."""
    for given_key, wanted_key in (
        ("out_channels", taker_key),
        ("out_strides", "feat_strides"),
    ):
        given = getattr(giver, given_key, None)
        wanted = getattr(taker, wanted_key, None)
        if given is None or wanted is None:
            continue
        may_add_levels = (taker_key, wanted_key) == (
            "feat_channels",
            "feat_strides",
        )  # a decoder makes coarser ones itself
        if list(given) != (
            list(wanted)[: len(given)] if may_add_levels else list(wanted)
        ):
            raise ConfigError(
                f"{type(taker).__name__}.{wanted_key} is {list(wanted)} but {type(giver).__name__} gives "
                f"{list(given)}; "
                f"set {wanted_key} to match"
            )
