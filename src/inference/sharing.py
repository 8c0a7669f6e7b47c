"""Share detectors: write a folder with everything that others need, send it to a hub, and fetch it.

The folder has the weights as safetensors with the notes of the checkpoint in their header, so that
`model.safetensors` alone is a complete checkpoint. The other files are for readers and other programs.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..core.errors import CheckpointError, ConfigError, RunError
from ..core.paths import read_text
from ..core.yaml_config import YAMLConfig
from ..core.yaml_text import dump_yaml, parse_yaml
from ..detection.fitting import load_strictly
from ..detection.lora_weights import merged_state_dict
from ..detection.model_card import model_card
from ..detection.model_config import model_config
from ..detection.thresholds import drawing_threshold
from ..detection.transformers_folder import check_new_folder
from ..detection.weight_file import SHARED_NOTES, WeightFile, read_weights
from ..runtime.files import prepare_output_dir, write_atomically
from ..runtime.log import logger
from ..runtime.weight_files import file_sha256, write_safetensors
from .hub import CARD, SCHEME, download, is_hub_address, repository_of, upload
from .metadata import Metadata
from .preprocessing import Preprocessing

WEIGHTS = "model.safetensors"
CONFIG = "config.yml"
PREPROCESSING = "preprocessing.json"
LICENCES = "LICENCES.txt"
DIGESTS = "SHA256SUMS"
"""Digests of all files but the card, in the format of `sha256sum -c`."""

FILES = (WEIGHTS, CONFIG, PREPROCESSING, CARD, LICENCES, DIGESTS)
"""Files of a shared folder."""

OF_TRANSFORMERS = ("config.json", "preprocessor_config.json")
"""Files beside the weights in a folder of the package transformers, which can be fetched too."""

PRIVATE = ("command", "started")
"""Notes that stay with the author: they may name people, folders and addresses."""


def push(
    model: str | Path,
    destination: str | Path,
    *,
    title: str | None = None,
    licence: str | None = None,
    public: bool = False,
    config: str | Path | None = None,
    family: str | None = None,
) -> str:
    """Write a detector into a folder, or to Hugging Face Hub, and return where it is.

    Args:
        model: run folder, checkpoint, or name of a published detector.
        destination: a new folder, or `hf://USER/NAME`.
        title: heading of the model card; None takes the name of the destination.
        licence: identifier of the licence, such as "apache-2.0".
        public: whether a new repository on the hub is public; otherwise it is private.
        config: configuration of a checkpoint that contains none and is not recognized.
        family: family of the model, where its tensors fit several.

    Example:
        >>> push("best.pth", "shared/shapes", licence="apache-2.0")
        'shared/shapes'

    Raises:
        CheckpointError: if the checkpoint is damaged or does not fit its configuration.
        ConfigError: if the folder exists, the hub refuses, or `public` is set for a folder.
        ResourceError: if the disk is full, or the hub cannot be reached.
    """
    on_hub = is_hub_address(destination)
    if public and not on_hub:
        raise ConfigError(
            f"--public is for {SCHEME}USER/NAME, but {destination} is a folder; leave it out"
        )
    name = _name_of(destination)
    target = Path(destination).expanduser()
    if not on_hub:
        check_new_folder(target)
    file = read_weights(model, family)
    with _temporary_folder() if on_hub else _complete_folder(target) as folder:
        write_shared_folder(
            folder, file, title=title or name, licence=licence, config=config
        )
        if on_hub:
            return upload(folder, str(destination), public=public)
    return str(target)


def pull(
    source: str | Path,
    folder: str | Path | None = None,
    *,
    revision: str | None = None,
) -> Path:
    """Fetch a shared detector from Hugging Face Hub or another folder, check it, and return its folder.

    Only the files in `FILES` and `OF_TRANSFORMERS` are fetched, none of which can contain code.

    Args:
        source: `hf://USER/NAME`, or a folder.
        folder: a new folder; None takes `weights/NAME`.
        revision: branch, tag or commit on the hub; None takes the main branch.

    Example:
        >>> place = push("best.pth", "from_me/shapes")
        >>> pull(place).as_posix()
        'weights/shapes'

    Raises:
        CheckpointError: if the source holds no detector that this project reads, or a file is damaged.
        ConfigError: if the folder exists, the hub refuses, or `revision` is given for a folder.
        ResourceError: if the disk is full, or the hub cannot be reached.
    """
    on_hub = is_hub_address(source)
    if revision is not None and not on_hub:
        raise ConfigError(
            f"--revision is for {SCHEME}USER/NAME, but {source} is a folder; leave it out"
        )
    target = Path(folder or Path("weights") / _name_of(source)).expanduser()
    with _complete_folder(target) as fetched:
        if on_hub:
            download(str(source), fetched, FILES + OF_TRANSFORMERS, revision)
        else:
            _copy(Path(source).expanduser(), fetched)
        _check_fetched(fetched, source)
    return target


def write_shared_folder(
    folder: Path,
    file: WeightFile,
    *,
    title: str,
    licence: str | None = None,
    config: str | Path | None = None,
) -> None:
    """Write a detector with its card, configuration, preprocessing and licences into a new folder.

    Args:
        folder: new folder.
        file: weights and notes.
        title: heading of the model card.
        licence: identifier of the licence, such as "apache-2.0".
        config: configuration of a checkpoint that contains none and is not recognized.

    Example:
        >>> write_shared_folder(Path("mine"), read_weights("best.pth"), title="Shapes")
        >>> (Path("mine") / "model.safetensors").is_file()
        True
    """
    cfg = model_config(file, config)
    file.prepare(cfg)
    model = cfg.model
    load_strictly(model, file)
    weights = merged_state_dict(model)
    notes = shared_notes(file, cfg)
    parameters = sum(p.numel() for p in model.parameters())
    licence = licence or _published_licence(file)
    card = model_card(title, notes, parameters=parameters, licence=licence)
    if "\nlicense: " not in card:
        logger.warning(
            "no licence is stated for %s; others may not use the weights without one (--licence)",
            file.path,
        )
    prepare_output_dir(folder)
    text = json.dumps(notes, ensure_ascii=False)
    write_safetensors(folder / WEIGHTS, weights, {SHARED_NOTES: text})
    _write_text(folder / CONFIG, notes["config"])
    _write_text(folder / PREPROCESSING, _metadata(notes).to_json())
    licences = notes["licences"] or ["no licences of start weights are noted"]
    _write_text(folder / LICENCES, "\n".join(licences) + "\n")
    _write_text(folder / CARD, card)
    digests = ""
    for name in (WEIGHTS, CONFIG, PREPROCESSING, LICENCES):
        digests += f"{file_sha256(folder / name)}  {name}\n"
    _write_text(folder / DIGESTS, digests)


def shared_notes(file: WeightFile, cfg: YAMLConfig) -> dict[str, Any]:
    """Return the notes of a checkpoint for others: complete, and without absolute paths of the author.

    Example:
        >>> file = read_weights("best.pth")
        >>> shared_notes(file, model_config(file))["input_size"]
        [64, 64]
    """
    notes = {
        key: value for key, value in file.meta.items() if key not in PRIVATE
    }
    preprocessing = Preprocessing.from_config(cfg)
    settings, _ = parse_yaml(cfg.to_yaml(), str(file.path))
    entry = file.recognized.entry if file.recognized else None
    if entry is not None and not file.meta:
        notes["family"] = entry.family
        notes["licences"] = [entry.licence] if entry.licence else []
    return {
        "licences": [],
        **notes,
        "classes": file.named_classes,
        "config": dump_yaml(without_folders(settings)),
        "preprocessing": preprocessing.ops,
        "input_size": list(preprocessing.input_size),
    }


def _published_licence(file: WeightFile) -> str | None:
    """Return the licence of a published file if it is an identifier such as "apache-2.0"."""
    if file.meta or file.recognized is None:
        return None
    licence = file.recognized.entry.licence or ""
    is_identifier = licence != "" and not any(c in " ;," for c in licence)
    return licence.lower() if is_identifier else None


def without_folders(settings: Any) -> Any:
    """Return nested settings in which every absolute path is replaced by its last part.

    >>> without_folders({"img_folder": "/home/me/cells/images", "size": [640, 640]})
    {'img_folder': 'images', 'size': [640, 640]}
    """
    if isinstance(settings, Mapping):
        return {key: without_folders(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [without_folders(value) for value in settings]
    if not isinstance(settings, str):
        return settings
    if settings.startswith(("/", "~")):
        return PurePosixPath(settings).name
    if PureWindowsPath(settings).is_absolute():
        return PureWindowsPath(settings).name
    return settings


def _metadata(notes: Mapping[str, Any]) -> Metadata:
    return Metadata(
        preprocessing=notes["preprocessing"],
        classes=notes["classes"],
        threshold=drawing_threshold(notes.get("threshold")),
        input_size=notes["input_size"],
        batch_size=None,
        licences=notes["licences"],
        commit=notes.get("commit"),
        checkpoint=WEIGHTS,
        bit_depth=notes.get("bit_depth"),
        format=1 if notes.get("bit_depth") is None else 2,
    )


def _check_fetched(folder: Path, source: str | Path) -> None:
    """Check that a fetched folder holds a whole detector, and that its files have their digests.

    Raises:
        CheckpointError: with what is wrong.
    """
    if not (folder / WEIGHTS).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise CheckpointError(
            f"{source} has no {WEIGHTS} (found: {found or 'nothing that this command fetches'}); expected a "
            "folder that `dfine models push` or the package transformers wrote"
        )
    digests = folder / DIGESTS
    for digest, name in _digests_in(digests) if digests.is_file() else ():
        path = folder / name
        if name in FILES and not path.is_file():
            raise CheckpointError(
                f"{source} is not complete: {name} is missing; fetch it again or ask its author"
            )
        if name in FILES and file_sha256(path) != digest:
            raise CheckpointError(
                f"{source}: {name} does not have the digest in {DIGESTS}, so it was damaged or changed; "
                "fetch it again or ask its author"
            )
    try:
        file = read_weights(folder)
        file.require_class_head()
        cfg = model_config(file)
        file.prepare(cfg)
        load_strictly(cfg.model, file)
    except RunError as error:  # the temporary folder will not exist any more
        text = str(error).replace(str(folder), str(source).rstrip("/"))
        raise type(error)(text) from None


def _digests_in(path: Path) -> Iterable[tuple[str, str]]:
    """Yield digest and name in each line of a file in the format of `sha256sum`."""
    for line in read_text(path, errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        yield digest.strip(), name.strip()


def _copy(source: Path, folder: Path) -> None:
    """Copy the files of a shared folder.

    Raises:
        CheckpointError: if the source is not a folder.
    """
    if not source.is_dir():
        raise CheckpointError(
            f"{source} is not a folder; expected a folder that `dfine models push` wrote, or hf://USER/NAME"
        )
    folder.mkdir()
    for name in FILES + OF_TRANSFORMERS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield the path of a folder to create, which is deleted when the block ends."""
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / "model"


@contextmanager
def _complete_folder(target: Path) -> Iterator[Path]:
    """Yield the path of a folder to create, which becomes `target` when the block ends without an error.

    An interruption never leaves a part of a detector. An empty folder that exists is filled, not replaced: it
    may be a mount point or the current folder.

    Raises:
        ConfigError: if the target exists and is not an empty folder, or cannot be written to.
    """
    check_new_folder(target)
    exists = target.is_dir()
    place = prepare_output_dir(target if exists else target.parent)
    with tempfile.TemporaryDirectory(prefix=".share-", dir=place) as temporary:
        folder = Path(temporary) / "model"
        yield folder
        if not exists:
            folder.rename(target)
            return
        # the weights come last: without them, nothing looks like a detector
        names = sorted(path.name for path in folder.iterdir())
        for name in sorted(names, key=WEIGHTS.__eq__):
            (folder / name).rename(target / name)


def _name_of(place: str | Path) -> str:
    """Return the name of a folder or of a repository on the hub.

    Raises:
        ConfigError: if an address on the hub has another form than `hf://USER/NAME`.
    """
    if is_hub_address(place):
        return repository_of(str(place)).rpartition("/")[2]
    return os.path.basename(os.path.abspath(Path(place).expanduser()))


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
