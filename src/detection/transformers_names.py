"""Names of D-FINE's tensors in our models and in the package transformers.

The names of transformers are those of its files. Its models in memory have a few other names.
"""

from __future__ import annotations

import re
from functools import cache

_PAIRS = (
    ("backbone.stem.*.conv", "model.backbone.model.embedder.*.convolution"),
    ("backbone.stem.*.bn", "model.backbone.model.embedder.*.normalization"),
    ("backbone.stem.*.lab", "model.backbone.model.embedder.*.lab"),
    (
        "backbone.stages.*.conv",
        "model.backbone.model.encoder.stages.*.convolution",
    ),
    (
        "backbone.stages.*.bn",
        "model.backbone.model.encoder.stages.*.normalization",
    ),
    ("backbone.stages.*.lab", "model.backbone.model.encoder.stages.*.lab"),
    ("encoder.input_proj.#.conv", "model.encoder_input_proj.#.0"),
    ("encoder.input_proj.#.norm", "model.encoder_input_proj.#.1"),
    (
        "encoder.encoder.#.layers.#.norm1",
        "model.encoder.encoder.#.layers.#.self_attn_layer_norm",
    ),
    (
        "encoder.encoder.#.layers.#.norm2",
        "model.encoder.encoder.#.layers.#.final_layer_norm",
    ),
    (
        "encoder.encoder.#.layers.#.linear1",
        "model.encoder.encoder.#.layers.#.fc1",
    ),
    (
        "encoder.encoder.#.layers.#.linear2",
        "model.encoder.encoder.#.layers.#.fc2",
    ),
    (
        "encoder.encoder.#.layers.#.self_attn",
        "model.encoder.encoder.#.layers.#.self_attn",
    ),
    ("encoder.lateral_convs", "model.encoder.lateral_convs"),
    ("encoder.fpn_blocks.#.cv1", "model.encoder.fpn_blocks.#.conv1"),
    ("encoder.fpn_blocks.#.cv2.0", "model.encoder.fpn_blocks.#.csp_rep1"),
    ("encoder.fpn_blocks.#.cv2.1", "model.encoder.fpn_blocks.#.conv2"),
    ("encoder.fpn_blocks.#.cv3.0", "model.encoder.fpn_blocks.#.csp_rep2"),
    ("encoder.fpn_blocks.#.cv3.1", "model.encoder.fpn_blocks.#.conv3"),
    ("encoder.fpn_blocks.#.cv4", "model.encoder.fpn_blocks.#.conv4"),
    ("encoder.pan_blocks.#.cv1", "model.encoder.pan_blocks.#.conv1"),
    ("encoder.pan_blocks.#.cv2.0", "model.encoder.pan_blocks.#.csp_rep1"),
    ("encoder.pan_blocks.#.cv2.1", "model.encoder.pan_blocks.#.conv2"),
    ("encoder.pan_blocks.#.cv3.0", "model.encoder.pan_blocks.#.csp_rep2"),
    ("encoder.pan_blocks.#.cv3.1", "model.encoder.pan_blocks.#.conv3"),
    ("encoder.pan_blocks.#.cv4", "model.encoder.pan_blocks.#.conv4"),
    (
        "encoder.downsample_convs.#.0.cv1",
        "model.encoder.downsample_convs.#.conv1",
    ),
    (
        "encoder.downsample_convs.#.0.cv2",
        "model.encoder.downsample_convs.#.conv2",
    ),
    ("decoder.input_proj.#.conv", "model.decoder_input_proj.#.0"),
    ("decoder.input_proj.#.norm", "model.decoder_input_proj.#.1"),
    ("decoder.enc_output.proj", "model.enc_output.0"),
    ("decoder.enc_output.norm", "model.enc_output.1"),
    ("decoder.enc_score_head", "model.enc_score_head"),
    ("decoder.enc_bbox_head", "model.enc_bbox_head"),
    ("decoder.denoising_class_embed", "model.denoising_class_embed"),
    ("decoder.query_pos_head", "model.decoder.query_pos_head"),
    ("decoder.pre_bbox_head", "model.decoder.pre_bbox_head"),
    ("decoder.dec_score_head", "model.decoder.class_embed"),
    ("decoder.dec_bbox_head", "model.decoder.bbox_embed"),
    ("decoder.decoder.up", "model.decoder.up"),
    ("decoder.decoder.reg_scale", "model.decoder.reg_scale"),
    ("decoder.decoder.lqe_layers", "model.decoder.lqe_layers"),
    (
        "decoder.decoder.layers.#.norm1",
        "model.decoder.layers.#.self_attn_layer_norm",
    ),
    (
        "decoder.decoder.layers.#.norm3",
        "model.decoder.layers.#.final_layer_norm",
    ),
    ("decoder.decoder.layers.#.linear1", "model.decoder.layers.#.fc1"),
    ("decoder.decoder.layers.#.linear2", "model.decoder.layers.#.fc2"),
    (
        "decoder.decoder.layers.#.cross_attn",
        "model.decoder.layers.#.encoder_attn",
    ),
    ("decoder.decoder.layers.#.self_attn", "model.decoder.layers.#.self_attn"),
    ("decoder.decoder.layers.#.gateway", "model.decoder.layers.#.gateway"),
)
"""First parts of our keys and of transformers' keys; the rest of a key is the same.

`#` stands for a number and `*` for any text.
"""

_IN_MEMORY = (
    (re.compile(r"\.self_attn\.o_proj\."), ".self_attn.out_proj."),
    (re.compile(r"(layers\.\d+)\.mlp\.layers\.0\."), r"\1.fc1."),
    (re.compile(r"(layers\.\d+)\.mlp\.layers\.1\."), r"\1.fc2."),
    (re.compile(r"^model\.encoder\.aifi\."), "model.encoder.encoder."),
)
"""Names of models in memory that differ from those of files, and the latter."""


def our_name(key: str) -> str | None:
    """Return our name of a tensor of transformers' files, or None if D-FINE does not have it."""
    return _renamed(key, _to_ours())


def their_name(key: str) -> str | None:
    """Return the name in transformers' files of a tensor of ours, or None if there is none."""
    return _renamed(key, _to_theirs())


def name_in_file(key: str) -> str:
    """Return the name that a tensor of a model in memory has in files."""
    for pattern, name in _IN_MEMORY:
        key = pattern.sub(name, key)
    return key


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    """Return the new name of a tensor, or None if no rule fits."""
    for pattern, name in rules:
        found = pattern.fullmatch(key)
        if found:
            return found.expand(name)
    return None


@cache
def _to_ours() -> list[tuple[re.Pattern[str], str]]:
    return [_rule(theirs, ours) for ours, theirs in _PAIRS]


@cache
def _to_theirs() -> list[tuple[re.Pattern[str], str]]:
    return [_rule(ours, theirs) for ours, theirs in _PAIRS]


def _rule(old: str, new: str) -> tuple[re.Pattern[str], str]:
    """Return a pattern for keys that begin with `old`, and the template of their new names."""
    pattern = re.escape(old).replace(r"\#", r"(\d+)").replace(r"\*", "(.+)")
    parts = re.split("[#*]", new)
    template = parts[0]
    for index, part in enumerate(parts[1:], start=1):
        template += rf"\g<{index}>{part}"
    return re.compile(pattern + r"(\..+)?"), rf"{template}\g<{len(parts)}>"
