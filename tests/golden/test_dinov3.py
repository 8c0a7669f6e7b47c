"""Official DINOv3 checkpoints, in Meta's and in Hugging Face's layout, give the official features.

The checkpoints are rebuilt with live query and value biases, so the model is the variant that has them.
"""

import numpy as np
import pytest
import torch

from src.nn.backbone import DINOv3Backbone
from tests.fixtures.golden import (
    official_dinov3_checkpoint,
    read_arrays,
    read_json,
)
from tests.golden import filler

TIMM_NAMES = {
    "vits16": "vit_small_patch16_dinov3_qkvb",
    "vits16plus": "vit_small_plus_patch16_dinov3_qkvb",
    "vitb16": "vit_base_patch16_dinov3_qkvb",
}


def loaded_vit(name, state, folder):
    """Return the ViT of a backbone that has read `state` from a file."""
    path = folder / f"dinov3_{name}.pth"
    torch.save(state, path)
    backbone = DINOv3Backbone(
        TIMM_NAMES[name], checkpoint_path=str(path)
    ).eval()
    backbone.load_pretrained()
    return backbone.vit


@torch.inference_mode()
def features(vit, height, width):
    """Return the maps of blocks 2, 5, 8 and 11 after the final norm."""
    return vit.forward_intermediates(
        filler.image(11, 1, 3, height, width),
        indices=[2, 5, 8, 11],
        norm=True,
        intermediates_only=True,
    )


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_features_of_an_official_checkpoint_are_the_official_ones(
    name, tmp_path
):
    official = read_arrays(f"dinov3_{name}.npz")
    vit = loaded_vit(name, official_dinov3_checkpoint(name), tmp_path)
    for size in sorted({key.split("/")[0] for key in official}):
        maps = features(vit, *map(int, size.split("x")))
        ours = {
            f"block{block}": x.flatten()[::37]
            for block, x in zip((2, 5, 8), maps)
        }
        ours |= {
            "block11": maps[-1],
            "tokens": maps[-1].flatten(2).transpose(1, 2).flatten()[::37],
        }
        for part, value in ours.items():
            np.testing.assert_allclose(
                value.numpy(),
                official[f"{size}/{part}"],
                rtol=0,
                atol=1e-3,
                err_msg=f"{size} {part}",
            )


def test_features_of_a_hugging_face_checkpoint_are_the_official_ones(tmp_path):
    official = official_dinov3_checkpoint("vits16")
    state = {}
    for key, shape, source in read_json("dinov3_vits16.huggingface.json"):
        source, _, part = source.partition(" part ")
        tensor = (
            official[source] * official[source + "_mask"]
            if source.endswith("qkv.bias")
            else official[source]
        )
        state[key] = (
            tensor.chunk(3)[int(part)].clone() if part else tensor
        ).reshape(shape)
    vit = loaded_vit("vits16", state, tmp_path)
    np.testing.assert_allclose(
        features(vit, 160, 288)[-1].numpy(),
        read_arrays("dinov3_vits16.npz")["160x288/block11"],
        rtol=0,
        atol=1e-3,
    )
