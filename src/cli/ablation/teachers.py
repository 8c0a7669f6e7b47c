"""Files of a trained teacher that its students read."""

from __future__ import annotations

from pathlib import Path

from ...core.errors import CheckpointError
from ...detection.weight_file import read_weights
from ...runtime.weight_files import write_tensor_file

VIT_PREFIX = "backbone.vit."


def write_vit(checkpoint: Path, path: Path) -> None:
    """Write the ViT of a detector as a file of its own, in timm's layout.

    Args:
        checkpoint: checkpoint of a detector with a DINOv3 backbone.
        path: file that is written.

    Raises:
        CheckpointError: if the file holds no such detector.
    """
    weights = read_weights(checkpoint).weights
    vit = {}
    for name, tensor in weights.items():
        if name.startswith(VIT_PREFIX):
            vit[name.removeprefix(VIT_PREFIX)] = tensor
    if not vit:
        raise CheckpointError(
            f"{checkpoint} has no tensors {VIT_PREFIX}*; $TEACHER_VIT needs a teacher with a DINOv3 backbone"
        )
    write_tensor_file(path, {"model": vit})
