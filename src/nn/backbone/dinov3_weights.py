"""DINOv3 weight files: which model and layout a file holds, and how it becomes a state dict of timm's ViT.

Three layouts are in circulation: Meta's own, timm's and that of Hugging Face transformers. All load strictly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core.errors import CheckpointError, ConfigError
from ...detection.lora_weights import merged_state_dict
from ...runtime.distributed import main_first
from ...runtime.log import logger
from ...runtime.weight_files import checked_path, file_sha256, read_tensor_file
from .timm_weights import timm_state_dict

OFFICIAL_FILES = {
    "vit_small_patch16_dinov3": "dinov3_vits16_pretrain_lvd1689m-08c60483.pth",
    "vit_small_plus_patch16_dinov3": "dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth",
    "vit_base_patch16_dinov3": "dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth",
    "vit_large_patch16_dinov3": "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
    "vit_huge_plus_patch16_dinov3": "dinov3_vith16plus_pretrain_lvd1689m-7c1da9a5.pth",
    "vit_7b_patch16_dinov3": "dinov3_vit7b16_pretrain_lvd1689m-a955f4ea.pth",
}
"""The file that Meta publishes for each of timm's models; the end of a name is the start of its SHA-256."""

_SIZES = {192: "T", 384: "S", 768: "B", 1024: "L", 1280: "H", 1536: "g", 4096: "7B"}

_NEVER_LOADED = re.compile(
    r"(^|\.)(mask_token|periods|bias_mask|local_cls_norm\..*|freqs)$"
)
"""Entries that a backbone has no use for; RoPE periods are computed in float32 rather than taken from the
file, where they are rounded to bfloat16 (a difference of 1e-3 in the features that a saved model could not
reproduce)."""

_OFFICIAL_TO_TIMM = (
    ("storage_tokens", "reg_token"),
    (".ls1.gamma", ".gamma_1"),
    (".ls2.gamma", ".gamma_2"),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
)

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
    loaded: int
    expected: int
    sha256: str
    remarks: tuple[str, ...]

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
    """Fill a ViT with the weights that DINOv3 was published with, and report.

    Args:
        vit: timm's model; a LoRA change in it becomes zero.
        model_name: its name at timm.
        checkpoint_path: a file; None for `weights/` and the official name. If it is not there, timm's are
            taken.
        sha256: digest that the file must have, or its beginning. With one, nothing is fetched: only a file
            can be compared with it.
        setting: where a user names the file, for messages.
        without: how a user does without, for messages.

    Raises:
        CheckpointError: if there is neither a file nor a network, or the weights do not fit.
    """
    base_name = model_name.split(".")[0].removesuffix("_qkvb")
    file = (
        checkpoint_path
        or f"weights/{OFFICIAL_FILES.get(base_name, base_name + '.safetensors')}"
    )
    path = Path(file).expanduser()
    if path.exists() or "://" in file:
        report = load_dinov3_weights(vit, file, model_name, sha256)
        logger.info("DINOv3: %s", report)
        return
    if sha256:
        raise CheckpointError(
            f"DINOv3 weights not found: there is no file {path} with the sha256 {sha256} that "
            f"checkpoint_sha256 names; put it there, or name "
            f"another with -u {setting}=FILE"
        )
    try:
        with main_first():
            weights = timm_state_dict(model_name)
    except CheckpointError as error:
        raise CheckpointError(
            f"DINOv3 weights not found: there is no file {path}, and {error}. Put the official, timm or "
            f"Hugging Face "
            f"file of {base_name} there, name another with -u {setting}=FILE, or {without} "
            f"(weights/README.md says where the files are)"
        ) from None
    refuse_misfits(weights, vit, "what timm publishes", model_name)
    vit.load_state_dict(weights)
    logger.info(
        "DINOv3: loaded all %d tensors that timm publishes for %s",
        len(weights),
        model_name,
    )


