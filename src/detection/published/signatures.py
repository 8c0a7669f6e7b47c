"""Digests of the names and shapes of a model's tensors, by which the model of a checkpoint is found.

What depends on the classes, on the input size or on training is left out, and so are tensors that are stored
under a second name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

DIGITS = 16
"""Number of digits of a digest."""

_LEFT_OUT = re.compile(
    r"^decoder\.(enc_score_head|dec_score_head|denoising_class_embed)\."
    r"|^decoder\.(anchors|valid_mask|up|reg_scale|decoder\.up|decoder\.reg_scale)$"
    r"|^decoder\.dec_bbox_head\.[1-9]"
    r"|^encoder\.feature_projector\."
    r"|\.num_batches_tracked$"
)


class Signature(NamedTuple):
    """First digits of the SHA-256 of the names and shapes of each part."""

    backbone: str
    encoder: str
    decoder: str


SIGNATURES: dict[str, Signature] = {
    "dfine_n": Signature(
        "84a70fac939e3052", "8e772b64ac9630aa", "1b112d5d8709493a"
    ),
    "dfine_s": Signature(
        "84a70fac939e3052", "39ef05b66a852b38", "f3f976d8f2057629"
    ),
    "dfine_m": Signature(
        "efde5cb94bd5813f", "9796fd395fbc8b30", "7387c3cf9b43e483"
    ),
    "dfine_l": Signature(
        "1f7063c296aead9e", "c1df0578428b78d5", "4a1c61db8a727426"
    ),
    "dfine_x": Signature(
        "cf3fb5184a4d9e7d", "3a3ec4e58e4e93c8", "d3f347307800a5c8"
    ),
    "deimv2_s": Signature(
        "f721b52c84c68f65", "e6a96a02b10b6084", "eebd6cf074692a24"
    ),
    "deimv2_m": Signature(
        "3d8a78facca318c7", "8871de355be4fa72", "d18ba736f2014451"
    ),
    "deimv2_l": Signature(
        "95c31e40979d078f", "3ae8f3272892dd09", "8e3af55eb09023f2"
    ),
    "deimv2_x": Signature(
        "3087413480e8b864", "c124526ec19710dd", "a80a0f024c716de6"
    ),
    "deimv2_n": Signature(
        "84a70fac939e3052", "b8816a8e37dd77ad", "ee616ccd34ba3784"
    ),
    "deimv2_pico": Signature(
        "34b0ee2d8e960345", "dcaf223732958479", "e4a1ddac0f8fa0bf"
    ),
    "deimv2_femto": Signature(
        "4422017d3efc5a31", "1cb69b47947b6f40", "a5993ae3fc1d34f4"
    ),
    "deimv2_atto": Signature(
        "a65a1e5bdb18478f", "a285301e6475b38e", "60b5e61405c97231"
    ),
    "dfine_dinov3_s": Signature(
        "80899c3c76e24f77", "c3647737cbfb008b", "2970d0ecb869b8fe"
    ),
    "dfine_dinov3_s2": Signature(
        "28f72c9e151d8e82", "e6a96a02b10b6084", "2ebd1710525018e7"
    ),
    "dfine_dinov3_t": Signature(
        "efeb8a15e13b8baa", "e6a96a02b10b6084", "2ebd1710525018e7"
    ),
    "dfine_dinov3_l": Signature(
        "80899c3c76e24f77", "ad61fc035f49d7e6", "ee04f7f45096bcf5"
    ),
    "dfine_dinov3_x": Signature(
        "fce298080caf1dc0", "bd2f4b8ccf3fb8c2", "4a1c61db8a727426"
    ),
}
"""Signature of each architecture; DEIM and RT-DETRv4 have those of D-FINE.

`tests/detection/published/test_signatures.py` compares them with the models that the configurations describe.
"""


def signature(weights: Mapping[str, Tensor]) -> Signature:
    """Return the signature of a detector.

    Args:
        weights: state dict with the keys of this project; tensors may be on the device "meta".
    """
    return Signature(
        *(_digest(weights, f"{part}.") for part in Signature._fields)
    )


def architecture_of(weights: Mapping[str, Tensor]) -> str | None:
    """Return the architecture that has these tensors, such as "dfine_s", or None."""
    found = signature(weights)
    for name, known in SIGNATURES.items():
        if known == found:
            return name
    return None


def most_similar(weights: Mapping[str, Tensor]) -> tuple[str, list[str]] | None:
    """Return the architecture that shares most parts with these tensors, and the parts that differ.

    Returns:
        For example `("dfine_s", ["decoder"])`, or None if no part is known.
    """
    found = signature(weights)
    best: tuple[str, list[str]] | None = None
    for name, known in SIGNATURES.items():
        differing = [
            part
            for part in Signature._fields
            if getattr(known, part) != getattr(found, part)
        ]
        fewest = len(Signature._fields) if best is None else len(best[1])
        if len(differing) < fewest:
            best = name, differing
    return best


def _digest(weights: Mapping[str, Tensor], prefix: str) -> str:
    lines = []
    for key, value in weights.items():
        if key.startswith(prefix) and not _LEFT_OUT.search(key):
            lines.append(f"{key} {list(value.shape)}\n")
    text = "".join(sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
