"""Model card of a shared detector: a README.md with the metadata that Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.coco_metrics import METRICS
from ..core.counts import counted
from ..core.errors import ConfigError
from ..core.yaml_text import dump_yaml

DINOV3_LICENCE = (
    "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
)

MAX_NAMES = 100
"""Maximum number of class names in a card."""


def model_card(
    title: str,
    notes: Mapping[str, Any],
    *,
    parameters: int,
    licence: str | None = None,
) -> str:
    """Return the text of a model card.

    Args:
        title: heading of the card.
        notes: notes of a checkpoint with `classes`, `preprocessing`, `input_size`, and possibly `threshold`,
            `metrics`, `commit` and `licences`.
        parameters: number of parameters of the model.
        licence: identifier of the licence that the author chooses, such as "apache-2.0".

    Raises:
        ConfigError: if the weights are derived from DINOv3, whose licence applies, and another one is given.
    """
    licences = list(notes.get("licences") or [])
    head = {
        "library_name": "dfine-dinov3",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "d-fine", "safetensors"],
        **_licence_entries(licences, licence),
    }
    height, width = notes["input_size"]
    classes = counted(len(notes["classes"]), "class", "classes")
    lines = [
        f"---\n{dump_yaml(head)}---\n",
        f"# {title}\n",
        f"An object detector with {parameters / 1e6:.1f} M parameters for {classes}, "
        f"with images of {height} x {width} pixels (height x width).\n",
        "## Classes\n",
        _class_names(notes["classes"]),
        *_metric_lines(notes),
        "## Usage\n",
        "Install the package `dfine-dinov3`, download this folder, and use it like a checkpoint:\n",
        "```bash\ndfine predict FOLDER image.jpg\ndfine val FOLDER --data DATA\n"
        "dfine train --data DATA --model FOLDER   # fine-tune it on other data\n```\n",
        "```python\nfrom dfine_dinov3 import Detector\n\n"
        'detector = Detector("FOLDER")\nfor box, score, label, name in detector.predict("image.jpg"):\n'
        "    print(name, score, box)  # box: xyxy in pixels\n```\n",
        "`config.yml` is the configuration of the model, and `preprocessing.json` describes how an image is "
        "prepared.\n",
        "## Licences\n",
        _licence_lines(licences, licence),
    ]
    origin = _origin(notes)
    if origin:
        lines += ["## Origin\n", origin]
    return "\n".join(lines)


def _is_from_dinov3(licences: Sequence[str]) -> bool:
    """Return whether licence notes name DINOv3, whose licence covers all models trained from it."""
    return any("DINOv3" in note for note in licences)


def _licence_entries(
    licences: Sequence[str], licence: str | None
) -> dict[str, Any]:
    """Return the licence entries of the card's metadata.

    Raises:
        ConfigError: if `licence` contradicts the licences of the start weights.
    """
    if _is_from_dinov3(licences):
        if licence is not None:
            raise ConfigError(
                f"--licence {licence} cannot be stated: these weights are derived from Meta's DINOv3, whose "
                "licence applies to them; leave --licence out"
            )
        return {
            "license": "other",
            "license_name": "dinov3-license",
            "license_link": DINOV3_LICENCE,
        }
    return {} if licence is None else {"license": licence}


def _licence_lines(licences: Sequence[str], licence: str | None) -> str:
    text = "The author has not stated a licence for these weights."
    if _is_from_dinov3(licences):
        text = f"The DINOv3 License applies to these weights: {DINOV3_LICENCE}"
    elif licence is not None:
        text = f"These weights: {licence}"
    if licences:
        text += "\n\nThe weights that training started from:\n\n"
        text += "\n".join(f"- {note}" for note in licences)
    return text + "\n"


def _class_names(classes: Sequence[Mapping[str, Any]]) -> str:
    names = [str(entry["name"]) for entry in classes[:MAX_NAMES]]
    more = len(classes) - len(names)
    text = ", ".join(names)
    if more:
        text += f" and {more} more, which `preprocessing.json` lists"
    return text + "\n"


def _metric_lines(notes: Mapping[str, Any]) -> list[str]:
    """Return the table of metrics on the author's validation data, or nothing if there are none."""
    metrics = notes.get("metrics") or {}
    rows = []
    for name in (*METRICS, "F1"):
        value = metrics.get(name)
        # older checkpoints have -1 where there were no objects, as COCO's tables do
        if isinstance(value, float) and value >= 0:
            rows.append(f"| {name} | {value:.3f} |")
    if not rows:
        return []
    return [
        "## Results\n",
        "On the validation data of the author; COCO's metrics are fractions of 1.\n",
        "\n".join(["| metric | value |", "| --- | --- |", *rows]) + "\n",
    ]


def _origin(notes: Mapping[str, Any]) -> str:
    lines = []
    if notes.get("commit"):
        lines.append(f"- code: {notes['commit']}")
    if notes.get("torch"):
        lines.append(f"- torch: {notes['torch']}")
    if notes.get("epoch") is not None:
        lines.append(f"- epoch: {notes['epoch'] + 1}")
    return "\n".join(lines) + "\n" if lines else ""