def load_dinov3_weights(
    vit: nn.Module,
    path: str | Path,
    model_name: str,
    sha256: str | None = None,
) -> LoadReport:
    """Fill a timm ViT from a DINOv3 file, strictly.

    Args:
        vit: timm's model; a LoRA change in it becomes zero.
        path: file in Meta's, timm's or Hugging Face's layout; .pth or .safetensors.
        model_name: timm's name of `vit`, for messages.
        sha256: digest that the file must have, or at least 8 digits of its beginning; None for the one in its
            name, if there is one.

    Raises:
        ConfigError: if `sha256` is not a digest.
        CheckpointError: if the file is missing, damaged, of another model, or has query or value biases that
            the model cannot hold.
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
    converted, remarks = fit_biases(
        convert_to_timm(state, layout), vit, path, model_name
    )
    refuse_misfits(converted, vit, path, model_name)
    vit.load_state_dict(converted)
    if claimed:
        remarks.append("as its name says")
    return LoadReport(
        path,
        layout,
        len(converted),
        len(merged_state_dict(vit)),
        digest,
        tuple(remarks),
    )


def detect_layout(state: dict[str, Tensor], path: Path, model_name: str) -> str:
    """Return "official", "timm" or "Hugging Face".

    Raises:
        CheckpointError: naming what the file holds instead.
    """
    if "storage_tokens" in state:
        return "official"
    if (
        "embeddings.register_tokens" in state
        and "embeddings.position_embeddings" not in state
    ):
        return "Hugging Face"
    if "reg_token" in state and "pos_embed" not in state:
        return "timm"
    raise CheckpointError(
        f"{path} is {_describe_foreign_file(state)}; {model_name} needs a DINOv3 ViT of its size"
    )


def convert_to_timm(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Rename to timm's keys, with query, key and value biases apart as `q_bias`, `k_bias` and `v_bias`, after
    masking."""
    if layout == "official":
        return _split_fused_bias(_renamed(state, _OFFICIAL_TO_TIMM), state)
    if layout == "Hugging Face":
        return _fuse_projections(_rename_hugging_face(state))
    return {key: value for key, value in state.items() if not _NEVER_LOADED.search(key)}


