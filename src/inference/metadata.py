"""Metadata of an exported model: all that `Detector` needs besides the graph, as one JSON text.

It stands in the ONNX file under `METADATA_KEY` and beside it as NAME.json, since TensorRT engines and
OpenVINO's IR do not carry it on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.paths import read_text

METADATA_KEY = "dfine"
"""Name of the entry in an ONNX file's `metadata_props`."""

FORMAT = 1
"""Raised when older readers would misunderstand what is written."""


@dataclass(frozen=True)
class Metadata:
    """Use and origin of an exported model."""

    preprocessing: list[dict[str, Any]]
    """`Preprocessing.ops`."""
    classes: list[dict[str, Any]]
    """`{"id": ..., "name": ...}` of each label in order."""
    threshold: float
    """Least score that counts by default."""
    input_size: list[int]
    """(height, width)."""
    batch_size: int | None
    """Images at once; None for any number."""
    licences: list[str] = field(default_factory=list)
    """One note for each origin of the weights."""
    commit: str | None = None
    """Of the code that trained it."""
    checkpoint: str | None = None
    """Name of the file that was exported."""
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, where: Path) -> Metadata:
        """Read what `to_json` wrote; entries of later versions are ignored.

        Raises:
            CheckpointError: if it is damaged, lacks something, or has a later format.
        """
        try:
            content = json.loads(text)
            if content.get("format", 0) > FORMAT:
                raise CheckpointError(
                    f"{where} has metadata of format {content['format']}, this version reads up to {FORMAT}; "
                    "export it again or update"
                )
            known = {key: value for key, value in content.items() if key in cls.__dataclass_fields__}
            metadata = cls(**known)
            if not all(set(entry) >= {"id", "name"} for entry in metadata.classes):
                raise TypeError("a class without id or name")
            if isinstance(metadata.threshold, bool) or not 0 <= metadata.threshold <= 1:
                raise ValueError(f"threshold {metadata.threshold}, expected 0 to 1")
            return metadata
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{where} has damaged metadata ({error}); export the model again") from None


def metadata_for(path: Path, text: str | None) -> Metadata:
    """Return a model's metadata: `text` from within its file, else NAME.json beside it.

    Raises:
        CheckpointError: if there is neither.
    """
    if text is not None:
        return Metadata.from_json(text, path)
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise CheckpointError(
            f"{path} does not say how images are prepared and what its classes are: it has no metadata and "
            f"there is no {beside.name} "
            f"beside it; tools/deployment/export_onnx.py writes both, keep them together"
        )
    return Metadata.from_json(_read_metadata_text(beside), beside)


def _read_metadata_text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; export the model again") from None
