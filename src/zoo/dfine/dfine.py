"""The detector: backbone, encoder and decoder in sequence."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ...core.contracts import Deployable
from ...core.errors import ConfigError
from ...core.registry import register
from ...ops.onednn import use_onednn
from ...runtime.memory import keep_freed_memory


@register()
class DFINE(nn.Module):
    """The D-FINE detector, which maps images to boxes and class logits."""

    __role__ = "model"
    __inject__ = ["backbone", "encoder", "decoder"]

    def __init__(
        self, backbone: nn.Module, encoder: nn.Module, decoder: nn.Module
    ) -> None:
        """Connect the parts.

        Raises:
            ConfigError: if channels or strides of consecutive parts do not agree, or if the decoder's
                `eval_spatial_size` is not a multiple of 32.
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
        use_onednn(self)

    def forward(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Any]:
        """Detect objects.

        Args:
            images: RGB images, `[B, 3, H, W]` in 0..1; H and W are multiples of 32.
            targets: in training, `labels [T]` and `boxes [T, 4]` (cxcywh, 0..1) of each image.

        Returns:
            `pred_logits [B, Q, C]` and `pred_boxes [B, Q, 4]` (cxcywh, 0..1). In training also what
            `DFINECriterion` needs.

        Raises:
            ConfigError: if a side is not a multiple of 32.
        """
        check_image_size(images.shape[-2], images.shape[-1])
        return self.decoder(self.encoder(self.backbone(images)), targets)

    def deploy(self) -> DFINE:
        """Return a copy for inference: eval mode, norms fused into convolutions, training heads dropped.

        On a CPU, the C library keeps freed memory from now on: between the parts of a model it would return
        and clear more than 100 MB per image, which takes 4 % of the time.
        """
        keep_freed_memory()
        model = copy.deepcopy(self).eval()
        for module in list(model.modules()):
            if isinstance(module, Deployable):
                module.convert_to_deploy()
        use_onednn(model)  # the conversion has made new layers
        return (
            model.eval()
        )  # modules created by the conversion are in training mode


def check_image_size(
    height: int, width: int, multiple: int = 32, *, name: str = "image"
) -> None:
    """Raise if a side is not a multiple of the coarsest stride of the pyramid.

    Args:
        height: height in pixels.
        width: width in pixels.
        multiple: number that both sides must be a multiple of.
        name: name of what has this size, for the message.

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
    """Compare the channels and strides that one part gives with those that the next expects.

    A part written by a user may lack these attributes; they are then not compared.
    """
    adds_levels = (
        taker_key == "feat_channels"
    )  # a decoder makes coarser levels itself
    for given_key, wanted_key in (
        ("out_channels", taker_key),
        ("out_strides", "feat_strides"),
    ):
        given = getattr(giver, given_key, None)
        wanted = getattr(taker, wanted_key, None)
        if given is None or wanted is None:
            continue
        compared = list(wanted)
        if adds_levels and wanted_key == "feat_strides":
            compared = compared[: len(given)]
        if list(given) != compared:
            raise ConfigError(
                f"{type(taker).__name__}.{wanted_key} is {list(wanted)} but {type(giver).__name__} gives "
                f"{list(given)}; set {wanted_key} to match"
            )
