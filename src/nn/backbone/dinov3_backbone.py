"""DINOv3 as a detection backbone: timm's ViT, whose features are read at several depths, and an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ...core.contracts import Learning
from ...core.durations import EpochLength, RunLength
from ...core.errors import ConfigError
from ...core.registry import Argument, arguments_of, register
from ...runtime.log import logger
from ...runtime.quick_imports import import_timm
from ..lora import add_lora
from .deployed_vit import convert_vit_to_deploy
from .dinov3_settings import (
    build_adapter,
    checked_taps,
    checked_window_blocks,
    refuse_for_frozen,
    refuse_windows_for_short_run,
)
from .dinov3_weights import licence_of, load_published_weights
from .spatial_tuning_adapter import PATCH, STRIDES
from .thaw_plan import ThawPlan, read_phases
from .vits import ALIASES, build_vit
from .windowed_vit import WindowGrid, windowed_taps

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import Eva

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SET_BY_BACKBONE = frozenset(
    {
        "img_size",
        "patch_size",
        "in_chans",
        "num_classes",
        "global_pool",
        "dynamic_img_size",
        "dynamic_img_pad",
        "drop_path_rate",
        "rope_rescale_coords",
        "norm_layer",
        "device",
        "dtype",
    }
)
"""Arguments of timm's ViT that this class sets itself."""


def _timm_arguments() -> dict[str, Argument]:
    """Return the arguments of timm's ViT that a configuration may set."""
    import_timm()
    from timm.models.eva import Eva

    arguments = dict(arguments_of(Eva))
    for name in _SET_BY_BACKBONE:
        arguments.pop(name, None)
    return arguments


