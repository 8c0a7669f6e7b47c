"""The result of a reproduction: a JSON record, a row for the table of models, and a comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from msgspec import structs

from ... import __version__
from ...core.coco_metrics import METRICS
from ...core.errors import DataError
from ...core.paths import read_text
from ...core.yaml_config import YAMLConfig
from ...core.yaml_text import dump_yaml
from ...detection.model_page import table_of_models
from ...detection.model_table import Entry
from ...runtime.files import write_atomically
from ...runtime.own_files import refuse_foreign, write_report
from ...runtime.processor import processor_name
from ...solver.earlier_runs import EVALUATION
from ...solver.provenance import code_version
from ...solver.resume import FREE, FREE_OF_LOADERS
from ...solver.writers import LOG_FILE
from .children import DOCTOR_REPORT, read_doctor
from .coco_files import is_coco_2017
from .job import Job

RESULT = "result.json"
ROW = "result.txt"

FIRST_EPOCH = (
    "the authors of DEIMv2 report 40 AP for DEIMv2-L (ViT-S) after one epoch of COCO if the ViT is trained, "
    "and 36 if it is frozen"
)
"""Source: an issue of DEIMv2's repository, number 38."""

LOW_AP = 0.20
"""AP after one epoch of COCO below which a DINOv3 detector probably has a fault: half of the reported 0.40.
This is a guess of this project and not a measurement."""

_HEADER = "Written by dfine_dinov3: the row of a model in docs/models.md.\n\n"


def describe_session(job: Job) -> dict[str, Any]:
    """Return machine and code of a training, from the report of the doctor, as values for JSON."""
    numbers: dict[str, Mapping[str, Any]] = {}
    gpus: list[str] = []
    for check in read_doctor(job.folder / DOCTOR_REPORT).get("checks", []):
        numbers[check["name"]] = check.get("numbers") or {}
        if check["name"] == "GPUs" and job.device != "cpu":
            gpus = _gpu_names(check)[: job.processes]
    software = numbers.get("software", {})
    commit, _, changes = code_version().partition("+")
    return {
        "gpus": gpus,
        "processes": job.processes,
        "cpu": processor_name(),
        "cores": numbers.get("processor", {}).get("cores"),
        "torch": str(torch.__version__),
        "CUDA": software.get("CUDA"),
        "driver": software.get("driver"),
        "commit": commit,
        "changed_files": bool(changes),
    }


def _gpu_names(check: Mapping[str, Any]) -> list[str]:
    """Return the GPUs in a check of the doctor: those of all ranks, or all that one process sees."""
    names = []
    for result in check.get("by_rank") or [check]:
        for gpu in (result.get("numbers") or {}).get("gpus", []):
            names.append(gpu["name"])
    return names


def digest_of(cfg: YAMLConfig) -> str:
    """Return the SHA-256 digest of the settings that affect results.

    It is the same on all machines: folders, devices and workers are left out, as for a resumed run.
    """
    settings = {}
    for key, value in cfg.resolved_cfg.items():
        if key in FREE:
            continue
        if key.endswith("_dataloader") and isinstance(value, dict):
            value = _without(value, FREE_OF_LOADERS - {"total_batch_size"})
        settings[key] = value
    return hashlib.sha256(dump_yaml(settings).encode()).hexdigest()


def _without(settings: Any, keys: frozenset[str]) -> Any:
    """Return nested settings without some keys."""
    if not isinstance(settings, dict):
        return settings
    kept = {}
    for key, value in settings.items():
        if key not in keys:
            kept[key] = _without(value, keys)
    return kept


def read_metrics(run: Path) -> dict[str, float | None]:
    """Return COCO's twelve metrics from the result file of an evaluation; None is undefined.

    Raises:
        DataError: if the file is missing or damaged.
    """
    path = run / EVALUATION
    try:
        values = json.loads(read_text(path))
        return {name: values[name] for name in METRICS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not the result of an evaluation ({type(error).__name__}: {error}); delete it and run "
            "this command again"
        ) from None


def read_training(run: Path) -> dict[str, Any]:
    """Return length, time and memory of a training from its log.

    Returns:
        `epochs`, the number of completed epochs; `hours`, their time with evaluations; `best_epoch`, from 1;
        `peak_memory_gb`, of the GPU of rank 0, None on a CPU; `parameters`.
    """
    records = _epochs(run / LOG_FILE)
    last = records[-1] if records else {}
    memory = max((r["peak_memory_mb"] for r in records), default=0)
    best = last.get("best_epoch")
    return {
        "epochs": len(records),
        "hours": sum(record["seconds"] for record in records) / 3600,
        "best_epoch": None if best is None else best + 1,
        "peak_memory_gb": memory / 1000 if memory else None,
        "parameters": last.get("n_parameters"),
    }


def _epochs(log: Path) -> list[dict[str, Any]]:
    """Return the records of all epochs; other lines are ignored."""
    records = []
    for line in read_text(log).splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "seconds" in record:
            records.append(record)
    return records


