"""DINOv3 as a detection backbone: timm's ViT, read at several depths, and the Spatial Tuning Adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.contracts import Learning
from ...core.durations import EpochLength, RunLength
from ...core.errors import CheckpointError, ConfigError
from ...core.registry import Argument, arguments_of, register
from ...runtime.distributed import main_first
from ...runtime.log import logger
from ..lora import add_lora, freeze_all_but_lora
from .dinov3_weights import OFFICIAL_FILES, load_dinov3_weights, refuse_misfits
from .spatial_tuning_adapter import STRIDES, SpatialTuningAdapter
from .timm_weights import timm_state_dict

ALIASES = {
    "dinov3_small": "vit_small_patch16_dinov3",
    "dinov3_small_plus": "vit_small_plus_patch16_dinov3",
    "dinov3_base": "vit_base_patch16_dinov3",
    "dinov3_large": "vit_large_patch16_dinov3",
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_OURS = frozenset(
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
    from timm.models.eva import Eva

    return {name: argument for name, argument in arguments_of(Eva).items() if name not in _OURS}


@register()
class DINOv3Backbone(nn.Module):
    """Images `[B, 3, H, W]` in 0..1 to maps `[P8, P16, P32]`; any H and W that are multiples of 32."""

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
        upsample_mode: Literal["bilinear", "nearest"] = "bilinear",
        position_encoding: bool = False,
        detail_channels: int = 16,
        gradient_checkpointing: bool = False,
        rope_rescale_coords: float | None = None,
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
            model_name: timm's name of a DINOv3 ViT, or dinov3_small, dinov3_small_plus, dinov3_base, dinov3_large.
            pretrained: start from DINOv3's weights.
            checkpoint_path: their file; None for `weights/` and the official name.
            checkpoint_sha256: digest that this file must have, or 8 or more digits of its beginning.
            out_channels: channels of the maps: one number for all, or a list with one for each stride.
            feat_strides: strides to give, out of 8, 16 and 32.
            freeze_backbone: the ViT is never trained; the adapter is.
            freeze_backbone_epochs: the ViT is frozen for so long (phase A) and thaws then (phase B); 0 disables this.
            unfreeze_blocks: how many of the last blocks thaw, with the final norm; None for the whole ViT. Patch embedding and
                tokens thaw only with the first block.
            unfreeze_plan: in place of the two above, any number of phases: pairs of (epoch, last blocks that train from then on).
            unfreeze_lr_factor: factor on the learning rate of what thaws during the run.
            layer_decay: factor on the learning rate from each block to the one before (BEiT, Bao et al., 2022): block i of the n
                that run has layer_decay ** (n - i), embedding and tokens layer_decay ** (n + 1), the final norm 1.
            tap_blocks: blocks to read, 0-based, ascending; None for three, evenly spaced up to the last.
            tap_norm: LayerNorm before the adapter: the ViT's "final" one on every tap, each tap's "own" new one, or "none".
            upsample_mode: how stride 8 is made from stride 16.
            position_encoding: the adapter adds a learned position code.
            detail_channels: width of the adapter's convolutional detail branch; 0 for none.
            gradient_checkpointing: compute blocks again in the backward pass; less memory, more time.
            rope_rescale_coords: train with RoPE coordinates scaled by a factor from 1/r to r; None, the default, for not.
            drop_path: stochastic depth of the last block; earlier ones get proportionally less.
            lora_rank: of a low-rank change that is trained instead of the ViT's own weights (`src/nn/lora.py`); 0 for none.
            lora_alpha: that change is scaled by alpha / rank; None for the rank.
            lora_targets: what it acts on: "attention" (or qkv, proj), "mlp" (or fc1, fc2).
            image_mean: mean of each channel in 0..1, subtracted here.
            image_std: deviation of each channel, divided by here.
            vit_arguments: other arguments of timm's ViT, such as embed_dim, depth and num_heads, for small models.

        Raises:
            ConfigError: if the model, a tapped block, a stride or a target of LoRA does not exist, or its rank is out of range.
        """
        super().__init__()
        self.model_name = ALIASES.get(model_name, model_name)
        self.pretrained, self.checkpoint_path, self.checkpoint_sha256 = (
            pretrained,
            checkpoint_path,
            checkpoint_sha256,
        )
        self.licence_note: str | None = None
        self.vit = _build_vit(
            self.model_name,
            drop_path_rate=drop_path,
            rope_rescale_coords=rope_rescale_coords,
            **vit_arguments,
        )
        self.lora_rank = lora_rank
        if lora_rank:
            add_lora(self.vit, lora_rank, lora_alpha, lora_targets)
        depth = len(self.vit.blocks)
        self.tap_blocks = _check_taps(tap_blocks, depth)
        self.tap_norm = tap_norm
        self.adapter = SpatialTuningAdapter(
            self.vit.embed_dim,
            out_channels,
            feat_strides,
            len(self.tap_blocks),
            upsample_mode=upsample_mode,
            detail_channels=detail_channels,
            layer_norm=tap_norm == "own",
            position_encoding=position_encoding,
        )
        self.out_channels, self.out_strides = self.adapter.out_channels, list(feat_strides)
        self.register_buffer("image_mean", torch.tensor(image_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std).view(1, 3, 1, 1), persistent=False)
        if gradient_checkpointing:
            self.vit.set_grad_checkpointing(True)
        self.unfreeze_lr_factor, self.layer_decay = unfreeze_lr_factor, layer_decay
        if unfreeze_lr_factor <= 0 or not 0 < layer_decay <= 1:
            raise ConfigError(
                f"DINOv3Backbone: unfreeze_lr_factor is {unfreeze_lr_factor}, expected above 0; layer_decay is {layer_decay}, expected above 0, "
                f"at most 1"
            )
        self._phases = _read_phases(
            depth, freeze_backbone, freeze_backbone_epochs, unfreeze_blocks, unfreeze_plan
        )
        if lora_rank and not self.ever_learns:
            raise ConfigError(
                "DINOv3Backbone: no block is ever trained (freeze_backbone, unfreeze_blocks, unfreeze_plan), so that LoRA would never learn; "
                "let some train (with LoRA the ViT's own weights stay frozen anyway), or set lora_rank to 0"
            )
        self.trainable_blocks = 0
        self.set_trainable_blocks(self._phases[0][1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images `[B, 3, H, W]` in 0..1, RGB, to `[B, C, H/s, W/s]` for each stride s, of `out_channels`."""
        images = (images - self.image_mean) / self.image_std
        return self.adapter(self.taps_of(self.vit, images), images)

    def taps_of(self, vit: nn.Module, images: Tensor) -> list[Tensor]:
        """Return the maps `[B, D, H/16, W/16]` that the adapter reads from normalised images, of `self.vit` or one like it."""
        with self._precision(images):
            return vit.forward_intermediates(
                images,
                indices=self.tap_blocks,
                norm=self.tap_norm == "final",
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )  # prefix tokens are dropped

    @staticmethod
    def __resolve_lengths__(settings: Mapping[str, Any], run: RunLength) -> dict[str, Any]:
        """Let the later of two phases count if a run is so short that they begin in the same epoch."""
        plan = settings.get("unfreeze_plan") or []
        if any(len(phase) != 2 for phase in plan):
            return {}  # the constructor refuses it
        written = [when for when, _ in plan]
        starts = [run.in_epochs(when, "DINOv3Backbone.unfreeze_plan") for when in written]
        if len(set(written)) < len(written) or starts != sorted(starts):
            return {}  # the constructor refuses this too
        last = dict(zip(starts, (blocks for _, blocks in plan)))
        return {"unfreeze_plan": [[*phase] for phase in last.items()]} if len(last) < len(plan) else {}

    @property
    def ever_learns(self) -> bool:
        """True if some block of the ViT is trained in some phase."""
        return any(blocks for _, blocks in self._phases)

    def set_epoch(self, epoch: int) -> None:
        """Train the blocks that are due in an epoch (from 0)."""
        due = [blocks for when, blocks in self._phases if when <= epoch][-1]
        if due != self.trainable_blocks:
            self.set_trainable_blocks(due)

    def learning_plan(self) -> dict[str, Learning]:
        """Tell for every parameter of the ViT that is ever trained, by its name here, from which epoch on and how fast."""
        present, plan = self.trainable_blocks, {}
        for when, blocks in self._phases:
            self.set_trainable_blocks(blocks)
            factor = self.unfreeze_lr_factor if when else 1.0
            for name, parameter in self.vit.named_parameters():
                if parameter.requires_grad:
                    plan.setdefault(f"vit.{name}", Learning(when, factor * self._depth_factor(name)))
        self.set_trainable_blocks(present)
        return plan

    def _depth_factor(self, name: str) -> float:
        """Factor of layer-wise decay for a parameter of the ViT."""
        running = self.tap_blocks[-1] + 1
        if name.startswith("blocks."):
            return self.layer_decay ** (running - int(name.split(".")[1]))
        return 1.0 if name.startswith("norm.") else self.layer_decay ** (running + 1)

    def set_trainable_blocks(self, count: int) -> None:
        """Train the last `count` blocks and the final norm, freeze the rest of the ViT.

        Patch embedding and tokens are trained only with the first block. Frozen blocks run in eval mode and, since
        nothing before them needs a gradient, without a graph. With LoRA only the factors of these blocks are trained.
        """
        depth = len(self.vit.blocks)
        if not 0 <= count <= depth:
            raise ConfigError(f"{count} trainable blocks were asked for, but {self.model_name} has {depth}")
        self.trainable_blocks = count
        self.vit.requires_grad_(count == depth)
        for block in self.vit.blocks[depth - count :]:
            block.requires_grad_(True)
        self.vit.norm.requires_grad_(count > 0 and self.tap_norm == "final")
        self.vit.blocks[self.tap_blocks[-1] + 1 :].requires_grad_(
            False
        )  # blocks after the last tap do not run
        if self.lora_rank:
            freeze_all_but_lora(self.vit)
        self.train(self.training)

    def train(self, mode: bool = True) -> DINOv3Backbone:
        """Set training mode; frozen blocks stay in eval mode."""
        super().train(mode)
        if mode and self.trainable_blocks < len(self.vit.blocks):
            self.vit.eval()
            for block in self.vit.blocks[len(self.vit.blocks) - self.trainable_blocks :]:
                block.train()
        return self

    def load_pretrained(self) -> None:
        """Load DINOv3's weights from `checkpoint_path`, else those that timm publishes, and report.

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
            self.licence_note = (
                f"{self.model_name} by Meta: DINOv3 License, which holds for what is trained from it too"
            )

    def _precision(self, images: Tensor) -> AbstractContextManager:
        """Keep the ViT out of fp16, which is known to break DINOv3's features; bf16 is fine."""
        kind = images.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        return torch.autocast(kind, enabled=False) if half else nullcontext()


def load_published_weights(
    vit: nn.Module,
    model_name: str,
    checkpoint_path: str | None,
    sha256: str | None = None,
    *,
    setting: str,
    without: str,
) -> None:
    """Fill a ViT with the weights that DINOv3 was published with, and report.

    Args:
        vit: timm's model; a LoRA change in it becomes zero.
        model_name: its name at timm.
        checkpoint_path: a file; None for `weights/` and the official name. If it is not there, timm's are taken.
        sha256: digest that the file must have, or its beginning. With one, nothing is fetched: only a file can be held against it.
        setting: where a user names the file, for messages.
        without: how a user does without, for messages.

    Raises:
        CheckpointError: if there is neither a file nor a network, or the weights do not fit.
    """
    base_name = model_name.split(".")[0].removesuffix("_qkvb")
    file = checkpoint_path or f"weights/{OFFICIAL_FILES.get(base_name, base_name + '.safetensors')}"
    path = Path(file).expanduser()
    if path.exists() or "://" in file:
        report = load_dinov3_weights(vit, file, model_name, sha256)
        logger.info("DINOv3: %s", report)
        return
    if sha256:
        raise CheckpointError(
            f"DINOv3 weights not found: there is no file {path} with the sha256 {sha256} that checkpoint_sha256 names; put it there, or name "
            f"another with -u {setting}=FILE"
        )
    try:
        with main_first():
            weights = timm_state_dict(model_name)
    except CheckpointError as error:
        raise CheckpointError(
            f"DINOv3 weights not found: there is no file {path}, and {error}. Put the official, timm or Hugging Face "
            f"file of {base_name} there, name another with -u {setting}=FILE, or {without} "
            f"(weights/README.md says where the files are)"
        ) from None
    refuse_misfits(weights, vit, "what timm publishes", model_name)
    vit.load_state_dict(weights)
    logger.info("DINOv3: loaded all %d tensors that timm publishes for %s", len(weights), model_name)


def _build_vit(name: str, **arguments: Any) -> nn.Module:
    import timm

    if not timm.is_model(name) or "dinov3" not in name or not name.startswith("vit_"):
        known = ", ".join([*ALIASES, *timm.list_models("vit_*dinov3*")])
        raise ConfigError(
            f"DINOv3Backbone.model_name is '{name}', which timm does not know as a DINOv3 ViT; known are {known}"
        )
    try:
        vit = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **arguments)
    except (AssertionError, ZeroDivisionError, RuntimeError) as error:
        raise ConfigError(
            f"DINOv3Backbone: timm cannot build {name} with {arguments}: {error or 'sizes do not divide'}"
        ) from None
    if not len(vit.blocks):
        raise ConfigError("DINOv3Backbone.depth is 0, expected at least 1")
    if vit.embed_dim % (4 * vit.blocks[0].attn.num_heads):
        raise ConfigError(
            f"DINOv3Backbone.embed_dim is {vit.embed_dim}, expected a multiple of 4 times num_heads {vit.blocks[0].attn.num_heads}: "
            f"rotary position codes turn pairs of channels in two directions"
        )
    return vit


def _read_phases(
    depth: int,
    frozen: bool,
    frozen_epochs: int,
    blocks: int | None,
    plan: Sequence[tuple[int, int]] | None,
) -> list[tuple[int, int]]:
    """Return (epoch, last blocks that train from then on) for each phase, the first from epoch 0."""
    has_phase_a = frozen_epochs != 0
    if sum((frozen, has_phase_a, plan is not None)) > 1:
        raise ConfigError(
            "DINOv3Backbone: freeze_backbone, freeze_backbone_epochs and unfreeze_plan each say when the ViT trains; give one of them"
        )
    if plan is None:
        phases = (
            [(0, 0), (frozen_epochs, depth if blocks is None else blocks)]
            if has_phase_a
            else [(0, 0 if frozen else depth)]
        )
    else:
        if blocks is not None:
            raise ConfigError(
                "DINOv3Backbone: unfreeze_plan says how many blocks train, so unfreeze_blocks has no meaning; leave it out"
            )
        phases = [tuple(phase) for phase in plan]
        if not phases or any(len(phase) != 2 or not isinstance(phase[1], int) for phase in phases):
            raise ConfigError(
                f"DINOv3Backbone.unfreeze_plan is {list(plan)}, expected pairs of when and how many of the last blocks, "
                f"such as [[10, 4], [20, 12]]"
            )
        phases = phases if phases[0][0] == 0 else [(0, 0), *phases]
    starts = [when for when, _ in phases]
    if starts != sorted(set(starts)):
        raise ConfigError(
            f"DINOv3Backbone: phases begin in epochs {starts} (from 0), expected each after the one before"
        )
    counts = [count for _, count in phases]
    if counts != sorted(counts) or not 0 <= counts[0] <= counts[-1] <= depth:
        raise ConfigError(
            f"DINOv3Backbone: {counts} trainable blocks in turn, expected numbers from 0 to {depth} that do not fall"
        )
    return phases


def _check_taps(taps: Sequence[int] | None, depth: int) -> list[int]:
    if taps is None:
        return sorted({round(depth * part / 4) - 1 for part in (2, 3, 4)} - {-1})
    taps = list(taps)
    if not taps or taps != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] < depth:
        raise ConfigError(
            f"DINOv3Backbone.tap_blocks is {taps}, expected ascending numbers from 0 to {depth - 1}"
        )
    return taps
