"""The table of published detectors, `configs/models.yml`: their configurations, files and sources."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from msgspec import Struct

from ..core.errors import CheckpointError
from ..core.package_configs import configs_folder
from ..core.paths import close_names, read_text
from ..core.schemas import checked
from ..core.yaml_text import parse_yaml
from ..runtime.weight_files import file_sha256

ROOT = configs_folder().parent
"""Folder from which the table names configurations: the repository, or the installed package."""

TABLE = ROOT / "configs/models.yml"
WEIGHTS_FOLDER = Path("weights")
"""Folder in which files are looked for by the name of their model."""

TITLES = {
    "dfine": "D-FINE",
    "deim": "DEIM",
    "rtv4": "RT-DETRv4",
    "deimv2": "DEIMv2",
    "dfine_dinov3": "D-FINE-DINOv3",
}
"""Name of each family as its authors write it."""

_LIKE_DFINE = ("dfine", "deim", "rtv4")
"""Families with D-FINE's tensors."""

_OBJECTS365_FINE_TUNED_DEIM = "deim_x_obj2coco"
"""The one DEIM that has D-FINE's activation and frozen norms."""


_WITH_RELU = ("s", "l", "x")
"""Sizes of D-FINE-DINOv3 whose decoder is D-FINE's; the others have DEIMv2's."""


class InputSize(Struct, frozen=True):
    """Cost of a model at another input size; its parameters are the same."""

    input: int
    """Height and width in pixels."""
    gflops: float
    """Operations for one image in units of 1e9, attention included."""
    cost: float
    """CPU time relative to a bare ViT-S/16 at 640 pixels."""


class Entry(Struct, frozen=True):
    """One model of the table."""

    family: str
    size: str
    config: str
    """Configuration for COCO or Objects365, "configs/..." (`package_config`)."""
    custom_config: str | None = None
    """Configuration for a user's own data."""
    files: list[str] = []
    """Usual names of the published file."""
    source: str | None = None
    """Project page or paper that links to the file."""
    sha256: str | None = None
    """Published SHA-256 digest."""
    name: str = ""
    """Key in the table."""
    params: int | None = None
    """Number of parameters in training form."""
    deployed: int | None = None
    """Number of parameters after `deploy()`."""
    gflops: float | None = None
    """Operations for one image in units of 1e9, attention included."""
    input: int | None = None
    """Height and width in pixels."""
    cost: float | None = None
    """CPU time relative to a bare ViT-S/16 at 640 pixels; None if it was not measured."""
    other_inputs: list[InputSize] = []
    """Other input sizes for which the model is recommended (`eval_spatial_size`)."""
    ap: float | None = None
    """AP on COCO val2017 as published, 0..100."""
    ap_source: str | None = None
    """Publication of `ap`."""
    start_weights: str | None = None
    """Weights from which the published training starts."""
    licence: str | None = None
    """Licence as stated by the authors."""
    use: str | None = None
    """Purpose of the model, a noun phrase."""

    @property
    def title(self) -> str:
        """Family and size, such as "DEIMv2-Pico"."""
        return title_of(f"{self.family}_{self.size}")

    @property
    def architecture(self) -> str:
        """Name of the signature; DEIM and RT-DETRv4 have D-FINE's."""
        family = "dfine" if self.family in _LIKE_DFINE else self.family
        return f"{family}_{self.size}"

    @property
    def is_for_objects365(self) -> bool:
        """True if the model has Objects365's classes."""
        return self.name.endswith("_obj365")

    @property
    def activation(self) -> str:
        """Activation in the decoder: "relu" or "silu"."""
        return "relu" if self._is_like_dfine else "silu"

    @property
    def counts_batches(self) -> bool | None:
        """True if the norms of the backbone count batches; None if all families of this size agree."""
        if self.family not in _LIKE_DFINE or self.size not in ("l", "x"):
            return None
        return not self._is_like_dfine

    @property
    def _is_like_dfine(self) -> bool:
        if self.family == "dfine_dinov3":
            return self.size in _WITH_RELU
        return (
            self.family == "dfine" or self.name == _OBJECTS365_FINE_TUNED_DEIM
        )


def title_of(architecture: str) -> str:
    """Return the title of a family and size, such as "DEIMv2-Pico" for "deimv2_pico"."""
    family, _, size = architecture.rpartition("_")
    shown = size.upper() if len(size) == 1 else size.capitalize()
    return f"{TITLES.get(family, family)}-{shown}"


@cache
def read_table() -> dict[str, Entry]:
    """Return the models of `configs/models.yml` by name.

    Raises:
        CheckpointError: if an entry lacks a field or has a wrong type.
    """
    values, _ = parse_yaml(read_text(TABLE), str(TABLE))
    entries = {}
    for name, entry in values.items():
        named = {**entry, "name": name}
        entries[name] = checked(
            named, Entry, file=TABLE, part=name, advice="restore the file"
        )
    return entries


def titles_of(architecture: str | None) -> str:
    """Return the titles of all families that have an architecture, such as "D-FINE-N or DEIM-N"."""
    titles = {
        entry.title: None
        for entry in read_table().values()
        if entry.architecture == architecture
    }
    return " or ".join(titles)


def is_model_name(text: str | Path) -> bool:
    """Return whether a text is meant as the name of a model: it is one, or similar to one, and not a path."""
    name = str(text)
    if not re.fullmatch(r"\w+", name) or Path(name).exists():
        return False
    table = read_table()
    return name in table or bool(close_names(name, table))


def find_weights(name: str, folder: Path = WEIGHTS_FOLDER) -> Path:
    """Return the file of a model of the table.

    Args:
        name: name in the table, such as "dfine_l_coco".
        folder: folder to look in.

    Raises:
        CheckpointError: if the name is unknown, the file does not exist, or it does not have the published
            digest.
    """
    table = read_table()
    if name not in table:
        close = close_names(name, table)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise CheckpointError(
            f"{name} is not a model of configs/models.yml{hint}"
        )
    entry = table[name]
    path = weights_file(entry, folder)
    if path is not None:
        _check_digest(path, entry)
        return path
    wanted = _candidates(entry, folder)[0]
    if entry.source is None:
        raise CheckpointError(
            f"{wanted} does not exist; there are no published weights for {name}, so train it first, "
            "or give the path of your own file"
        )
    raise CheckpointError(
        f"{wanted} does not exist, which is where {name} is looked for; get the file of {entry.title} "
        f"from {entry.source} and put it there"
    )


def weights_file(entry: Entry, folder: Path = WEIGHTS_FOLDER) -> Path | None:
    """Return the file of a model in a folder, whose digest is not checked, or None."""
    for path in _candidates(entry, folder):
        if path.is_file():
            return path
    return None


def _candidates(entry: Entry, folder: Path) -> list[Path]:
    """Return the paths under which the file of a model is looked for."""
    endings = (".pth", ".pt", ".safetensors")
    usual = [f"{entry.name}{ending}" for ending in endings]
    return [folder / file for file in [*entry.files, *usual]]


def _check_digest(path: Path, entry: Entry) -> None:
    if entry.sha256 is None:
        return
    digest = file_sha256(path)
    if digest != entry.sha256.lower():
        raise CheckpointError(
            f"{path} is damaged or another file: its sha256 is {digest}, but {entry.sha256} is published for "
            f"{entry.name}; get it again from {entry.source}"
        )
