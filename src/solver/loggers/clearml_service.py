"""Send a run to ClearML. `clearml-init` or CLEARML_API_* give access; CLEARML_OFFLINE_MODE=1 keeps files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .service import Opened, ServiceRun, describe


def make_service() -> ClearmlService:
    """Return the service."""
    # a diff of the working tree may contain secrets
    os.environ.setdefault("CLEARML_VCS_DIFF", "")
    return ClearmlService()


class ClearmlService:
    """A task of ClearML."""

    def __init__(self) -> None:
        self._task: Any = None

    def open(self, run: ServiceRun, identifier: str | None) -> Opened:
        """Continue a task or create one; without the service, its files are kept locally."""
        from clearml import Task

        # values are sent by a thread: a fork of this process, which has threads, may hang
        Task._report_subprocess_enabled = False  # `report_use_subprocess`

        def start(continued: str | None) -> Any:
            return Task.init(
                project_name=run.project,
                task_name=run.name,
                task_type=Task.TaskTypes.training,
                # 0 is the offset of the iterations of a continued task, which otherwise start after its last
                continue_last_task=False if continued is None else 0,
                reuse_last_task_id=continued or False,
                auto_connect_arg_parser=False,
                auto_connect_frameworks=False,
                auto_connect_streams=False,
                auto_resource_monitoring=False,
            )

        remark = ""
        try:
            self._task = start(identifier)
        except Exception as error:
            if Task.is_offline():
                raise
            remark = f"{describe(error)}; its values are kept locally"
            Task.set_offline(True)
            self._task = start(identifier)
        if identifier is None:
            self._task.connect_configuration(
                dict(run.config), name="config.yml"
            )
        place = self._task.get_output_log_web_page() or ""
        if Task.is_offline():
            folder = self._task.get_offline_mode_folder()
            place = f"{folder}; upload it with Task.import_offline_session()"
        return Opened(self._task.id, place, remark)

    def send_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the values of a step."""
        self._send(scalars, step)

    def send_epoch(
        self, epoch: int, step: int, scalars: Mapping[str, float]
    ) -> None:
        """Send the values of an epoch at its number."""
        self._send(scalars, epoch)

    def _send(self, scalars: Mapping[str, float], iteration: int) -> None:
        logger = self._task.get_logger()
        for name, value in scalars.items():
            title, _, series = name.partition("/")
            logger.report_scalar(title, series or title, value, iteration)

    def send_picture(self, epoch: int, name: str, file: Path) -> None:
        """Send a picture to the debug samples."""
        logger = self._task.get_logger()
        logger.report_image("images", name, epoch, local_path=str(file))

    def send_result(
        self, metrics: Mapping[str, float], report: Path | None
    ) -> None:
        """Send the best metrics as single values `best/AP` and so on, and the report as artifact."""
        logger = self._task.get_logger()
        for name, value in metrics.items():
            logger.report_single_value(f"best/{name}", value)
        if report is not None:
            self._task.upload_artifact(report.name, str(report))

    def close(self, *, finished: bool) -> None:
        """Close the task; one that was stopped is marked so."""
        if not finished and not self._task.is_offline():
            self._task.mark_stopped(force=True)
        self._task.close()
