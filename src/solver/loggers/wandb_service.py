"""Send a run to Weights & Biases. WANDB_API_KEY gives access; WANDB_MODE=offline keeps files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .service import Opened, ServiceRun, describe

START_SECONDS = 60.0
"""Time to wait for the service at the start; then the values are kept in files."""

EPOCH = "epoch/number"
"""Name of the number of an epoch, the horizontal axis of the values of epochs."""


def make_service() -> WandbService:
    """Return the service."""
    return WandbService()


class WandbService:
    """A run of Weights & Biases."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: ServiceRun, identifier: str | None) -> Opened:
        """Continue a run or create one; without the service, its files are kept in `wandb/`."""
        import wandb

        def start(mode: str | None) -> Any:
            return wandb.init(
                project=run.project,
                name=run.name,
                id=identifier,
                resume="allow" if identifier else None,
                config=dict(run.config),
                dir=str(run.folder),
                mode=mode,
                settings=wandb.Settings(
                    init_timeout=START_SECONDS,
                    silent=True,
                    console="off",
                    # command lines, variables and code may contain secrets
                    x_disable_meta=True,
                    disable_code=True,
                    disable_git=True,
                ),
            )

        remark = ""
        if os.environ.get("WANDB_MODE"):
            self._run = start(None)
        else:
            try:
                self._run = start(None)
            except Exception as error:
                remark = f"{describe(error)}; its values are kept locally"
                wandb.teardown()
                self._run = start("offline")
        self._name_axes()
        place = self._run.url or "nothing is sent (WANDB_MODE)"
        if self._run.offline:
            place = f"{Path(self._run.dir).parent}; upload it with: wandb sync"
        return Opened(self._run.id, place, remark)

    def _name_axes(self) -> None:
        self._run.define_metric(EPOCH, hidden=True)
        for names in ("AP/*", "AR/*", "F1/*", "epoch/*"):
            self._run.define_metric(names, step_metric=EPOCH)

    def send_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the values of a step."""
        self._run.log(dict(scalars), step=step)

    def send_epoch(
        self, epoch: int, step: int, scalars: Mapping[str, float]
    ) -> None:
        """Send the values of an epoch and its number."""
        self._run.log({EPOCH: epoch, **scalars}, step=step)

    def send_picture(self, epoch: int, name: str, file: Path) -> None:
        """Send a picture with the next values."""
        import wandb

        image = wandb.Image(str(file), caption=f"epoch {epoch}")
        self._run.log({f"images/{name}": image}, commit=False)

    def send_result(
        self, metrics: Mapping[str, float], report: Path | None
    ) -> None:
        """Put the best metrics into the summary as `best/AP` and so on, and the report into a panel."""
        import wandb

        for name, value in metrics.items():
            self._run.summary[f"best/{name}"] = value
        if report is not None:
            page = wandb.Html(str(report), inject=False)
            self._run.log({"report": page})

    def close(self, *, finished: bool) -> None:
        """Finish the run; one that was stopped is shown as failed."""
        self._run.finish(exit_code=0 if finished else 1)
