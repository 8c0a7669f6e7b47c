"""Metadata of an exported model: everything that `Detector` needs besides the graph, as one JSON text.

The metadata is stored in the ONNX file under `METADATA_KEY`, and beside it as NAME.json, because TensorRT
engines and OpenVINO's IR do not contain it.
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
"""Version of the format, incremented when older readers would misread the content."""


@dataclass(frozen=True)
class Metadata:
    """Usage and origin of an exported model.

    Example:
        >>> classes = [{"id": 1, "name": "cat"}]
        >>> metadata = Metadata([], classes, threshold=0.4, input_size=[640, 640], batch_size=None)
        >>> Metadata.from_json(metadata.to_json(), Path("model.onnx")) == metadata
        True
    """

    preprocessing: list[dict[str, Any]]
    """`Preprocessing.ops`."""
    classes: list[dict[str, Any]]
    """`{"id": ..., "name": ...}` of each label in order."""
    threshold: float
    """Default minimum score."""
    input_size: list[int]
    """(height, width)."""
    batch_size: int | None
    """Fixed batch size; None accepts any size."""
    licences: list[str] = field(default_factory=list)
    """Licence note of each source of the weights."""
    commit: str | None = None
    """Commit of the code that trained the model."""
    checkpoint: str | None = None
    """File name of the exported checkpoint."""
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, where: Path) -> Metadata:
        """Read the output of `to_json`; entries of later versions are ignored.

        Raises:
            CheckpointError: if the text is damaged or incomplete, or has a later format.
        """
        try:
            content = json.loads(text)
            if content.get("format", 0) > FORMAT:
                raise CheckpointError(
                    f"{where} has metadata of format {content['format']}, this version reads up to {FORMAT}; "
                    "export it again or update"
                )
            known = content.keys() & cls.__dataclass_fields__.keys()
            metadata = cls(**{key: content[key] for key in known})
            if not all(
                set(entry) >= {"id", "name"} for entry in metadata.classes
            ):
                raise TypeError("a class without id or name")
            if (
                isinstance(metadata.threshold, bool)
                or not 0 <= metadata.threshold <= 1
            ):
                raise ValueError(
                    f"threshold {metadata.threshold}, expected 0 to 1"
                )
            return metadata
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{where} has damaged metadata ({error}); export the model again"
            ) from None


def metadata_for(path: Path, text: str | None) -> Metadata:
    """Return a model's metadata, from `text` (stored in the file) or else from NAME.json beside it.

    Example:
        >>> classes = [{"id": 1, "name": "cat"}]
        >>> metadata = Metadata([], classes, threshold=0.4, input_size=[640, 640], batch_size=None)
        >>> size = Path("model.json").write_text(metadata.to_json())
        >>> metadata_for(Path("model.onnx"), None).classes
        [{'id': 1, 'name': 'cat'}]

    Raises:
        CheckpointError: if neither exists.
    """
    if text is not None:
        return Metadata.from_json(text, path)
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise CheckpointError(
            f"{path} has no metadata about preprocessing and classes, and {beside.name} does not exist "
            "beside it; tools/deployment/export_onnx.py writes both files, keep them together"
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
