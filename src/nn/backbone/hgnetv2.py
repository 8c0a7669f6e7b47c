"""HGNetv2, D-FINE's own backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ...core.errors import CheckpointError, ConfigError
from ...core.registry import register
from ...runtime.distributed import main_first
from ...runtime.log import logger
from ...runtime.weight_files import read_tensor_file
from .hgnetv2_blocks import HGStage, Stem
from .hgnetv2_variants import VARIANTS
from .timm_weights import timm_state_dict

STRIDES = (4, 8, 16, 32)


@register()
class HGNetv2(nn.Module):
    """PP-HGNetV2 B0 to B6: `[B, 3, H, W]` in 0..1 to a list of maps, fine to coarse."""

    __role__ = "backbone"
    __load__ = "load_pretrained"

    def __init__(
        self,
        name: Literal["B0", "B1", "B2", "B3", "B4", "B5", "B6"],
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
            name: variant.
            use_lab: learnable affine blocks after each ReLU (N, S and M models).
            return_idx: stages to return, 0 to 3, of strides 4, 8, 16 and 32.
            freeze_stem_only: with `freeze_at` >= 0, freeze the stem but no stage.
            freeze_at: freeze the stem and, unless `freeze_stem_only`, stages 0 to this one; -1 freezes
                nothing.
            freeze_norm: batch norms keep their statistics and are not trained.
            pretrained: start from ImageNet weights.
            local_model_dir: folder with `PPHGNetV2_{name}_stage1.pth`.
        """
        super().__init__()
        if not return_idx or any(not 0 <= index <= 3 for index in return_idx):
            raise ConfigError(
                f"HGNetv2.return_idx is {list(return_idx)}, expected numbers from 0 to 3"
            )
        if not -1 <= freeze_at <= 3:
            raise ConfigError(
                f"HGNetv2.freeze_at is {freeze_at}, expected -1 (nothing) to 3"
            )
        variant = VARIANTS[name]
        self.name = name
        self.return_idx = list(return_idx)
        self.pretrained = pretrained
        self.licence_note: str | None = None
        self.local_model_dir = local_model_dir
        self.out_channels = [variant.stages[index].out for index in self.return_idx]
        self.out_strides = [STRIDES[index] for index in self.return_idx]

        mid, out = variant.stem
        self.stem = Stem(3, mid, out, use_lab=use_lab)
        inputs = [out, *(stage.out for stage in variant.stages)]
        self.stages = nn.ModuleList(
            HGStage(
                inputs[i],
                stage.mid,
                stage.out,
                stage.blocks,
                stage.layers,
                5 if i >= 2 else 3,
                downsample=i > 0,
                light=i >= 2,
                use_lab=use_lab,
            )
            for i, stage in enumerate(variant.stages)
        )

        self.stages[max(self.return_idx) + 1 :].requires_grad_(
            False
        )  # stages that nobody reads do not run
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
        """Load ImageNet weights from `local_model_dir`, else those that timm publishes.

        Raises:
            CheckpointError: if there is neither a file nor a network, or the file is of another model.
        """
        if not self.pretrained:
            return
        path = Path(self.local_model_dir) / f"PPHGNetV2_{self.name}_stage1.pth"
        if path.exists():
            weights = read_tensor_file(path)
            source = str(path)
        else:
            timm_name = VARIANTS[self.name].timm_name
            try:
                with main_first():
                    weights = timm_state_dict(timm_name)
                    source = f"timm {timm_name}"
            except CheckpointError as error:
                raise CheckpointError(
                    f"ImageNet weights for HGNetv2 {self.name} not found: no file {path}, and {error}; put "
                    f"the file "
                    f"there, or start without it: -u HGNetv2.pretrained=False"
                ) from None
        if not isinstance(weights, dict) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
        ):
            raise CheckpointError(f"{source} holds no state dict (names to tensors)")
        own = self.state_dict()
        weights = {
            key: value
            for key, value in weights.items()
            if not key.startswith("head.")
            and (key in own or "num_batches_tracked" not in key)
        }
        wrong = sorted(set(own) ^ set(weights)) or sorted(
            k for k in own if own[k].shape != weights[k].shape
        )
        if wrong:
            raise CheckpointError(
                f"{source} does not fit HGNetv2 {self.name}: {len(wrong)} tensors differ, first {wrong[0]}"
            )
        self.load_state_dict(weights)
        self.licence_note = f"HGNetv2 {self.name} by Baidu (PaddlePaddle), trained on ImageNet: Apache-2.0"
        logger.info(
            "HGNetv2 %s: loaded %d of %d tensors from %s",
            self.name,
            len(weights),
            len(own),
            source,
        )


def freeze_batch_norms(module: nn.Module) -> None:
    """Replace every `BatchNorm2d` below `module` by one with fixed statistics and affine values, all
    buffers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            freeze_batch_norms(child)