def make_result(
    job: Job,
    cfg: YAMLConfig,
    *,
    recipe_epochs: int,
    images: Mapping[str, Any],
    weights: Mapping[str, str],
    sessions: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the record of a reproduction, as values for JSON.

    Args:
        job: what was reproduced.
        cfg: configuration of the training.
        recipe_epochs: epochs of the model's configuration.
        images: result of `data_check.check_data`.
        weights: result of `weights.check_weights`.
        sessions: machines and code of all calls that have trained.
    """
    counts = {part: images[part] for part in ("train", "val")}
    classes = bool(images["classes"])
    loader = cfg.yaml_cfg["train_dataloader"]
    return {
        "model": job.entry.name,
        "configuration": job.entry.config,
        "configuration_sha256": digest_of(cfg),
        "settings": list(job.changes),
        "version": __version__,
        "commit": sessions[-1]["commit"],
        "changed_files": any(session["changed_files"] for session in sessions),
        "seed": job.seed,
        "recipe_epochs": recipe_epochs,
        "total_batch_size": loader.get("total_batch_size"),
        "input": cfg.yaml_cfg.get("eval_spatial_size"),
        "images": counts,
        "is_coco_2017": is_coco_2017(counts, classes=classes),
        "start_weights": {
            Path(path).name: digest for path, digest in weights.items()
        },
        "sessions": list(sessions),
        **read_training(job.run_folder),
        "metrics": read_metrics(job.run_folder),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def table_row(entry: Entry, result: Mapping[str, Any]) -> str:
    """Return the heading and the row of a model for `docs/models.md`, with the AP of a result.

    The source of AP has commit, hardware and time, and says if AP is not that of the recipe on COCO.
    """
    ap = result["metrics"]["AP"]
    changes: dict[str, Any] = {
        "ap": None if ap is None else 100 * ap,
        "ap_source": source_of(result),
        "other_inputs": [],
        **_cost_at(entry, result["input"]),
    }
    return table_of_models([structs.replace(entry, **changes)])


def _cost_at(entry: Entry, size: Sequence[int] | None) -> dict[str, Any]:
    """Return input size and costs of a model for a row; costs that the table does not have are None.

    Args:
        entry: model.
        size: height and width of the input in pixels, or None if unknown.
    """
    side = size[0] if size and size[0] == size[1] else None
    if size is None or side == entry.input:
        return {}
    for other in entry.other_inputs:
        if other.input == side:
            return structs.asdict(other)
    return {"input": side, "gflops": None, "cost": None}


def source_of(result: Mapping[str, Any]) -> str:
    """Return where the AP of a result comes from, for a cell of the table."""
    commit = result["commit"]
    if not commit.startswith("version"):
        commit = f"commit {commit[:12]}"
    if result["changed_files"]:
        commit += " with changes"
    machines = list(dict.fromkeys(map(machine_of, result["sessions"])))
    parts = [commit, " and ".join(machines), f"{result['hours']:.1f} h"]
    if result["epochs"] != result["recipe_epochs"]:
        parts.append(f"{result['epochs']} of {result['recipe_epochs']} epochs")
    if result["settings"]:
        parts.append(f"-u {' '.join(result['settings'])}")
    if not result["is_coco_2017"]:
        parts.append("not COCO 2017")
    return "own training: " + ", ".join(parts)


def machine_of(session: Mapping[str, Any]) -> str:
    """Return the hardware of a session, such as "8 x NVIDIA H100"."""
    gpus = session["gpus"]
    if not gpus:
        return session["cpu"] or "CPU"
    names = sorted(set(gpus))
    return " + ".join(f"{gpus.count(name)} x {name}" for name in names)


def about_first_epoch(
    entry: Entry, result: Mapping[str, Any]
) -> tuple[str, bool] | None:
    """Compare the AP of a training of one epoch of COCO with what others report.

    Returns:
        A sentence, and whether it is a warning; None if there is nothing to compare with.
    """
    ap = result["metrics"]["AP"]
    has_dinov3 = "dinov3" in Path(entry.config).name
    if result["epochs"] != 1 or not result["is_coco_2017"] or not has_dinov3:
        return None
    own = "undefined" if ap is None else f"{100 * ap:.1f}"
    text = f"AP is {own} after one epoch; {FIRST_EPOCH}"
    if ap is None or ap < LOW_AP:
        return (
            f"{text}: below {100 * LOW_AP:.0f}, a fault of weights, data or settings is likely, so look at "
            "the pictures and curves of the run before you train longer",
            True,
        )
    return text, False


def refuse_foreign_results(folder: Path) -> None:
    """Check that the result files replace only earlier ones.

    Raises:
        ConfigError: if this project did not write them.
    """
    advice = "choose another --output-dir"
    refuse_foreign([folder / RESULT], advice)
    refuse_foreign([folder / ROW], advice, recognize=_is_our_row)


def _is_our_row(path: Path) -> bool:
    return not path.is_symlink() and read_text(path).startswith(_HEADER)


def write_result(folder: Path, result: Mapping[str, Any], row: str) -> None:
    """Write the record and the row."""
    write_report(folder / RESULT, {**result, "row": row.splitlines()[-1]})
    text = (_HEADER + row).encode()

    def write(file: BinaryIO, content: bytes) -> None:
        file.write(content)

    write_atomically(folder / ROW, partial(write, content=text))
