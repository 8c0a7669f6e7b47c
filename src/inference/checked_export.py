"""Export a detector to ONNX and compare the predictions of the file with those of its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ExportError
from ..runtime.log import logger
from ..runtime.optional import import_optional
from .agreement import check_agreement
from .detector import Detector
from .export import DISAGREES, UNCHECKED, export_onnx
from .reading import Readable


def export_checked_onnx(
    detector: Detector,
    path: str | Path,
    images: tuple[Sequence[Readable], Sequence[str]],
    **options: Any,
) -> Path:
    """Write an ONNX file whose predictions equal those of its detector.

    A file that fails the check gets another name, so that nobody uses it by mistake.

    Args:
        detector: as for `export_onnx`.
        path: as for `export_onnx`.
        images: images to compare, and their names (`images_for_check`).
        options: further arguments of `export_onnx`.

    Raises:
        ConfigError: as for `export_onnx`, or if ONNX Runtime is not installed, before anything is written.
        ExportError: if the predictions differ.
    """
    import_optional("onnxruntime")
    path = export_onnx(detector, path, **options)
    try:
        check_agreement(
            detector, Detector.from_onnx(path, device="cpu"), *images
        )
    except ExportError as error:
        kept = path.replace(path.with_suffix(DISAGREES))
        path.with_suffix(".json").unlink()
        raise ExportError(
            f"{error}; the file is kept as {kept} to look into, not to use"
        ) from None
    except BaseException:
        path.replace(path.with_suffix(UNCHECKED))
        path.with_suffix(".json").unlink()
        logger.warning(
            "the check did not end; the file is kept as %s",
            path.with_suffix(UNCHECKED),
        )
        raise
    return path
