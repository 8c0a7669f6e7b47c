"""HGNetv2, D-FINE's own backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError
from ...core.registry import register
from ...ops.batch_norm import FrozenBatchNorm2d
from ...runtime.distributed import main_first
from ...runtime.log import logger
from ...runtime.weight_files import read_tensor_file
from .hgnetv2_blocks import HGStage, Stem
from .hgnetv2_variants import VARIANTS
from .timm_weights import is_state_dict, timm_state_dict

STRIDES = (4, 8, 16, 32)


@register()
class HGNetv2(nn.Module):
    """PP-HGNetV2, from images `[B, 3, H, W]` in 0..1 to a list of maps, fine to coarse.

    The variants are B0 to B6, and DEIMv2's Pico, Femto and Atto, which end after the third stage.
    """

    __role__ = "backbone"
    __load__ = "load_pretrained"

    def __init__(
        self,
        name: Literal[
            "B0",
            "B1",
            "B2",
            "B3",
            "B4",
            "B5",
            "B6",
            "Pico",
            "Femto",
            "Atto",
        ],
        *,
        use_lab: bool = False,
        return_idx: Sequence[int] = (1, 2, 3),
        freeze_stem_only: bool = True,
        freeze_at: int = 0,
        freeze_norm: bool = True,
        pretrained: bool = True,
        local_model_dir: str = "weight/hgnetv2/",
    ) -> None:
        """Build the layers; `load_pretrained` reads the weights.

        Args:
            name: name of the variant.
            use_lab: add a learnable affine block after each ReLU (N, S and M models).
            return_idx: indices of the stages whose maps are returned, 0 to 3 for strides 4, 8, 16 and 32.
            freeze_stem_only: if `freeze_at` is at least 0, freeze the stem but no stage.
            freeze_at: freeze the stem and, unless `freeze_stem_only` is set, stages 0 to this one; -1 freezes
                neither.
            freeze_norm: keep the statistics of batch norms, and do not train their weights.
            pretrained: start from ImageNet weights.
            local_model_dir: folder with `PPHGNetV2_{name}_stage1.pth`. For Pico, Femto and Atto, the file of
                B0 is used as far as names and shapes agree.

        Raises:
            ConfigError: if `return_idx` or `freeze_at` is out of range.
        """
        super().__init__()
        variant = VARIANTS[name]
        last = len(variant.stages) - 1
        if not return_idx or any(
            not 0 <= index <= last for index in return_idx
        ):
            raise ConfigError(
                f"HGNetv2.return_idx is {list(return_idx)}, expected numbers from 0 to {last}"
            )
        if not -1 <= freeze_at <= last:
            raise ConfigError(
                f"HGNetv2.freeze_at is {freeze_at}, expected -1 (nothing) to {last}"
            )
        self.name = name
        self.return_idx = list(return_idx)
        self.pretrained = pretrained
        self.licence_note: str | None = None
        self.local_model_dir = local_model_dir
        self.out_channels = [
            variant.stages[index].out for index in self.return_idx
        ]
        self.out_strides = [STRIDES[index] for index in self.return_idx]

        mid, out = variant.stem
        self.stem = Stem(3, mid, out, use_lab=use_lab)
        channels = out
        self.stages = nn.ModuleList()
        for index, spec in enumerate(variant.stages):
            is_late = index >= 2
            stage = HGStage(
                channels,
                spec.mid,
                spec.out,
                spec.blocks,
                spec.layers,
                variant.late_kernel if is_late else 3,
                downsample=index > 0,
                light=is_late,
                use_lab=use_lab,
            )
            self.stages.append(stage)
            channels = spec.out

        # Stages after the last returned one do not run.
        self.stages[max(self.return_idx) + 1 :].requires_grad_(False)
        if freeze_at >= 0:
            self.stem.requires_grad_(False)
            if not freeze_stem_only:
                self.stages[: freeze_at + 1].requires_grad_(False)
        if freeze_norm:
            freeze_batch_norms(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images `[B, 3, H, W]` in 0..1 to `[B, C_l, H/s, W/s]` for the strides of `return_idx`."""
        x = self.stem(images)
        maps = []
        for index, stage in enumerate(self.stages[: max(self.return_idx) + 1]):
            x = stage(x)
            if index in self.return_idx:
                maps.append(x)
        return maps

    def load_pretrained(self) -> None:
        """Load ImageNet weights from `local_model_dir`, or else those that timm publishes.

        Raises:
            CheckpointError: if there is neither a file nor a network, or the weights do not fit the model.
        """
        if not self.pretrained:
            return
        variant = VARIANTS[self.name]
        source_name = variant.start_from or self.name
        path = (
            Path(self.local_model_dir) / f"PPHGNetV2_{source_name}_stage1.pth"
        )
        if path.exists():
            weights = read_tensor_file(path)
            source = str(path)
        else:
            try:
                with main_first():
                    weights = timm_state_dict(variant.timm_name)
                    source = f"timm {variant.timm_name}"
            except CheckpointError as error:
                raise CheckpointError(
                    f"ImageNet weights for HGNetv2 {self.name} not found: no file {path}, and {error}; put "
                    f"the file there, or start without it: -u HGNetv2.pretrained=False"
                ) from None
        if not isinstance(weights, dict) or not is_state_dict(weights):
            raise CheckpointError(
                f"{source} is not a state dict (names to tensors)"
            )
        own = self.state_dict()
        weights = _without_classifier(weights, own)
        num_loaded = len(weights)
        if variant.start_from:
            shared = _of_equal_shape(weights, own)
            num_loaded = len(shared)
            weights = own | shared
        different = sorted(set(own) ^ set(weights))
        if not different:
            different = sorted(
                key for key in own if own[key].shape != weights[key].shape
            )
        if different:
            raise CheckpointError(
                f"{source} does not fit HGNetv2 {self.name}: {len(different)} tensors differ, first "
                f"{different[0]}"
            )
        self.load_state_dict(weights)
        self.licence_note = f"HGNetv2 {self.name} by Baidu (PaddlePaddle), trained on ImageNet: Apache-2.0"
        logger.info(
            "HGNetv2 %s: loaded %d of %d tensors from %s",
            self.name,
            num_loaded,
            len(own),
            source,
        )


def _without_classifier(
    weights: dict[str, Tensor], own: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights without the classifier, and without counters that frozen batch norms do not have."""
    kept = {}
    for key, value in weights.items():
        is_counter = "num_batches_tracked" in key and key not in own
        if not is_counter and not key.startswith("head."):
            kept[key] = value
    return kept


def _of_equal_shape(
    weights: dict[str, Tensor], own: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights whose name and shape occur in a model."""
    kept = {}
    for key, value in weights.items():
        if key in own and own[key].shape == value.shape:
            kept[key] = value
    return kept


def freeze_batch_norms(module: nn.Module) -> None:
    """Replace every `BatchNorm2d` below `module` by a `FrozenBatchNorm2d`, whose values are all buffers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(
                module,
                name,
                FrozenBatchNorm2d(child.num_features, eps=child.eps),
            )
        else:
            freeze_batch_norms(child)
