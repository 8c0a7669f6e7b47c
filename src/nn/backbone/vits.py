"""Build DINOv3 ViTs: those that timm knows, and the two small ones of DEIMv2."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ...core.errors import ConfigError
from ...runtime.quick_imports import import_timm
from .cached_rope import CachedRope

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import Eva, EvaBlock

ALIASES = {
    "dinov3_small": "vit_small_patch16_dinov3",
    "dinov3_small_plus": "vit_small_plus_patch16_dinov3",
    "dinov3_base": "vit_base_patch16_dinov3",
    "dinov3_large": "vit_large_patch16_dinov3",
}

DEIMV2_VITS = {
    "deimv2_tiny": {"embed_dim": 192, "num_heads": 3},
    "deimv2_tiny_plus": {"embed_dim": 256, "num_heads": 4},
}
"""ViT-Tiny and ViT-Tiny+, which DEIMv2 distilled from DINOv3-S (Huang et al., 2025).

They have biases of queries, keys and values, and neither register tokens, layer scales nor a final norm.
"""


def build_vit(name: str, *, store_periods: bool, **arguments: Any) -> Eva:
    """Build a ViT without weights.

    Args:
        name: timm's name of a DINOv3 ViT, or a name in `DEIMV2_VITS`.
        store_periods: keep the periods of the rotary position codes in the state dict.
        arguments: arguments of timm's ViT.

    Raises:
        ConfigError: if the model is not known, or timm refuses the arguments.
    """
    try:
        vit = _created(name, arguments)
    except (AssertionError, ZeroDivisionError, RuntimeError) as error:
        raise ConfigError(
            f"DINOv3Backbone: timm cannot build {name} with {arguments}: {error or 'sizes do not divide'}"
        ) from None
    if not len(vit.blocks):
        raise ConfigError("DINOv3Backbone.depth is 0, expected at least 1")
    num_heads = cast("EvaBlock", vit.blocks[0]).attn.num_heads
    if vit.embed_dim % (4 * num_heads):
        raise ConfigError(
            f"DINOv3Backbone.embed_dim is {vit.embed_dim}, expected a multiple of 4 times num_heads "
            f"{num_heads}: rotary position codes turn pairs of channels in two directions"
        )
    vit.rope = CachedRope(vit.rope, store_periods=store_periods)
    return vit


def _created(name: str, arguments: dict[str, Any]) -> Eva:
    """Return timm's model of a name, with its own rotary position codes."""
    import_timm()
    import timm
    from timm.models.eva import Eva

    if name in DEIMV2_VITS:
        return Eva(**(_deimv2_arguments(name) | arguments))
    is_known = timm.is_model(name) and "dinov3" in name
    if not is_known or not name.startswith("vit_"):
        listed = [*ALIASES, *DEIMV2_VITS, *timm.list_models("vit_*dinov3*")]
        raise ConfigError(
            f"DINOv3Backbone.model_name is '{name}', which timm does not know as a DINOv3 ViT; known are "
            f"{', '.join(listed)}"
        )
    built = timm.create_model(
        name,
        pretrained=False,
        num_classes=0,
        dynamic_img_size=True,
        **arguments,
    )
    return cast("Eva", built)


def _deimv2_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of timm's ViT for one of DEIMv2's."""
    return {
        "patch_size": 16,
        "num_classes": 0,
        "dynamic_img_size": True,
        "depth": 12,
        "attn_type": "rope",  # the kind with a bias of the keys
        "qkv_bias": True,
        "rope_type": "dinov3",
        "rope_temperature": 100,
        "rope_rotate_half": True,
        "use_rot_pos_emb": True,
        "use_abs_pos_emb": False,
        "use_post_transformer_norm": False,
        "use_fc_norm": False,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        **DEIMV2_VITS[name],
    }
