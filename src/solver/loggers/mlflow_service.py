"""Send a run to MLflow, at MLFLOW_TRACKING_URI; without this variable MLflow chooses a file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .secrets import text_without_secrets
from .service import Opened, ServiceRun, describe, flat

PARAMETERS_AT_ONCE = 100
LONGEST_PARAMETER = 500
LONGEST_NAME = 250
"""Limits of MLflow's servers, also older ones."""

METRICS_AT_ONCE = 1000


def make_service() -> MlflowService:
    """Return the service."""
    # the trainer does not wait, and a line is tried again later
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    return MlflowService()


class MlflowService:
    """A run of MLflow."""

    def __init__(self) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._run = ""

    def open(self, run: ServiceRun, identifier: str | None) -> Opened:
        """Continue a run, or create one with all settings as parameters and `config.yml` as artifact."""
        import mlflow

        remark = ""
        if identifier is not None:
            self._run = identifier
            self._client.update_run(identifier, status="RUNNING")
        else:
            self._create(run)
            try:
                self._send_settings(run)
            except Exception as error:  # another try would create another run
                remark = f"the settings were not sent: {describe(error)}"
        address = text_without_secrets(mlflow.get_tracking_uri())
        return Opened(self._run, f"{address}, run {self._run}", remark)

    def _create(self, run: ServiceRun) -> None:
        experiment = self._client.get_experiment_by_name(run.project)
        if experiment is None:
            number = self._client.create_experiment(run.project)
        else:
            number = experiment.experiment_id
        created = self._client.create_run(number, run_name=run.name)
        self._run = created.info.run_id

    def _send_settings(self, run: ServiceRun) -> None:
        for part in _parts(_parameters(run.config), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run, params=part)
        self._client.log_text(self._run, run.config_text, "config.yml")

    def send_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the values of a step."""
        self._send(scalars, step)

    def send_epoch(
        self, epoch: int, step: int, scalars: Mapping[str, float]
    ) -> None:
        """Send the values of an epoch at its number."""
        self._send(scalars, epoch)

    def send_picture(self, epoch: int, name: str, file: Path) -> None:
        """Store a picture as artifact."""
        self._client.log_artifact(self._run, str(file), "pictures")

    def send_result(
        self, metrics: Mapping[str, float], report: Path | None
    ) -> None:
        """Send the best metrics as `best/AP` and so on, and the report as artifact."""
        named = {f"best/{name}": value for name, value in metrics.items()}
        self._send(named, 0)
        if report is not None:
            self._client.log_artifact(self._run, str(report))

    def close(self, *, finished: bool) -> None:
        """Set the status of the run."""
        status = "FINISHED" if finished else "KILLED"
        self._client.set_terminated(self._run, status)

    def _send(self, scalars: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = []
        for name, value in scalars.items():
            metrics.append(Metric(_allowed(name), value, now, step))
        for part in _parts(metrics, METRICS_AT_ONCE):
            self._client.log_batch(self._run, metrics=part)


def _parameters(config: Mapping[str, Any]) -> list[Any]:
    """Return the settings as parameters; long ones are cut, `config.yml` has them all."""
    from mlflow.entities import Param

    parameters: dict[str, Any] = {}
    for name, value in flat(config).items():
        allowed = _allowed(name)
        text = str(value)[:LONGEST_PARAMETER]
        parameters.setdefault(allowed, Param(allowed, text))
    return list(parameters.values())


def _allowed(name: str) -> str:
    """Return a name with the characters that MLflow allows; it refuses all values if one name has others.

    Example:
        >>> _allowed("remap.cat (tabby)?")
        'remap.cat _tabby__'
    """
    return re.sub(r"[^\w./ -]", "_", name)[:LONGEST_NAME]


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
