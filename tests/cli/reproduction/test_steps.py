"""Disk space that a training needs is checked before it starts."""

import pytest

from src.cli.reproduction import steps
from src.cli.reproduction.coco_files import files_in
from src.cli.reproduction.job import Job, find_model
from src.cli.reproduction.plan import Plan
from src.cli.reproduction.record import Record
from src.cli.reproduction.steps import Steps, space_needed
from src.core import ResourceError, YAMLConfig
from src.core.package_configs import package_config

VIT_S = package_config("configs/dfine/dfine_dinov3_s_coco.yml")


def test_checkpoints_of_all_kinds_need_space():
    few = space_needed(1000, YAMLConfig(VIT_S, checkpoint_freq=0))
    assert few == 4 * 16 * 1000
    many = space_needed(1000, YAMLConfig(VIT_S, checkpoint_freq=12))
    assert many == few + 6 * 16 * 1000  # 80 epochs


def test_a_full_disk_is_noticed_before_the_training(tmp_path, monkeypatch):
    cfg = YAMLConfig(VIT_S)
    job = Job(find_model("dfine_dinov3_s_coco"), (), tmp_path)
    plan = Plan(job, cfg, files_in(tmp_path), [], 80)
    usage = steps.shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(steps.shutil, "disk_usage", lambda _: usage)
    own = Steps(plan, Record(tmp_path / "record.json"))
    with pytest.raises(
        ResourceError, match="has 1.0 GB of free disk space"
    ) as error:
        own.check_data()
    assert "-u checkpoint_freq=0" in str(error.value)
    assert ResourceError.exit_code == 6
