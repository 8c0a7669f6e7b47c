"""DINOv3 weight files: recognize the model and the layout of a file, and convert it to timm's ViT.

Three layouts are in use for DINOv3: those of Meta, timm and Hugging Face transformers. DEIMv2's small ViTs
have a fourth one. All load strictly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core.counts import counted
from ...core.errors import CheckpointError, ConfigError
from ...detection.lora_weights import merged_state_dict
from ...detection.published.layouts import META_TO_TIMM
from ...runtime.distributed import main_first
from ...runtime.log import logger
from ...runtime.weight_files import checked_path, file_sha256, read_tensor_file
from .timm_weights import is_state_dict, timm_state_dict

OFFICIAL_FILES = {
    "vit_small_patch16_dinov3": "dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
    "vit_small_plus_patch16_dinov3": "dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth",
    "vit_base_patch16_dinov3": "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
    "vit_large_patch16_dinov3": "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
    "vit_huge_plus_patch16_dinov3": "dinov3_vith16plus_pretrain_lvd1689m-7c1da9a5.pth",
    "vit_7b_patch16_dinov3": "dinov3_vit7b16_pretrain_lvd1689m-a955f4ea.pth",
    "deimv2_tiny": "vitt_distill.pt",
    "deimv2_tiny_plus": "vittplus_distill.pt",
}
"""File that is published for each ViT; the name of Meta's ends with the first digits of its SHA-256."""

_SIZES = {
    192: "T",
    384: "S",
    768: "B",
    1024: "L",
    1280: "H",
    1536: "g",
    4096: "7B",
}
"""Usual name of a ViT by its width."""

_PATCH_WEIGHTS = (
    "patch_embed.proj.weight",
    "patch_embeddings.projection.weight",
)
"""Ends of the keys of a patch embedding, `[D, 3, patch, patch]`."""

_PERIODS = re.compile(r"(^|\.)periods$")
"""RoPE periods, which Meta's files have rounded to bfloat16, which changes features by 1e-3.

They are loaded only if the model stores them (`rope_periods: stored`), because a saved model could not
reproduce them otherwise.
"""

ROPE_PERIODS = "rope.periods"
"""Key of the periods in a ViT that stores them."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")
"""Beginning of timm's keys of a block, with its number from 0."""

_NEVER_LOADED = re.compile(
    r"(^|\.)(mask_token|periods|bias_mask|local_cls_norm\..*|freqs)$"
)
"""Entries that are not loaded, because the backbone does not use them."""

_HUGGING_FACE_TO_TIMM = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.patch_embeddings.", "patch_embed.proj."),
    (".attention.o_proj.", ".attn.proj."),
    (".layer_scale1.lambda1", ".gamma_1"),
    (".layer_scale2.lambda1", ".gamma_2"),
    (".mlp.gate_proj.", ".mlp.fc1_g."),
)


@dataclass(frozen=True)
class LoadReport:
    """Record of loaded weights: file, layout and number of tensors."""

    path: Path
    layout: str
    """Layout of the file, as `detect_layout` names it."""
    loaded: int
    """Number of tensors that were loaded."""
    expected: int
    """Number of tensors of the model, LoRA factors aside."""
    sha256: str
    """SHA-256 digest of the file, in hexadecimal digits."""
    remarks: tuple[str, ...]
    """Observations for the log line."""

    def __str__(self) -> str:
        remarks = "".join(f"; {remark}" for remark in self.remarks)
        counted = f"{self.loaded} of {self.expected} tensors"
        return f"{self.path}: {self.layout} layout, {counted}, sha256 {self.sha256[:8]}{remarks}"


