"""All that is known before the first step; what is missing is reported here, before any work."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch

from ...core.config_file import parse_overrides
from ...core.package_configs import package_config
from ...core.yaml_config import YAMLConfig
from .coco_files import (
    CocoFiles,
    data_settings,
    files_in,
    files_of,
    refuse_missing,
)
from .job import (
    Job,
    choose_processes,
    default_folder,
    find_model,
    is_place,
    settings_for,
)
from .weights import StartFile, refuse_missing_weights, start_files


class Plan(NamedTuple):
    """A reproduction with its files."""

    job: Job
    cfg: YAMLConfig
    data: CocoFiles
    weights: list[StartFile]
    recipe_epochs: int


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Return what is to be done; a wrong name and missing files are reported before any work.

    Raises:
        ConfigError: if the model is unknown, or there is no GPU.
        DataError: if data is missing.
        CheckpointError: if start weights are missing.
    """
    entry = find_model(arguments.model)
    processes = choose_processes(
        arguments.gpus,
        arguments.device,
        available=torch.cuda.device_count(),
    )
    path = package_config(entry.config)
    user = parse_overrides(arguments.update)
    recipe = YAMLConfig(path)
    if arguments.data is not None:
        files = files_in(arguments.data)
    else:
        files = files_of(YAMLConfig(path, **user).resolved_cfg)
    refuse_missing(files)
    updates = settings_for(
        entry,
        data_settings(files),
        arguments.update,
        epochs=arguments.epochs,
        amp=arguments.device != "cpu",
    )
    device = {} if arguments.device is None else {"device": arguments.device}
    cfg = YAMLConfig(path, **parse_overrides(list(updates)), **device)
    start = start_files(cfg)
    refuse_missing_weights(start)
    folder = arguments.output_dir
    if folder is None:
        folder = default_folder(entry.name, arguments.epochs)
    return Plan(
        Job(
            entry,
            updates,
            folder,
            changes=tuple(
                item for item in arguments.update if not is_place(item)
            ),
            processes=processes,
            device=arguments.device,
            seed=arguments.seed,
            quick=arguments.quick,
        ),
        cfg,
        files,
        start,
        recipe.settings.epochs,
    )
