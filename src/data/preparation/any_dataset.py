"""Recognition of a data set in any supported layout, and COCO files to train with.

COCO files are used where they are. YOLO, Pascal VOC and COCO files without a part for validation become COCO
files in a cache (`cache_folder`). Nothing else is written, and no file of the data set is changed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ...core.commands import command_name
from ...core.counts import counted
from ...core.errors import ConfigError, DataError
from ...core.fault_lists import listed
from ...core.paths import did_you_mean_file, user_path
from .cache_folder import (
    State,
    cache_folder,
    digest_of,
    held,
    read_state,
    write_state,
)
from .coco_split import image_paths, split_coco
from .find_coco import CocoFile, CocoLayout, coco_partners, find_coco, open_coco
from .find_voc import VocLayout, find_voc
from .find_yolo import YoloLayout, find_yolo
from .folders import PARTS, Entries, part_of
from .labelled_images import (
    DROPPED,
    ConversionError,
    LabelledImages,
    write_coco_parts,
)
from .splitting import split_if_needed

Layout = CocoLayout | YoloLayout | VocLayout

_FINDERS: dict[str, Callable[[Path], Layout | None]] = {
    "coco": find_coco,
    "yolo": find_yolo,
    "voc": find_voc,
}

FORMATS = tuple(_FINDERS)
"""Values of `--data-format`."""

FULL_NAMES = {"coco": "COCO", "yolo": "YOLO", "voc": "Pascal VOC"}

DEPTH = 2
"""Number of levels of subfolders in which a data set is looked for if the folder itself is not one."""

LOSSES = ("clipped", "dropped", "left out", "swapped")
"""Ends of notes about labels or images that are changed or not used."""


@dataclass(frozen=True)
class FoundDataset:
    """COCO files of a data set, with the folders of their images."""

    train_ann: Path
    train_images: Path
    val_ann: Path
    """The same as `train_ann` if `split` is False and there is no part for validation."""
    val_images: Path
    data_format: str
    """Format of the data set as found: one of `FORMATS`."""
    class_names: list[str]
    remarks: list[str] = field(default_factory=list)
    """Sentences about what was found, where, and how it was divided."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about what was clipped, dropped or left out; `--strict` treats them as errors."""

    def raise_if_dropped(self) -> None:
        """Raise `DataError` if boxes were dropped during a conversion, as a check of COCO files does."""
        for line in self.warnings:
            if line.startswith(DROPPED):
                raise DataError(
                    f"{line}; {command_name('convert')} lists them with file and line"
                )


@dataclass(frozen=True)
class _Options:
    """Options of `find_dataset` that change the result."""

    val_fraction: float
    seed: int
    images: Path | None
    follow_links: bool
    split: bool
    for_evaluation: bool


def find_dataset(
    path: str | Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    data_format: str | None = None,
    cache: str | Path | None = None,
    images: str | Path | None = None,
    follow_links: bool = False,
    split: bool = True,
    for_evaluation: bool = False,
) -> FoundDataset:
    """Recognize a data set, and return COCO files for training and validation.

    Several processes may call this at the same time for the same data set; one of them converts it.

    Args:
        path: folder, `data.yaml`, or COCO file.
        val_fraction: fraction of the images for validation if there is no part for it, above 0 and below 1.
            Images that show the same picture stay together.
        seed: random seed of this split.
        data_format: one of `FORMATS`; None recognizes it.
        cache: folder for converted labels; None uses `.dfine_cache` in the data set, or the user's cache if
            that is not writable.
        images: folder that the file names in COCO files are relative to; None looks for it.
        follow_links: open files that are symbolic links out of the data set.
        split: split COCO files without a part for validation.
        for_evaluation: use the part for test, or a COCO file that is not named for training, as validation
            data rather than splitting.

    Raises:
        DataError: if no labels are found, if several layouts fit, or if labels have faults.
        ConfigError: if the path does not exist, or if an argument is invalid.
    """
    path = user_path(path)
    if data_format is not None and data_format not in FORMATS:
        raise ConfigError(
            f"data format is {data_format!r}, expected {', '.join(FORMATS)}"
        )
    if not 0 < val_fraction < 1:
        raise ConfigError(
            f"val_fraction is {val_fraction:g}, expected a fraction above 0 and below 1"
        )
    options = _Options(
        val_fraction,
        seed,
        None if images is None else user_path(images),
        follow_links,
        split,
        for_evaluation,
    )
    if options.images is not None and not options.images.is_dir():
        hint = did_you_mean_file(options.images)
        raise ConfigError(f"--data-images {images} is not a folder{hint}")
    place = None if cache is None else user_path(cache)
    layout = recognize(path, data_format)
    if isinstance(layout, CocoLayout):
        found = _use_coco(layout, options, place, path)
    elif options.images is None:
        found = _use_converted(layout, options, place)
    else:
        raise ConfigError(
            f"--data-images is only used with COCO files, but {path} is {FULL_NAMES[layout.data_format]}"
        )
    return replace(
        found,
        train_ann=found.train_ann.absolute(),
        train_images=found.train_images.absolute(),
        val_ann=found.val_ann.absolute(),
        val_images=found.val_images.absolute(),
    )