def load_published_weights(
    vit: nn.Module,
    model_name: str,
    checkpoint_path: str | None,
    sha256: str | None = None,
    *,
    setting: str,
    without: str,
) -> None:
    """Load the published DINOv3 weights into a ViT, and log their source.

    Args:
        vit: timm's model; its LoRA updates become zero.
        model_name: timm's name of the model.
        checkpoint_path: weight file; None uses the official name in `weights/`. If the file does not exist,
            the weights that timm publishes are used.
        sha256: SHA-256 digest that the file must have, or its first digits. If it is given, nothing is
            downloaded, because the digest is that of a file.
        setting: setting that names the file, for messages.
        without: how to continue without these weights, for messages.

    Raises:
        CheckpointError: if there is neither a file nor a network, or the weights do not fit.
    """
    base_name = model_name.split(".")[0].removesuffix("_qkvb")
    official = OFFICIAL_FILES.get(base_name, f"{base_name}.safetensors")
    file = checkpoint_path or f"weights/{official}"
    path = Path(file).expanduser()
    if path.exists() or "://" in file:
        report = load_dinov3_weights(vit, file, model_name, sha256)
        logger.info("DINOv3: %s", report)
        return
    if sha256:
        raise CheckpointError(
            f"DINOv3 weights not found: there is no file {path} with the sha256 {sha256} that "
            f"checkpoint_sha256 names; put it there, or name another with -u {setting}=FILE"
        )
    try:
        with main_first():
            weights = timm_state_dict(model_name)
    except CheckpointError as error:
        raise CheckpointError(
            f"DINOv3 weights not found: there is no file {path}, and {error}. Put the official, timm or "
            f"Hugging Face file of {base_name} there, name another with -u {setting}=FILE, or {without} "
            f"(weights/README.md says where the files are)"
        ) from None
    weights, remarks = without_later_blocks(weights, vit)
    weights |= _periods_for(vit, {})
    refuse_misfits(weights, vit, "what timm publishes", model_name)
    vit.load_state_dict(weights)
    logger.info(
        "DINOv3: loaded all %d tensors that timm publishes for %s%s",
        len(weights),
        model_name,
        "".join(f"; {remark}" for remark in remarks),
    )


def load_dinov3_weights(
    vit: nn.Module,
    path: str | Path,
    model_name: str,
    sha256: str | None = None,
) -> LoadReport:
    """Load a DINOv3 file into timm's ViT, strictly; later blocks than the ViT has are left out.

    Args:
        vit: timm's model; its LoRA updates become zero.
        path: .pth or .safetensors file in the layout of Meta, timm or Hugging Face.
        model_name: timm's name of `vit`, for messages.
        sha256: SHA-256 digest that the file must have, or at least its first 8 digits. If the name of the
            file ends with 8 digits, these are compared as well.

    Returns:
        A record of the loaded weights.

    Raises:
        ConfigError: if `sha256` is not a digest.
        CheckpointError: if the file is missing or damaged, belongs to another model, or has query or value
            biases that the model has no place for.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise ConfigError(
            f"checkpoint_sha256 is {sha256!r}, expected 64 hexadecimal digits, or the first 8 or more of them"
        )
    path = checked_path(path)
    digest = file_sha256(path)
    if sha256 is not None and not digest.startswith(sha256.lower()):
        raise CheckpointError(
            f"{path} is damaged or another file: its sha256 is {digest}, expected {sha256.lower()} "
            f"(checkpoint_sha256); download it again"
        )
    claimed = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
    if claimed and not digest.startswith(claimed[1]):
        raise CheckpointError(
            f"{path} is damaged or not what its name says: its sha256 begins with {digest[:8]}, expected "
            f"{claimed[1]}; download it again"
        )
    state = _unwrap(read_tensor_file(path), path)
    layout = detect_layout(state, path, model_name)
    converted = convert_to_timm(state, layout)
    converted, remarks = without_later_blocks(converted, vit)
    converted, remarks_on_biases = fit_biases(converted, vit, path, model_name)
    remarks += remarks_on_biases
    converted |= _periods_for(vit, state)
    refuse_misfits(converted, vit, path, model_name)
    vit.load_state_dict(converted)
    if claimed:
        remarks.append("as its name says")
    expected = len(merged_state_dict(vit))
    return LoadReport(
        path, layout, len(converted), expected, digest, tuple(remarks)
    )


def detect_layout(state: dict[str, Tensor], path: Path, model_name: str) -> str:
    """Return the layout of a state dict: "official", "timm", "Hugging Face" or "DEIMv2".

    DINOv3 has register tokens and no absolute position embeddings. DEIMv2's small ViTs have neither.

    Raises:
        CheckpointError: if it is not a DINOv3 ViT; the message says what it is.
    """
    if "storage_tokens" in state:
        return "official"
    has_positions = "embeddings.position_embeddings" in state
    if "embeddings.register_tokens" in state and not has_positions:
        return "Hugging Face"
    if "reg_token" in state and "pos_embed" not in state:
        return "timm"
    has_key_bias = "blocks.0.attn.qkv.bias" in state
    if has_key_bias and "rope_embed.periods" in state:
        return "DEIMv2"
    raise CheckpointError(
        f"{path} is {_describe_foreign_file(state)}; {model_name} needs a DINOv3 ViT of its size"
    )


def convert_to_timm(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Return a state dict with timm's keys, without the entries that are not loaded.

    Query, key and value biases are masked and separated into `q_bias`, `k_bias` and `v_bias`.
    """
    if layout == "official":
        return _split_fused_bias(_renamed(state, META_TO_TIMM), state)
    if layout == "Hugging Face":
        return _fuse_projections(_rename_hugging_face(state))
    return {
        key: value
        for key, value in state.items()
        if not _NEVER_LOADED.search(key)
    }


