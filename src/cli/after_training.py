"""End a training command with the report about the best checkpoint and the next commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.yaml_config import YAMLConfig


def finish(cfg: YAMLConfig, device: str | None = None) -> None:
    """Write `report.html` and log the next commands; only rank 0 does this.

    A report that cannot be written is logged and does not end the command with an error, because the run is
    complete.

    Args:
        cfg: configuration of the run.
        device: device of the run.
    """
    from ..runtime.distributed import is_main, without_other_ranks
    from ..solver.checkpoint import BEST
    from ..solver.next_commands import log_next_commands

    folder = Path(cfg.settings.output_dir)
    if not is_main() or not (folder / BEST).is_file():
        return
    if cfg.settings.report and not _is_up_to_date(folder):
        with without_other_ranks():
            _report(folder, device)
    log_next_commands(cfg, folder)


def _is_up_to_date(folder: Path) -> bool:
    """Return whether the report is not older than the best checkpoint, as after a run that was complete."""
    from ..inference.run_report import REPORT
    from ..runtime.own_files import is_ours
    from ..solver.checkpoint import BEST

    report = folder / REPORT
    if not is_ours(report):
        return False
    return report.stat().st_mtime >= (folder / BEST).stat().st_mtime


def _report(folder: Path, device: str | None) -> None:
    from ..core.errors import RunError
    from ..inference.run_report import REPORT, write_run_report
    from ..runtime.log import logger
    from ..runtime.process import end_in_order, explain

    end_in_order()  # a signal now ends the report, not a run that is complete
    logger.info("writing %s, which evaluates best.pth once more", REPORT)
    try:
        write_run_report(folder, device=device)
    except (RunError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
        _, reason = explain(error)
        logger.warning("%s was not written: %s", folder / REPORT, reason)
