"""Metadata of an exported model: everything that `Detector` needs besides the graph, as one JSON text.

The metadata is stored in the ONNX file under `METADATA_KEY`, and beside it as NAME.json, because TensorRT
engines and OpenVINO's IR do not contain it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ..core.commands import command_name
from ..core.errors import CheckpointError
from ..core.paths import read_text
from ..core.schemas import Fraction, Positive, Side, Text, checked
from ..detection.notes import BitDepth, Classes, refuse_repeated_ids

METADATA_KEY = "dfine"
"""Name of the entry in an ONNX file's `metadata_props`."""

ADVICE = "export the model again"
"""Advice about metadata that is damaged or was changed."""

FORMAT = 2
"""Latest version of the format, incremented when older readers would misread the content.

Version 2 has `bit_depth`. Metadata without it is written as version 1.
"""


class Int8Note(Struct, frozen=True, kw_only=True):
    """Record of the quantization of a model, with the AP before and after."""

    engine: Text
    """Engine that the file is for."""
    images: Positive
    """Images that showed the ranges of activations."""
    float_parts: list[Text]
    """Parts of the model that stayed in float."""
    ap_float: float
    """AP on the validation data before."""
    ap_int8: float
    """AP on the same data after."""


class Metadata(Struct, frozen=True, kw_only=True):
    """Usage and origin of an exported model.

    Example:
        >>> metadata = Metadata(
        ...     preprocessing=[{"type": "Resize", "size": [64, 64]}],
        ...     classes=[{"id": 1, "name": "cat"}],
        ...     threshold=0.4,
        ...     input_size=[64, 64],
        ...     batch_size=None,
        ... )
        >>> Metadata.from_json(metadata.to_json(), "model.onnx") == metadata
        True
    """

    preprocessing: Annotated[
        list[dict[str, Any]], Meta(min_length=1, max_length=100)
    ]
    """`Preprocessing.ops`."""
    classes: Classes
    """`{"id": ..., "name": ...}` of each label in order."""
    threshold: Fraction
    """Default minimum score."""
    input_size: Annotated[list[Side], Meta(min_length=2, max_length=2)]
    """(height, width)."""
    batch_size: Annotated[int, Meta(ge=1, le=100_000)] | None
    """Fixed batch size; None accepts any size."""
    licences: list[Text] = []
    """Licence note of each source of the weights."""
    commit: Text | None = None
    """Commit of the code that trained the model."""
    checkpoint: Text | None = None
    """File name of the exported checkpoint."""
    bit_depth: BitDepth | None = None
    """Number of bits that the samples of 16-bit images use; None means 16."""
    int8: Int8Note | None = None
    """None for a model in float."""
    format: Positive = 1

    def __post_init__(self) -> None:
        refuse_repeated_ids(self.classes)
        for step in self.preprocessing:
            if not isinstance(step.get("type"), str):
                raise ValueError(
                    "Expected `{type: name, ...}` for each step of preprocessing"
                )

    def to_json(self) -> str:
        """Return the JSON text."""
        return json.dumps(
            msgspec.to_builtins(self), ensure_ascii=False, indent=1
        )

    @classmethod
    def from_json(cls, text: str, where: str | Path) -> Metadata:
        """Read the output of `to_json`; entries of later versions are ignored.

        Raises:
            CheckpointError: if the text is damaged or incomplete, has a later format, or an entry has the
                wrong type or is out of range; the message names the entry.
        """
        try:
            content = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise CheckpointError(
                f"{where} has damaged metadata ({error}); {ADVICE}"
            ) from None
        later = content.get("format") if isinstance(content, dict) else None
        if isinstance(later, int) and later > FORMAT:
            raise CheckpointError(
                f"{where} has metadata of format {later}, this version reads up to {FORMAT}; "
                "export it again or update"
            )
        return checked(content, cls, file=where, part="metadata", advice=ADVICE)


def metadata_for(path: Path, text: str | None) -> Metadata:
    """Return a model's metadata, from `text` (stored in the file) or else from NAME.json beside it.

    Example:
        >>> classes = [{"id": 1, "name": "cat"}]
        >>> metadata = Metadata(
        ...     preprocessing=[{"type": "Resize", "size": [640, 640]}],
        ...     classes=classes,
        ...     threshold=0.4,
        ...     input_size=[640, 640],
        ...     batch_size=None,
        ... )
        >>> size = Path("model.json").write_text(metadata.to_json())
        >>> metadata_for(Path("model.onnx"), None).classes
        [{'id': 1, 'name': 'cat'}]

    Raises:
        CheckpointError: if neither exists.
    """
    if text is not None:
        return Metadata.from_json(text, path)
    beside = path.with_suffix(".json")
    if not beside.exists():
        raise CheckpointError(
            f"{path} has no metadata about preprocessing and classes, and {beside.name} does not exist "
            f"beside it; {command_name('export')} writes both files, keep them together"
        )
    return Metadata.from_json(_read_metadata_text(beside), beside)


def _read_metadata_text(path: Path) -> str:
    """Return the text of NAME.json.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; export the model again"
        ) from None