def fit_biases(
    state: dict[str, Tensor],
    vit: nn.Module,
    path: Path,
    model_name: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Match the biases of a file to a model: with live ones they must have a place, without any they become
    zeros.

    Raises:
        CheckpointError: if values would be lost.
    """
    remarks = []
    wanted = vit.state_dict()
    result = {
        key: value
        for key, value in state.items()
        if not key.endswith(("q_bias", "k_bias", "v_bias"))
    }
    live = [
        key
        for key, value in state.items()
        if key not in result and not bool((value == 0).all())
    ]
    dead_key = next((key for key in live if key.endswith("k_bias")), None)
    if dead_key:
        raise CheckpointError(
            f"{path} has a key bias that is not zero ({dead_key}); DINOv3 has none, so this is another model"
        )
    takes_biases = any(key.endswith("q_bias") for key in wanted)
    if live and not takes_biases:
        raise CheckpointError(
            f"{path} has query and value biases that are not zero ({len(live)} tensors), for which "
            f"{model_name} has no place; "
            f"set DINOv3Backbone.model_name to {model_name}_qkvb"
        )
    if takes_biases:
        for key in (k for k in wanted if k.endswith(("q_bias", "v_bias"))):
            result[key] = state.get(key, torch.zeros_like(wanted[key]))
        if not live:
            remarks.append("its query and value biases are zero")
    return result, remarks


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    for key in ("model", "state_dict", "teacher", "ema", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if (
        not isinstance(content, dict)
        or not content
        or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
        )
    ):
        raise CheckpointError(f"{path} holds no state dict (names to tensors)")
    return {
        key.removeprefix("module.").removeprefix("backbone."): value
        for key, value in content.items()
    }


def _renamed(
    state: dict[str, Tensor], table: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
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
    result = {}
    for key, value in renamed.items():
        if not key.endswith("attn.qkv.bias"):
            result[key] = value
            continue
        mask = state.get(f"{key}_mask")
        live = (
            value
            if mask is None
            else torch.where(mask == 0, torch.zeros_like(value), value * mask)
        )
        for part, name in zip(live.chunk(3), ("q_bias", "k_bias", "v_bias")):
            result[key.replace("qkv.bias", name)] = part.clone()
    return result


def _rename_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    gated = any(".gate_proj." in key for key in state)
    table = (
        *_HUGGING_FACE_TO_TIMM,
        (".mlp.up_proj.", ".mlp.fc1_x." if gated else ".mlp.fc1."),
        (".mlp.down_proj.", ".mlp.fc2."),
    )
    blocks = {
        re.sub(r"^(model\.)?(encoder\.)?layer\.", "blocks.", key): value
        for key, value in state.items()
    }
    return _renamed(blocks, table)


def _fuse_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join `attention.{q,k,v}_proj` into timm's fused matrix, and give biases timm's names."""
    result = {key: value for key, value in state.items() if ".attention." not in key}
    for key in [k for k in state if k.endswith(".attention.q_proj.weight")]:
        prefix = key.removesuffix(".attention.q_proj.weight")
        names = [f"{prefix}.attention.{part}_proj.weight" for part in "qkv"]
        if all(name in state for name in names):
            result[f"{prefix}.attn.qkv.weight"] = torch.cat(
                [state[name] for name in names]
            )
        for part in "qkv":
            bias = state.get(f"{prefix}.attention.{part}_proj.bias")
            if bias is not None:
                result[f"{prefix}.attn.{part}_bias"] = bias
    return result


def refuse_misfits(
    state: dict[str, Tensor], vit: nn.Module, path: Path | str, model_name: str
) -> None:
    """Compare a state dict from `path` with a ViT, LoRA aside.

    Raises:
        CheckpointError: naming the sizes of both, or the keys that differ.
    """
    wanted = merged_state_dict(vit)
    of_other_shape = [
        key for key in state if key in wanted and state[key].shape != wanted[key].shape
    ]
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
    details = [
        f"{len(keys)} {kind} (first {keys[0]})"
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", of_other_shape),
        )
        if keys
    ]
    raise CheckpointError(f"{path} does not fit {model_name}: {', '.join(details)}")


def _size_of(state: dict[str, Tensor]) -> str:
    width = state["cls_token"].shape[-1] if "cls_token" in state else 0
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    gated = any(".mlp.fc1_g." in key for key in state)
    patch = (
        state["patch_embed.proj.weight"].shape[-1]
        if "patch_embed.proj.weight" in state
        else 0
    )
    return f"width {width}, {depth} blocks, patch {patch}{', SwiGLU' if gated else ''}"


def _describe_foreign_file(state: dict[str, Tensor]) -> str:
    """Name what a foreign file is, as far as its keys tell."""
    patch = next(
        (
            v
            for k, v in state.items()
            if k.endswith(
                ("patch_embed.proj.weight", "patch_embeddings.projection.weight")
            )
        ),
        None,
    )
    if any(key.startswith("decoder.") for key in state):
        return "a detector's checkpoint (use -r or -t for those)"
    if any(key.startswith(("downsample_layers.", "stages.")) for key in state):
        return "a convolutional network (ConvNeXt or HGNetv2)"
    if patch is not None and any(
        "pos_embed" in key or "position_embeddings" in key for key in state
    ):
        size = _SIZES.get(patch.shape[0], f"of width {patch.shape[0]}")
        if patch.shape[-1] == 14:
            return f"DINOv2 ViT-{size}/14"
        return f"a ViT-{size}/{patch.shape[-1]} with absolute position embeddings (no DINOv3)"
    return f"no DINOv3 ViT ({len(state)} tensors, first {next(iter(state))})"
