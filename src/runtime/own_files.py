"""Recognize files written by this project by their content; other files are never replaced.

Every writer adds a mark to its file, which is checked before a file is replaced. Results of versions without
the mark are recognized by their structure where that is unambiguous.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..core.errors import ConfigError
from ..core.paths import open_regular
from .files import prepare_output_dir, write_atomically, write_json
from .weight_files import is_marked_tensor_file

WRITER = "dfine_dinov3"
"""The mark; in JSON objects, the value of `MARK`."""

MARK = "written_by"

DATA_IMAGE = f"{WRITER} data"
"""The mark of images in data sets."""

TABLE_HEADER = "epoch,stage,loss,AP,AP50,AP75,"
"""Start of the tables that are written after every epoch; spreadsheets leave no place for a mark."""

YAML_HEADER = f"# Written by {WRITER}: the resolved configuration of a run.\n"

LARGEST_READ = 1 << 20
"""Maximum bytes of a file that are read to recognize it."""

_COCO_MARK = re.compile(
    rf'\{{\s*"info"\s*:\s*\{{\s*"{MARK}"\s*:\s*"{WRITER}"'.encode()
)
"""Start of COCO files with the mark."""

_REPORT_MARK = re.compile(rf'\{{\s*"{MARK}"\s*:\s*"{WRITER}"'.encode())
"""Start of reports."""

_READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors of reading a file that is damaged or of another kind."""

_MP4_BOX = len(WRITER.encode()) + 8
"""Length of the box appended to videos: size, type "free", the mark (ISO/IEC 14496-12, section 8.1.2)."""


def is_ours(path: Path) -> bool:
    """Return whether this project wrote a file; False for symbolic links, folders and unknown suffixes."""
    if not _is_regular(path):
        return False
    recognize = _RECOGNIZE.get(path.suffix.lower())
    try:
        return recognize is not None and recognize(path)
    except _READ_ERRORS:
        return False


def _is_regular(path: Path) -> bool:
    """Return whether a path is a file and not a symbolic link."""
    return path.is_file() and not path.is_symlink()


def is_our_coco_file(path: Path) -> bool:
    """Return whether this project wrote a COCO file.

    `is_ours` does not recognize these files, because no other result may replace labels.
    """
    return _is_regular(path) and _COCO_MARK.match(_head(path)) is not None


def refuse_foreign(
    paths: Iterable[Path],
    advice: str,
    *,
    recognize: Callable[[Path], bool] = is_ours,
) -> None:
    """Check that results replace only earlier results of this project.

    Args:
        paths: paths of the results.
        advice: advice for the user, such as "choose another --output-dir".
        recognize: function that returns whether a file is an earlier result.

    Raises:
        ConfigError: with the files that this project did not write.
    """
    foreign = []
    for path in paths:
        if os.path.lexists(path) and not recognize(path):
            foreign.append(str(path))
    if foreign:
        shown = ", ".join(foreign[:5])
        if len(foreign) > 5:
            shown += f" and {len(foreign) - 5} more"
        which = "it" if len(foreign) == 1 else "them"
        raise ConfigError(
            f"{shown} would be replaced, but this project did not write {which}; {advice}"
        )


def prepare_report(path: Path, flag: str) -> None:
    """Check, before any work, that a report can be written and replaces at most an earlier report.

    Args:
        path: path of the report; its folder is created.
        flag: command-line option of the report, used in messages, such as "--report".

    Raises:
        ConfigError: if the report cannot be written.
    """
    prepare_output_dir(path.parent)
    refuse_foreign(
        [path], f"name another file with {flag}", recognize=is_our_report
    )


def is_our_report(path: Path) -> bool:
    """Return whether a file is a report of this project; a report replaces no other kind of result."""
    return _is_regular(path) and _REPORT_MARK.match(_head(path)) is not None


def refuse_leaving(folder: Path, paths: Iterable[Path]) -> None:
    """Check that no symbolic link below a folder of results leads out of the folder.

    Raises:
        ConfigError: with the first folder that is elsewhere.
    """
    root = folder.resolve()
    for parent in dict.fromkeys(path.parent for path in paths):
        if not parent.resolve().is_relative_to(root):
            raise ConfigError(
                f"{parent} leads out of {folder} by a symbolic link; choose another --output"
            )


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with the mark as its first entry, atomically."""
    write_json(path, {MARK: WRITER, **content})


def refuse_replacing_inputs(
    outputs: Iterable[Path], inputs: Mapping[str, str | Path | None]
) -> None:
    """Check that no result replaces a file that the command reads, under any name or link.

    Args:
        outputs: paths of the results.
        inputs: input files by the option or setting that names them.

    Raises:
        ConfigError: with the option, the file and the result.
    """
    there = [path for path in outputs if path.exists()]
    for flag, name in inputs.items():
        if name is None or not os.path.exists(name):
            continue
        for path in there:
            if path.samefile(name):
                raise ConfigError(
                    f"{flag} names {name}, which this command would replace by its result {path}; "
                    "choose another place for the results"
                )


def write_picture(
    path: Path, picture: Image.Image, quality: int = 92, *, mark: str = WRITER
) -> None:
    """Write a JPEG file with the mark, atomically."""
    comment = mark.encode()

    def write(file: BinaryIO) -> None:
        picture.save(file, "JPEG", quality=quality, comment=comment)

    write_atomically(path, write)


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a PNG file with the mark, atomically."""
    note = PngInfo()
    note.add_text(MARK, WRITER)

    def write(file: BinaryIO) -> None:
        picture.save(file, "PNG", pnginfo=note)

    write_atomically(path, write)