def without_later_blocks(
    state: dict[str, Tensor], vit: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """Leave out the blocks of a state dict with timm's keys that come after the last block of a ViT.

    Returns:
        The state dict for the ViT, and a remark for the log line if blocks were left out.
    """
    depth = _depth_of(vit.state_dict())
    result = {}
    for key, value in state.items():
        block = _BLOCK.match(key)
        if block is None or int(block[1]) < depth:
            result[key] = value
    in_file = _depth_of(state)
    if in_file <= depth:
        return result, []
    return result, [
        f"blocks {depth} to {in_file - 1} of its {in_file} (from 0) are left out: the model has {depth}"
    ]


def fit_biases(
    state: dict[str, Tensor],
    vit: nn.Module,
    path: Path,
    model_name: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Match the query, key and value biases of a file to a model.

    A model without biases accepts only biases of zero. A model with biases gets zeros if the file has none.

    Returns:
        The state dict for the model, and remarks for the log line.

    Raises:
        CheckpointError: if biases that are not zero have no place in the model.
    """
    result: dict[str, Tensor] = {}
    live: list[str] = []
    for key, value in state.items():
        if not key.endswith(("q_bias", "k_bias", "v_bias")):
            result[key] = value
        elif bool((value != 0).any()):
            live.append(key)
    for key in live:
        if key.endswith("k_bias"):
            raise CheckpointError(
                f"{path} has a key bias that is not zero ({key}); DINOv3 has none, so this is another model"
            )
    wanted = vit.state_dict()
    takes_biases = any(key.endswith("q_bias") for key in wanted)
    if live and not takes_biases:
        raise CheckpointError(
            f"{path} has query and value biases that are not zero ({len(live)} tensors), for which "
            f"{model_name} has no place; set DINOv3Backbone.model_name to {model_name}_qkvb"
        )
    remarks = []
    if takes_biases:
        for key, value in wanted.items():
            if key.endswith(("q_bias", "v_bias")):
                result[key] = state.get(key, torch.zeros_like(value))
        if not live:
            remarks.append("its query and value biases are zero")
    return result, remarks


def _periods_for(vit: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the RoPE periods for a model that stores them: those of a file, or else its own; else {}."""
    own = vit.state_dict()
    if ROPE_PERIODS not in own:
        return {}
    for key, value in state.items():
        if _PERIODS.search(key):
            return {ROPE_PERIODS: value.float()}
    return {ROPE_PERIODS: own[ROPE_PERIODS]}


def licence_of(model_name: str) -> str:
    """Return the licence of the published weights of a ViT, for the notes of a run."""
    if model_name.startswith("deimv2_"):
        return (
            f"{model_name} by Intellindust (DEIMv2), Apache-2.0; distilled from Meta's DINOv3, whose DINOv3 "
            "License applies to models trained from it"
        )
    licence = "DINOv3 License, which also applies to models trained from it"
    return f"{model_name} by Meta: {licence}"


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict in the content of a file, without the prefixes of wrappers."""
    for key in ("model", "state_dict", "teacher", "ema", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if (
        not isinstance(content, dict)
        or not content
        or not is_state_dict(content)
    ):
        raise CheckpointError(f"{path} is not a state dict (names to tensors)")
    result: dict[str, Tensor] = {}
    for key, value in content.items():
        name = key.removeprefix("module.").removeprefix("backbone.")
        result[name] = value
    return result


def _renamed(
    state: dict[str, Tensor], table: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """Replace parts of all keys as a table of (old, new) says, and drop the entries that are not loaded."""
    result = {}
    for key, value in state.items():
        for old, new in table:
            key = key.replace(old, new)
        if not _NEVER_LOADED.search(key):
            result[key] = value
    return result


def _split_fused_bias(
    renamed: dict[str, Tensor], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Separate each fused bias of query, key and value into three.

    Args:
        renamed: state dict with timm's keys.
        state: state dict of the file, which may have a mask for each bias. Masked values may be NaN.
    """
    result = {}
    for key, value in renamed.items():
        if not key.endswith("attn.qkv.bias"):
            result[key] = value
            continue
        mask = state.get(f"{key}_mask")
        if mask is not None:
            value = torch.where(
                mask == 0, torch.zeros_like(value), value * mask
            )
        for part, name in zip(value.chunk(3), ("q_bias", "k_bias", "v_bias")):
            result[key.replace("qkv.bias", name)] = part.clone()
    return result


def _rename_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the keys of Hugging Face timm's names, except those of query, key and value."""
    gated = any(".gate_proj." in key for key in state)
    table = (
        *_HUGGING_FACE_TO_TIMM,
        (".mlp.up_proj.", ".mlp.fc1_x." if gated else ".mlp.fc1."),
        (".mlp.down_proj.", ".mlp.fc2."),
    )
    blocks = {}
    for key, value in state.items():
        name = re.sub(r"^(model\.)?(encoder\.)?layer\.", "blocks.", key)
        blocks[name] = value
    return _renamed(blocks, table)


def _fuse_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join `attention.{q,k,v}_proj` into timm's fused matrix, and give biases timm's names."""
    result = {
        key: value for key, value in state.items() if ".attention." not in key
    }
    suffix = ".attention.q_proj.weight"
    for key in state:
        if not key.endswith(suffix):
            continue
        prefix = key.removesuffix(suffix)
        names = [f"{prefix}.attention.{part}_proj.weight" for part in "qkv"]
        if all(name in state for name in names):
            weights = [state[name] for name in names]
            result[f"{prefix}.attn.qkv.weight"] = torch.cat(weights)
        for part in "qkv":
            bias = state.get(f"{prefix}.attention.{part}_proj.bias")
            if bias is not None:
                result[f"{prefix}.attn.{part}_bias"] = bias
    return result


def refuse_misfits(
    state: dict[str, Tensor], vit: nn.Module, path: Path | str, model_name: str
) -> None:
    """Raise if a state dict does not fit a ViT; its LoRA factors are not compared.

    Args:
        state: state dict with timm's keys.
        vit: timm's model.
        path: source of the state dict, for messages.
        model_name: timm's name of `vit`, for messages.

    Raises:
        CheckpointError: with the sizes of both models if they differ, or else the keys that differ.
    """
    wanted = merged_state_dict(vit)
    of_other_shape = []
    for key, value in state.items():
        if key in wanted and value.shape != wanted[key].shape:
            of_other_shape.append(key)
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    if not (of_other_shape or missing or unexpected):
        return
    ours = _size_of(wanted)
    theirs = _size_of(state)
    if ours != theirs:
        raise CheckpointError(
            f"{path} is a DINOv3 ViT with {theirs}; {model_name} has {ours}"
        )
    details = []
    for kind, keys in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", of_other_shape),
    ):
        if keys:
            details.append(f"{len(keys)} {kind} (first {keys[0]})")
    raise CheckpointError(
        f"{path} does not fit {model_name}: {', '.join(details)}"
    )


def _size_of(state: dict[str, Tensor]) -> str:
    """Describe the size of a ViT in words; 0 stands for what the state dict does not show."""
    width = state["cls_token"].shape[-1] if "cls_token" in state else 0
    depth = _depth_of(state)
    gated = any(".mlp.fc1_g." in key for key in state)
    embedding = state.get("patch_embed.proj.weight")
    patch = 0 if embedding is None else embedding.shape[-1]
    return f"width {width}, {depth} blocks, patch {patch}{', SwiGLU' if gated else ''}"


def _depth_of(state: dict[str, Tensor]) -> int:
    """Return the number of blocks in a state dict with timm's keys."""
    blocks = set()
    for key in state:
        block = _BLOCK.match(key)
        if block is not None:
            blocks.add(int(block[1]))
    return len(blocks)


def _describe_foreign_file(state: dict[str, Tensor]) -> str:
    """Describe a file that is not a DINOv3 ViT, as far as its keys show."""
    patch = None
    for key, value in state.items():
        if key.endswith(_PATCH_WEIGHTS):
            patch = value
            break
    if any(key.startswith("decoder.") for key in state):
        return "a detector's checkpoint (use -r or -t for those)"
    if any(key.startswith(("downsample_layers.", "stages.")) for key in state):
        return "a convolutional network (ConvNeXt or HGNetv2)"
    has_positions = any(
        "pos_embed" in key or "position_embeddings" in key for key in state
    )
    if patch is not None and has_positions:
        size = _SIZES.get(patch.shape[0], f"of width {patch.shape[0]}")
        if patch.shape[-1] == 14:
            return f"DINOv2 ViT-{size}/14"
        return f"a ViT-{size}/{patch.shape[-1]} with absolute position embeddings (not DINOv3)"
    return f"not a DINOv3 ViT ({counted(len(state), 'tensor')}, first {next(iter(state))})"