def recognize(path: Path, data_format: str | None = None) -> Layout:
    """Return the layout of a data set.

    Args:
        path: as for `find_dataset`.
        data_format: as for `find_dataset`.

    Raises:
        DataError: if no layout fits, or if several do.
        ConfigError: if the path does not exist.
    """
    if not path.exists():
        hint = did_you_mean_file(path)
        raise ConfigError(
            f"{path} does not exist; give the folder of a data set, a data.yaml or a COCO file{hint}"
        )
    if not path.is_dir():
        return _layout_of_file(path, data_format)
    level = [path]
    errors: list[DataError] = []
    for _ in range(DEPTH + 1):
        found = []
        for folder in level:
            layout = _layout_of_folder(folder, data_format, errors)
            if layout is not None:
                found.append(layout)
        if len(found) > 1:
            names = [os.path.relpath(layout.root, path) for layout in found]
            raise DataError(
                f"{path} contains {len(found)} data sets ({listed(names, shown=5)}); "
                "give one of these folders"
            )
        if found:
            return found[0]
        level = [inner for folder in level for inner in _subfolders(folder)]
    if errors:
        raise errors[0]
    raise _nothing_found(path, data_format)


def _layout_of_file(path: Path, data_format: str | None) -> Layout:
    suffix = path.suffix.lower()
    layout: Layout
    if suffix == ".json":
        layout = coco_partners(path)
    elif suffix in (".yaml", ".yml"):
        layout = YoloLayout(path.parent, yaml=path)
    else:
        advice = ""
        if suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
            advice = "; unpack the archive first"
        raise DataError(
            f"{path} is not a data set: expected a folder, a data.yaml or a COCO file (.json){advice}"
        )
    if data_format not in (None, layout.data_format):
        raise DataError(
            f"{path} is {FULL_NAMES[layout.data_format]} by its suffix, which contradicts "
            f"--data-format {data_format}"
        )
    return layout


def _layout_of_folder(
    folder: Path, data_format: str | None, errors: list[DataError]
) -> Layout | None:
    """Return the layout of a folder, or None.

    Errors of formats that seem to fit are collected.

    Raises:
        DataError: if several layouts fit.
    """
    layouts: dict[str, Layout] = {}
    unusable: dict[str, DataError] = {}
    for name, find in _FINDERS.items():
        if data_format not in (None, name):
            continue
        try:
            layout = find(folder)
        except DataError as error:
            unusable[name] = error
        else:
            if layout is not None:
                layouts[name] = layout
    errors += unusable.values()
    if len(layouts) + len(unusable) > 1:
        raise _ambiguous(folder, layouts, unusable)
    return next(iter(layouts.values()), None)


def _ambiguous(
    folder: Path, layouts: dict[str, Layout], unusable: dict[str, DataError]
) -> DataError:
    found = []
    for name, layout in layouts.items():
        found.append(f"{FULL_NAMES[name]} ({layout.where()})")
    for name, error in unusable.items():
        found.append(f"{FULL_NAMES[name]} ({error})")
    formats = " or ".join([*layouts, *unusable])
    return DataError(
        f"{folder} has labels in several formats: {', '.join(found)}; "
        f"choose one with --data-format {formats}, or give a COCO file or a data.yaml with --data FILE"
    )


