"""The end of a training command."""

import os
from types import SimpleNamespace

import pytest

from src.cli.after_training import finish
from src.core.errors import DataError
from src.inference import run_report
from src.runtime import distributed, process


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """A finished run, whose report only notes that it was asked for."""
    monkeypatch.setattr(process, "end_in_order", lambda: None)
    (tmp_path / "best.pth").write_bytes(b"weights")
    settings = SimpleNamespace(output_dir=str(tmp_path), report=True)
    return SimpleNamespace(settings=settings, yaml_cfg={})


@pytest.fixture
def reports(monkeypatch):
    written = []

    def write(folder, *, device):
        written.append((folder, device, distributed.world_size()))

    monkeypatch.setattr(run_report, "write_run_report", write)
    return written


def test_the_report_is_written_on_the_device_of_the_run(cfg, reports, tmp_path):
    finish(cfg, "cpu")
    assert reports == [(tmp_path, "cpu", 1)]


def test_the_report_is_made_by_one_rank_without_the_others(
    cfg, reports, monkeypatch
):
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 0)
    finish(cfg, "cpu")
    assert [world_size for _, _, world_size in reports] == [1]
    assert distributed.world_size() == 2
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    finish(cfg, "cpu")
    assert len(reports) == 1


def test_a_run_without_a_score_has_no_report(cfg, reports, tmp_path, caplog):
    (tmp_path / "best.pth").unlink()
    with caplog.at_level("INFO", "dfine"):
        finish(cfg, "cpu")
    assert not reports and not caplog.messages


def test_a_report_that_is_up_to_date_is_not_written_again(
    cfg, reports, tmp_path
):
    page = tmp_path / "report.html"
    page.write_text('<meta name="generator" content="dfine_dinov3">')
    finish(cfg, "cpu")
    assert not reports
    os.utime(page, (1, 1))
    finish(cfg, "cpu")
    assert len(reports) == 1


def test_the_report_can_be_disabled(cfg, reports, caplog):
    cfg.settings.report = False
    with caplog.at_level("INFO", "dfine"):
        finish(cfg, "cpu")
    assert not reports and "next:" in caplog.messages[0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataError("val.json has changed"), "val.json has changed"),
        (KeyboardInterrupt(), "stopped by Ctrl-C"),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_report_that_fails_does_not_make_the_run_fail(
    cfg, monkeypatch, caplog, error, reason
):
    def fail(folder, *, device):
        raise error

    monkeypatch.setattr(run_report, "write_run_report", fail)
    with caplog.at_level("INFO", "dfine"):
        finish(cfg, "cpu")
    assert f"report.html was not written: {reason}" in caplog.text
    assert len(caplog.messages) == 6, "the next commands follow"


def test_the_images_of_the_validation_data_are_predicted(cfg, reports, caplog):
    cfg.yaml_cfg = {"val_dataloader": {"dataset": {"img_folder": "my val"}}}
    with caplog.at_level("INFO", "dfine"):
        finish(cfg, "cpu")
    assert any("'my val'" in message for message in caplog.messages)