@register()
class DINOv3Backbone(nn.Module):
    """A DINOv3 ViT with an adapter, from images `[B, 3, H, W]` in 0..1 to maps of strides 8, 16 and 32.

    H and W can be any multiples of 32.
    """

    __role__ = "backbone"
    image_mean: Tensor
    image_std: Tensor

    __load__ = "load_pretrained"
    __extra_arguments__ = staticmethod(_timm_arguments)

    def __init__(
        self,
        model_name: str = "dinov3_small",
        *,
        pretrained: bool = True,
        checkpoint_path: str | None = None,
        checkpoint_sha256: str | None = None,
        out_channels: int | Sequence[int] = 256,
        feat_strides: Sequence[int] = STRIDES,
        freeze_backbone: bool = False,
        freeze_backbone_epochs: EpochLength = 0,
        unfreeze_blocks: int | None = None,
        unfreeze_plan: Sequence[tuple[EpochLength, int]] | None = None,
        unfreeze_lr_factor: float = 1.0,
        layer_decay: float = 1.0,
        tap_blocks: Sequence[int] | None = None,
        tap_norm: Literal["final", "own", "none"] = "final",
        adapter: Literal["mixture", "concat"] = "mixture",
        upsample_mode: Literal["bilinear", "nearest"] = "bilinear",
        position_encoding: bool = False,
        detail_channels: int = 16,
        detail_strides: Sequence[int] | None = None,
        adapter_start: Literal["smooth", "random"] = "smooth",
        windows: int = 1,
        window_blocks: Sequence[int] | None = None,
        gradient_checkpointing: bool = False,
        rope_rescale_coords: float | None = None,
        rope_periods: Literal["computed", "stored"] = "computed",
        drop_path: float = 0.0,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        lora_targets: Sequence[str] = ("attention", "mlp"),
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        **vit_arguments: Any,
    ) -> None:
        """Build the layers; `load_pretrained` reads the weights.

        Args:
            model_name: timm's name of a DINOv3 ViT; or dinov3_small, dinov3_small_plus, dinov3_base,
                dinov3_large; or deimv2_tiny, deimv2_tiny_plus, the small ViTs of DEIMv2.
            pretrained: start from the published DINOv3 weights.
            checkpoint_path: file of these weights; None uses the official name in `weights/`.
            checkpoint_sha256: SHA-256 digest of this file, or at least its first 8 digits.
            out_channels: channels of the maps, one number for all or one for each stride.
            feat_strides: strides of the maps, any of 8, 16 and 32.
            freeze_backbone: never train the ViT, only the adapter.
            freeze_backbone_epochs: number of epochs in which the ViT is frozen before it is trained; 0
                trains it from the start.
            unfreeze_blocks: number of the last blocks that are trained after that, with the final norm; None
                trains the whole ViT. Patch embedding and tokens are trained only with the first block.
            unfreeze_plan: any number of phases instead of the two settings above, as pairs of (epoch, number
                of the last blocks that are trained from this epoch on).
            unfreeze_lr_factor: factor on the learning rate of parameters that are unfrozen during the run.
            layer_decay: factor on the learning rate from each block to the block before (BEiT, Bao et al.,
                2022). Block i of n has layer_decay ** (n - i), embedding and tokens layer_decay
                ** (n + 1), the final norm 1.
            tap_blocks: ascending indices of the blocks to read, from 0; None reads three evenly spaced blocks
                up to the last. The ViT ends with the last of them: blocks behind it are not in the model.
            tap_norm: LayerNorm before the adapter: "final" applies the final norm of the ViT to every tap,
                "own" gives each tap a new norm, "none" applies none.
            adapter: "mixture" gives each level a learned mixture of all taps (`SpatialTuningAdapter`),
                "concat" one tap and the details of its stride (`ConcatAdapter`, DEIMv2).
            upsample_mode: interpolation from stride 16 to stride 8; mixture only.
            position_encoding: add a learned position code in the adapter; mixture only.
            detail_channels: width of the convolutional detail branch in the adapter; 0 builds none.
            detail_strides: strides of the maps that get details, any of feat_strides; None gives all of them
                details; mixture only.
            adapter_start: values of the adapter before training: "smooth" gives each level mainly its own
                tap, makes stride 32 from means of 2 x 2 cells and reduces the details, "random" gives all
                taps equal shares and all convolutions random weights; mixture only.
            windows: windows per side of the image; blocks in `window_blocks` attend only within a window. It
                is reduced to its greatest common divisor with the number of patches in a direction, so every
                size works; 2 divides every multiple of 32 pixels. If nothing is left of it in training, a
                warning is logged. 1 attends globally in all blocks.
            window_blocks: ascending indices of the blocks with windows, from 0; None takes all that are not
                tapped.
            gradient_checkpointing: recompute blocks in the backward pass, which saves memory and takes time.
            rope_rescale_coords: in training, scale the RoPE coordinates by a random factor from 1 / r to r;
                None does not scale them.
            rope_periods: "computed" computes the periods of the RoPE codes; "stored" makes them a part of
                the weights, so that a checkpoint decides (DEIMv2).
            drop_path: rate of stochastic depth in the last of `depth` blocks, 0..1; it decreases linearly
                to the first block. Windows of an image are dropped independently.
            lora_rank: rank of the low-rank updates that are trained instead of the ViT's own weights
                (`src/nn/lora.py`); 0 disables LoRA.
            lora_alpha: the updates are scaled by alpha / rank; None uses the rank.
            lora_targets: layers with updates: "attention" (or qkv, proj), "mlp" (or fc1, fc2).
            image_mean: mean of each channel in 0..1, which `forward` subtracts.
            image_std: standard deviation of each channel, by which `forward` divides.
            vit_arguments: other arguments of timm's ViT, such as embed_dim, depth and num_heads for small
                models. With a smaller depth than the weights have, their last blocks are left out.

        Raises:
            ConfigError: if the model, a tapped block, a block with windows, a stride or a LoRA target does
                not exist, if the LoRA rank is out of range, if the settings about training contradict each
                other, or if a ViT with windows is never trained.
        """
        super().__init__()
        if not all(value > 0 for value in image_std):
            raise ConfigError(
                f"DINOv3Backbone.image_std is {list(image_std)}, expected numbers above 0"
            )
        self.model_name = ALIASES.get(model_name, model_name)
        self.pretrained = pretrained
        self.checkpoint_path = checkpoint_path
        self.checkpoint_sha256 = checkpoint_sha256
        self.licence_note: str | None = None
        self.vit = build_vit(
            self.model_name,
            store_periods=rope_periods == "stored",
            drop_path_rate=drop_path,
            rope_rescale_coords=rope_rescale_coords,
            **vit_arguments,
        )
        self.tap_blocks = checked_taps(tap_blocks, len(self.vit.blocks))
        depth = self.tap_blocks[-1] + 1
        self.vit.blocks = self.vit.blocks[:depth]
        self.lora_rank = lora_rank
        if lora_rank:
            add_lora(self.vit, lora_rank, lora_alpha, lora_targets)
        self.tap_norm = tap_norm
        self.windows = windows
        self.window_blocks = checked_window_blocks(
            windows, window_blocks, self.tap_blocks
        )
        self.adapter = build_adapter(
            adapter,
            self.vit.embed_dim,
            out_channels,
            feat_strides,
            len(self.tap_blocks),
            tap_norm=tap_norm,
            upsample_mode=upsample_mode,
            position_encoding=position_encoding,
            detail_channels=detail_channels,
            detail_strides=detail_strides,
            start=adapter_start,
        )
        self.out_channels = self.adapter.out_channels
        self.out_strides = list(feat_strides)
        mean = torch.tensor(image_mean).view(1, 3, 1, 1)
        std = torch.tensor(image_std).view(1, 3, 1, 1)
        self.register_buffer("image_mean", mean, persistent=False)
        self.register_buffer("image_std", std, persistent=False)
        if gradient_checkpointing:
            self.vit.set_grad_checkpointing(True)
        phases = read_phases(
            depth,
            frozen=freeze_backbone,
            frozen_epochs=freeze_backbone_epochs,
            blocks=unfreeze_blocks,
            plan=unfreeze_plan,
        )
        self.plan = ThawPlan(
            depth,
            phases,
            lr_factor=unfreeze_lr_factor,
            layer_decay=layer_decay,
            uses_final_norm=tap_norm == "final",
            lora_only=lora_rank > 0,
        )
        if not self.ever_learns:
            refuse_for_frozen(lora_rank, windows, self.window_blocks)
        self._reported_frozen: int | None = None
        self._reported_undivided = False
        self.trainable_blocks = 0
        self.set_trainable_blocks(phases[0].blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images `[B, 3, H, W]` in 0..1, RGB, to one map `[B, C, H/s, W/s]` for each stride s."""
        images = (images - self.image_mean) / self.image_std
        if self.window_blocks:
            taps = self._windowed_taps(images)
        else:
            taps = self.taps_of(self.vit, images)
        return self.adapter(taps, images)

    def taps_of(self, vit: Eva, images: Tensor) -> list[Tensor]:
        """Return the patch features of the tapped blocks, `[B, D, H/16, W/16]` each, without windows.

        A frozen teacher is read this way, because its weights attend globally.

        Args:
            vit: `self.vit` or a ViT of the same kind.
            images: normalized images, `[B, 3, H, W]`.
        """
        with self._precision(images):
            # Class and register tokens are not part of the result.
            taps = vit.forward_intermediates(
                images,
                indices=self.tap_blocks,
                norm=self.tap_norm == "final",
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        return cast("list[Tensor]", taps)

    def _windowed_taps(self, images: Tensor) -> list[Tensor]:
        """Return what `taps_of` returns for `self.vit`, with windows in `window_blocks`."""
        if self.training and not self._reported_undivided:
            self._report_undivided(*images.shape[-2:])
        with self._precision(images):
            return windowed_taps(
                self.vit,
                images,
                self.tap_blocks,
                windows=self.windows,
                window_blocks=self.window_blocks,
                norm=self.tap_norm == "final",
            )

    def convert_to_deploy(self) -> None:
        """Convert the ViT to a smaller form with the same outputs, in place."""
        convert_vit_to_deploy(self.vit)

    def compile_for_training(self) -> None:
        """Compile the blocks of the ViT with `torch.compile`; copies of the model are not compiled.

        Blocks are compiled one by one, because they then share one compiled form for all image sizes. The
        ViT as a whole would be compiled again for each size. The state dict does not change.
        """
        for block in self.vit.blocks:
            block.compile(dynamic=True)

    @staticmethod
    def __resolve_lengths__(
        settings: Mapping[str, Any], run: RunLength
    ) -> dict[str, Any]:
        """Keep only the later of two phases that begin in the same epoch because the run is short."""
        plan = settings.get("unfreeze_plan") or []
        if any(len(phase) != 2 for phase in plan):
            return {}  # the constructor refuses it
        written = [when for when, _ in plan]
        setting = "DINOv3Backbone.unfreeze_plan"
        starts = [run.in_epochs(when, setting) for when in written]
        if len(set(written)) < len(written) or starts != sorted(starts):
            return {}  # the constructor refuses this too
        blocks_from: dict[int, int] = {}
        for start, (_, blocks) in zip(starts, plan):
            blocks_from[start] = blocks
        if len(blocks_from) == len(plan):
            return {}
        return {"unfreeze_plan": [list(phase) for phase in blocks_from.items()]}

    @property
    def ever_learns(self) -> bool:
        """True if any block of the ViT is trained in any phase."""
        return self.plan.ever_learns

    def check_epochs(self, epochs: int) -> None:
        """Check that a run trains the ViT if it has windows.

        Args:
            epochs: length of the run.

        Raises:
            ConfigError: if all blocks stay frozen.
        """
        if self.window_blocks and not self.plan.blocks_in(max(epochs - 1, 0)):
            refuse_windows_for_short_run(self.windows, epochs)

    def set_epoch(self, epoch: int) -> None:
        """Freeze and unfreeze blocks as planned for an epoch (from 0)."""
        blocks = self.plan.blocks_in(epoch)
        if blocks != self.trainable_blocks:
            self.set_trainable_blocks(blocks)
        self._report_frozen_windows(epoch)

    def _report_frozen_windows(self, epoch: int) -> None:
        """Log a warning if blocks with windows are frozen, once for each number of them."""
        first = len(self.vit.blocks) - self.trainable_blocks
        frozen = sum(block < first for block in self.window_blocks)
        if frozen and frozen != self._reported_frozen:
            logger.warning(
                "DINOv3Backbone: %d of the %d blocks with windows are frozen in the phase from epoch %d; "
                "published weights attend globally and adapt to windows only while they are trained "
                "(freeze_backbone_epochs, unfreeze_blocks, unfreeze_plan)",
                frozen,
                len(self.window_blocks),
                epoch + 1,
            )
        self._reported_frozen = frozen

    def _report_undivided(self, height: int, width: int) -> None:
        """Log a warning, once, if images of this size in pixels get no windows in a direction."""
        rows, columns = height // PATCH, width // PATCH
        grid = WindowGrid.fitting(rows, columns, self.windows)
        if min(grid.rows, grid.columns) > 1:
            return
        logger.warning(
            "DINOv3Backbone.windows is %d, which has no common divisor with the %d x %d patches of images of "
            "%d x %d pixels in a direction: these images get %d x %d windows (rows x columns); windows: 2 "
            "divides every input size",
            self.windows,
            rows,
            columns,
            height,
            width,
            grid.rows,
            grid.columns,
        )
        self._reported_undivided = True

    def learning_plan(self) -> dict[str, Learning]:
        """Return first epoch and rate factor of every parameter of the ViT that is trained at any time.

        Names are relative to this module. The method changes nothing.
        """
        plan: dict[str, Learning] = {}
        for name, _ in self.vit.named_parameters():
            learning = self.plan.learning(name)
            if learning is not None:
                plan[f"vit.{name}"] = learning
        return plan

    def set_trainable_blocks(self, count: int) -> None:
        """Train the last `count` blocks and the final norm, and freeze the rest of the ViT.

        Patch embedding and tokens are trained only with the first block. Frozen blocks run in eval mode and
        without a graph, because nothing before them needs a gradient. With LoRA, only the factors of the
        trainable blocks are trained.

        Raises:
            ConfigError: if the ViT has fewer blocks.
        """
        depth = len(self.vit.blocks)
        if not 0 <= count <= depth:
            raise ConfigError(
                f"{count} trainable blocks were asked for, but {self.model_name} has {depth}"
            )
        self.trainable_blocks = count
        for name, parameter in self.vit.named_parameters():
            parameter.requires_grad_(self.plan.trains(name, count))
        self.train(self.training)

    def train(self, mode: bool = True) -> DINOv3Backbone:
        """Set training mode; frozen blocks stay in eval mode."""
        super().train(mode)
        num_frozen = len(self.vit.blocks) - self.trainable_blocks
        if mode and num_frozen:
            self.vit.eval()
            for block in self.vit.blocks[num_frozen:]:
                block.train()
        return self

    def load_pretrained(self) -> None:
        """Load DINOv3 weights from `checkpoint_path`, or else those that timm publishes, and log the source.

        Raises:
            CheckpointError: if there is neither a file nor a network, or the file does not fit.
        """
        if self.pretrained:
            load_published_weights(
                self.vit,
                self.model_name,
                self.checkpoint_path,
                self.checkpoint_sha256,
                setting="DINOv3Backbone.checkpoint_path",
                without="start without it: -u DINOv3Backbone.pretrained=False",
            )
            self.licence_note = licence_of(self.model_name)

    def _precision(self, images: Tensor) -> AbstractContextManager:
        """Return a context that disables fp16 autocast, which breaks DINOv3's features; bf16 works."""
        kind = images.device.type
        enabled = torch.is_autocast_enabled(kind)
        if enabled and torch.get_autocast_dtype(kind) == torch.float16:
            return torch.autocast(kind, enabled=False)
        return nullcontext()