def _subfolders(folder: Path) -> list[Path]:
    """Return the subfolders that are not links, so that no loop is followed."""
    try:
        folders = Entries(folder).folders
    except DataError:
        return []
    return [path for path in folders if not path.is_symlink()][:MOST_SUBFOLDERS]


MOST_SUBFOLDERS = 100
"""Maximum number of subfolders of a folder in which a data set is looked for."""


def _nothing_found(path: Path, data_format: str | None) -> DataError:
    wanted = "COCO, YOLO or Pascal VOC"
    if data_format is not None:
        wanted = f"{FULL_NAMES[data_format]} (--data-format {data_format})"
    kinds: Counter[str] = Counter()
    for folder in (path, *_subfolders(path)):
        for file in Entries(folder).files:
            kinds[file.suffix.lower() or "without a suffix"] += 1
    counts = [f"{count} {kind}" for kind, count in kinds.most_common(5)]
    there = f"it contains {', '.join(counts)}" if counts else "it is empty"
    return DataError(
        f"{path} has no labels in a known layout of {wanted}: {there}; docs/data.md lists the layouts"
    )


def _use_coco(
    layout: CocoLayout, options: _Options, cache: Path | None, given: Path
) -> FoundDataset:
    """Return the COCO files of a layout; without a part for validation, those of their split."""
    files, remarks = _coco_parts(layout, options, given)
    train = open_coco(files["train"], layout.root, options.images)
    unused = []
    if layout.unused:
        names = listed(list(layout.unused), shown=5)
        unused = [f"COCO files that are not used: {names}"]
    remarks = [
        f"{given} is read as COCO: {train.path} with images in {train.images}",
        *remarks,
        *unused,
    ]
    if "val" not in files and options.split:
        return _split_coco(layout, train, options, cache, remarks)
    val = train
    if "val" in files:
        val = open_coco(files["val"], layout.root, options.images)
        remarks.append(f"validation: {val.path} with images in {val.images}")
    return FoundDataset(
        train.path,
        train.images,
        val.path,
        val.images,
        layout.data_format,
        train.class_names,
        remarks,
    )


def _coco_parts(
    layout: CocoLayout, options: _Options, given: Path
) -> tuple[dict[str, Path], list[str]]:
    """Return the files to use for each part, and remarks about the choice.

    Raises:
        DataError: if there is no file for training.
    """
    files = dict(layout.files)
    remarks = []
    if options.for_evaluation and "val" not in files:
        is_for_training = given.is_dir() or part_of(given.stem) == "train"
        if "test" in files:
            files["val"] = files["test"]
            remarks.append(EVALUATED_TEST)
        elif not is_for_training:
            files["val"] = files["train"]
    if options.for_evaluation and "val" in files:
        files.setdefault("train", files["val"])
    if "train" not in files:
        names = listed(sorted(map(str, files.values())))
        raise DataError(
            f"{layout.root} has no COCO file for training, only {names}; give the file for training with "
            "--data FILE"
        )
    return files, remarks


EVALUATED_TEST = (
    "there is no part for validation, so the part for test is evaluated"
)


def _split_coco(
    layout: CocoLayout,
    train: CocoFile,
    options: _Options,
    cache: Path | None,
    remarks: list[str],
) -> FoundDataset:
    """Return the split of a COCO file, from the cache if it is there already."""

    def convert(folder: Path) -> _Converted:
        lines = split_coco(
            train,
            folder,
            options.val_fraction,
            options.seed,
            follow_links=options.follow_links,
        )
        return _Converted(
            train.images, train.class_names, list(lines), [], True
        )

    watched = [train.path, *image_paths(train)]
    key = f"{os.path.relpath(train.path, layout.root)} {train.images}"
    found = _cached(layout, options, cache, key, watched, convert)
    return replace(found, remarks=[*remarks, *found.remarks])


class _Converted(NamedTuple):
    """Facts about converted labels that the state of the cache keeps."""

    images: Path
    class_names: list[str]
    remarks: list[str]
    warnings: list[str]
    was_split: bool