def is_our_data_image(path: Path) -> bool:
    """Return whether this project wrote an image of a data set, which `is_ours` does not recognize."""
    try:
        return _is_regular(path) and _comment(path) == DATA_IMAGE.encode()
    except OSError:
        return False


def picture_names(names: Sequence[str]) -> list[str]:
    """Return unique file names, ending with `.jpg`, for the pictures of images in a folder of results.

    Args:
        names: file names of the images, with their folders.
    """
    stems = Counter(os.path.splitext(name)[0].casefold() for name in names)
    taken: set[str] = set()
    for name in names:
        taken.update(
            str(folder).casefold() for folder in PurePosixPath(name).parents
        )
    result = []
    for name in names:
        stem = os.path.splitext(name)[0]
        picture = f"{name if stems[stem.casefold()] > 1 else stem}.jpg"
        while (
            picture.casefold() in taken
        ):  # an image a.jpg.jpg beside a.jpg and a.png
            picture = f"{picture}.jpg"
        taken.add(picture.casefold())
        result.append(picture)
    return result


def marked_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the mark."""
    return {**content, MARK: WRITER}


def marked_coco(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a COCO file with the mark in `info`, which comes first as files may be large."""
    others = {key: value for key, value in content.items() if key != "info"}
    info = content.get("info")
    if not isinstance(info, dict):
        info = {}
    return {"info": {MARK: WRITER, **info}, **others}


def mark_video(path: Path) -> None:
    """Append a box with the mark to an .mp4 file; players skip it."""
    with open(path, "ab") as file:
        file.write(_video_mark())


def _video_mark() -> bytes:
    """Return the box that is appended to videos."""
    return _MP4_BOX.to_bytes(4, "big") + b"free" + WRITER.encode()


_EXPORT_KEYS = {
    "preprocessing",
    "classes",
    "threshold",
    "input_size",
    "batch_size",
    "format",
}
"""Keys of the metadata of an exported model."""


def _is_our_json(path: Path) -> bool:
    """Return whether a JSON file has the mark, or the structure of a result of a version without marks."""
    head = _head(path)
    is_prediction_list = (
        head.startswith(b'[\n{"image_id": ') or head == b"[\n\n]\n"
    )
    if is_prediction_list:  # a list has no place for a mark
        return True
    if (
        len(head) == LARGEST_READ
    ):  # only reports are so large; they begin with the mark
        return _REPORT_MARK.match(head) is not None
    content = json.loads(head)
    if not isinstance(content, dict):
        return False
    if MARK in content:
        return content[MARK] == WRITER
    keys = content.keys()
    is_status = keys == {"status", "exit_code", "message"}
    is_evaluation = keys >= {"weights", "AP", "AP50", "AR100", "F1"}
    return is_status or is_evaluation or keys >= _EXPORT_KEYS


def _is_our_yaml(path: Path) -> bool:
    return _head(path).startswith(YAML_HEADER.encode())


def _is_our_log(path: Path) -> bool:
    head = _head(path)
    if not head:
        return True
    first = head.split(b"\n", 1)[0]
    if path.name.startswith("stacks.rank"):
        return re.match(rb"Timeout|Thread|Current thread", first) is not None
    return json.loads(first).keys() >= {"epoch", "stage", "best_metric"}


def _is_our_cache(path: Path) -> bool:
    with (
        open_regular(path) as file,
        np.load(file, allow_pickle=False) as content,
    ):
        return set(content.files) == {"names", "rows"}


def _is_our_page(path: Path) -> bool:
    return f'<meta name="generator" content="{WRITER}">'.encode() in _head(path)


def _is_our_picture(path: Path) -> bool:
    return _comment(path) == WRITER.encode()


def _is_our_png(path: Path) -> bool:
    with open_regular(path) as file, Image.open(file) as image:
        return image.info.get(MARK) == WRITER


def _is_our_table(path: Path) -> bool:
    return _head(path).startswith(TABLE_HEADER.encode())


def _comment(path: Path) -> bytes | None:
    with open_regular(path) as file, Image.open(file) as image:
        return image.info.get("comment")


def _is_our_video(path: Path) -> bool:
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - _MP4_BOX))
        return file.read() == _video_mark()


def _is_our_graph(path: Path) -> bool:
    """Return whether an ONNX file has this project's key in its metadata, near the end of the file."""
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - LARGEST_READ))
        return b"\n\x05dfine" in file.read()


def _is_our_openvino_model(path: Path) -> bool:
    """Return whether an OpenVINO model has the mark in its information for the runtime, at its end."""
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - LARGEST_READ))
        return f'<{MARK} value="{WRITER}"'.encode() in file.read()


def _head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(LARGEST_READ)


_RECOGNIZE: dict[str, Callable[[Path], bool]] = {
    ".pth": is_marked_tensor_file,
    ".json": _is_our_json,
    ".yml": _is_our_yaml,
    ".txt": _is_our_log,
    ".npz": _is_our_cache,
    ".html": _is_our_page,
    ".jpg": _is_our_picture,
    ".png": _is_our_png,
    ".csv": _is_our_table,
    ".mp4": _is_our_video,
    ".onnx": _is_our_graph,
    ".xml": _is_our_openvino_model,
}
"""Function that recognizes each kind of result, by suffix."""