def _use_converted(
    layout: YoloLayout | VocLayout, options: _Options, cache: Path | None
) -> FoundDataset:
    """Return COCO files of a data set in another layout, from the cache if they are there already."""

    def convert(folder: Path) -> _Converted:
        data = _read(layout, options)
        remarks, warnings = _describe(layout, data)
        was_split = not data.parts.get("val")
        with _about(layout.root):
            remarks += split_if_needed(data, options.val_fraction, options.seed)
        remarks += write_coco_parts(data, folder)
        names = [data.categories[number] for number in sorted(data.categories)]
        return _Converted(data.folder, names, remarks, warnings, was_split)

    watched = layout.watched()
    return _cached(layout, options, cache, layout.where(), watched, convert)


def _read(layout: YoloLayout | VocLayout, options: _Options) -> LabelledImages:
    """Read labels; boxes that cannot be used are dropped unless they are more than half of all.

    Raises:
        DataError: if there are faults.
    """

    def read(drop_boxes: bool) -> LabelledImages:
        return layout.read(
            follow_links=options.follow_links, drop_boxes=drop_boxes
        )

    try:
        data = read(drop_boxes=True)
    except ConversionError:
        raise
    except DataError:
        read(drop_boxes=False)  # names the boxes if all of them were dropped
        raise
    kept = 0
    for image in chain.from_iterable(data.parts.values()):
        kept += len(image.boxes)
    if data.notes[DROPPED] > kept:
        read(drop_boxes=False)
    return data


def _describe(
    layout: YoloLayout | VocLayout, data: LabelledImages
) -> tuple[list[str], list[str]]:
    """Return remarks about what was found, and warnings about what is changed or not used."""
    parts = []
    for part, images in data.parts.items():
        boxes = sum(len(image.boxes) for image in images)
        parts.append(
            f"{part} has {counted(len(images), 'image')} and {counted(boxes, 'box', 'boxes')}"
        )
    names = [data.categories[number] for number in sorted(data.categories)]
    remarks = [
        f"{layout.root} is read as {FULL_NAMES[layout.data_format]} ({layout.where()}) with images in "
        f"{data.folder}: {', '.join(parts)}",
        f"{counted(len(names), 'class', 'classes')}: {listed(names)}",
    ]
    warnings: list[str] = []
    for what, number in data.notes.items():
        if number:
            lines = warnings if what.endswith(LOSSES) else remarks
            lines.append(f"{what}: {number}")
    return remarks, warnings


@contextmanager
def _about(root: Path) -> Iterator[None]:
    """Name the data set in an error about its split."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"{root}: {error}; add images, or a part for validation"
        ) from None


def _cached(
    layout: Layout,
    options: _Options,
    cache: Path | None,
    key: str,
    watched: Iterable[Path],
    convert: Callable[[Path], _Converted],
) -> FoundDataset:
    """Return converted labels; convert unless the cache has labels of the same files and options."""
    key = (
        f"{layout.data_format} {key} {options.val_fraction:g} {options.seed} "
        f"{options.follow_links}"
    )
    folder = cache_folder(layout.root, key, cache)
    with held(folder):
        digest = digest_of(watched, layout.root, key)
        state = read_state(folder, digest)
        where = f"labels that were converted earlier are used: {folder}"
        if state is None:
            result = convert(folder)
            where = f"converted labels are written to {folder}"
            state = State(
                digest,
                _sizes(folder),
                str(result.images),
                result.class_names,
                result.remarks,
                result.warnings,
                result.was_split,
            )
            write_state(folder, state)
    val = "val.json"
    remarks = [*state.remarks, where]
    if (
        options.for_evaluation
        and state.was_split
        and "test.json" in state.files
    ):
        val = "test.json"
        remarks.append(EVALUATED_TEST)
    images = Path(state.images)
    return FoundDataset(
        folder / "train.json",
        images,
        folder / val,
        images,
        layout.data_format,
        state.class_names,
        remarks,
        state.warnings,
    )


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for part in PARTS:
        path = folder / f"{part}.json"
        if path.is_file():
            sizes[path.name] = path.stat().st_size
    return sizes
