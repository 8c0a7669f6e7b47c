"""`dfine train`, `resume` and `val` become the arguments of `train.py`."""

import json
import signal
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from src.cli import launch, resume, train, trainer, val
from src.cli.common import LOGGERS
from src.core import CheckpointError
from src.core.yaml_config import RunSettings
from src.detection import start_choice
from tests.fixtures.tiny import DEMO_CONFIG

CONFIG = Path("small.yml")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder; nothing has to be available to start from."""
    monkeypatch.chdir(tmp_path)
    start = start_choice.StartChoice(CONFIG, None, "chosen by a test")
    monkeypatch.setattr(start_choice, "choose_start", lambda _: start)
    return tmp_path


def words_of(command, *arguments: str) -> list[str]:
    return command.trainer_arguments(
        command.make_parser().parse_args(arguments)
    )


def refused(command, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        command.main(arguments, prog="dfine train")
    return end.value.code


def test_short_flags_are_settings_which_u_overrides():
    words = words_of(
        train,
        *("--data", "d", "--epochs", "3", "--batch", "4", "--imgsz", "320"),
        *("--output-dir", "here", "-d", "cpu", "--debug"),
        *("-u", "epochs=9", "num_workers=0"),
    )
    assert words[words.index("-u") + 1 :] == [
        "epochs=3",
        "train_dataloader.total_batch_size=4",
        "val_dataloader.total_batch_size=4",
        "eval_spatial_size=[320, 320]",
        "epochs=9",
        "num_workers=0",
    ]
    assert words[words.index("-d") + 1] == "cpu"
    assert "--debug" in words


def test_flags_of_the_data_are_handed_on():
    words = words_of(
        train,
        *("--data", "my data", "--data-format", "voc", "--val-fraction", "0.3"),
        *("--output-dir", "here", "--follow-links", "--strict"),
    )
    assert words[words.index("--data") + 1] == "my data"
    assert words[words.index("--data-format") + 1] == "voc"
    assert {"--val-fraction=0.3", "--follow-links", "--strict"} <= set(words)


def test_the_largest_batch_leaves_the_batch_of_evaluations():
    words = words_of(
        train, "--data", "d", "--output-dir", "here", "--batch", "auto"
    )
    assert words[words.index("-u") + 1 :] == [
        "train_dataloader.total_batch_size=auto"
    ]


def test_a_batch_is_a_number_or_auto(capsys):
    assert refused(train, "--data", "d", "--batch", "large") == 2
    assert "large: expected a number, or auto" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "start"), [(train, ["--data", "d"]), (resume, ["run"])]
)
def test_loggers_are_handed_on_to_the_trainer(here, command, start):
    (here / "run").mkdir()
    (here / "run/last.pth").write_bytes(b"state")
    (here / "small.yml").write_text("{}")
    words = words_of(
        command, *start, "--log", "mlflow", "csv", "--log", "wandb"
    )
    arguments = trainer.make_parser().parse_args(words)
    assert arguments.log == ["mlflow", "csv", "wandb"]
    assert arguments.update == []


@pytest.mark.parametrize(
    ("updates", "loggers"),
    [
        ([], ["csv", "tensorboard", "mlflow", "wandb"]),
        (["-u", "loggers=[wandb]"], ["wandb", "mlflow", "csv"]),
        (["-u", "loggers=[]"], ["mlflow", "csv", "wandb"]),
    ],
)
def test_log_adds_loggers_to_those_of_the_configuration(updates, loggers):
    arguments = trainer.make_parser().parse_args(
        ["-c", str(DEMO_CONFIG), "--log", "mlflow", "csv", "wandb", *updates]
    )
    overrides = trainer.settings_of_run(arguments)
    cfg = trainer.configuration_of_run(arguments, overrides)
    assert cfg.settings.loggers == loggers


def test_an_unknown_logger_is_refused(capsys):
    assert refused(train, "--data", "d", "--log", "neptune") == 2
    assert "invalid choice: 'neptune'" in capsys.readouterr().err


def test_the_words_of_loggers_are_those_of_the_configuration():
    annotation = get_type_hints(RunSettings)["loggers"]
    assert get_args(get_args(annotation)[0]) == LOGGERS


def test_without_data_one_sentence_says_what_is_missing(capsys):
    assert refused(train) == 2
    assert "--data is missing" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--epochs", "--batch", "--imgsz"])
def test_lengths_below_one_are_refused(flag, capsys):
    assert refused(train, "--data", "d", flag, "0") == 2
    assert f"{flag} is 0, expected at least 1" in capsys.readouterr().err


def test_a_number_of_gpus_below_one_is_refused(capsys):
    assert refused(train, "--data", "d", "--gpus", "0") == 2
    assert "--gpus is 0" in capsys.readouterr().err


def test_a_run_folder_is_enough_to_resume(here):
    run = here / "runs/my run"
    run.mkdir(parents=True)
    (run / "last.pth").write_bytes(b"state")
    words = words_of(resume, "runs/my run")
    assert words[:2] == ["-r", "runs/my run/last.pth"]
    assert words[words.index("--output-dir") + 1] == "runs/my run"
    assert "--override" in words_of(resume, "runs/my run", "--override")


def test_a_run_that_does_not_exist_is_named_with_a_similar_one(here):
    (here / "runs/train2").mkdir(parents=True)
    (here / "runs/train2/last.pth").write_bytes(b"state")
    with pytest.raises(
        CheckpointError,
        match="^runs/trian2 does not exist, so there is no run to resume; did you mean 'runs/train2'",
    ):
        words_of(resume, "runs/trian2")


def test_val_evaluates_the_best_checkpoint_into_the_run(here):
    run = here / "runs/mine"
    run.mkdir(parents=True)
    (run / "best.pth").write_bytes(b"weights")
    (run / "last.pth").write_bytes(b"state")
    words = words_of(val, "runs/mine")
    assert words[:3] == ["-r", "runs/mine/best.pth", "--test-only"]
    assert words[words.index("--output-dir") + 1] == "runs/mine"


def test_val_on_other_data_does_not_replace_the_evaluation_of_the_run(here):
    run = here / "runs/mine"
    run.mkdir(parents=True)
    (run / "best.pth").write_bytes(b"weights")
    words = words_of(val, "runs/mine", "--data", "d")
    assert words[words.index("--output-dir") + 1] == "runs/val"
    assert words[words.index("--data") + 1] == "d"


def test_val_takes_the_name_of_a_published_detector():
    words = words_of(val, "dfine_l_coco", "--family", "dfine")
    assert words[:2] == ["-r", "dfine_l_coco"]
    assert words[words.index("--family") + 1] == "dfine"


def test_val_passes_on_the_ap_that_is_required():
    assert "--min-ap=0.5" in words_of(val, "dfine_l_coco", "--min-ap", "0.5")
    assert "--min-ap" not in " ".join(words_of(val, "dfine_l_coco"))


@pytest.mark.parametrize("value", ["50", "-0.1", "nan", "half"])
def test_an_ap_that_cannot_be_reached_is_refused(value, capsys):
    with pytest.raises(SystemExit) as end:
        val.make_parser().parse_args(["runs/mine", "--min-ap", value])
    assert end.value.code == 2
    assert "expected a score from 0 to 1" in capsys.readouterr().err


def test_the_code_of_a_run_of_several_processes_is_the_one_it_reported(here):
    status = here / "run_status.json"
    words = ["--output-dir", str(here)]
    status.write_text(json.dumps({"exit_code": 3, "message": "no labels"}))
    assert launch.reported_end(words) == (3, "no labels")
    for other in ('{"exit_code": null, "message": "running"}', "[]", "{"):
        status.write_text(other)
        assert launch.reported_end(words) is None
    assert launch.reported_end(["--output-dir", str(here / "none")]) is None
    assert launch.reported_end([]) is None


@pytest.mark.parametrize("code", [0, 3])
def test_several_processes_get_the_arguments_and_end_with_the_code(
    here, monkeypatch, capfd, code
):
    script = here / "run.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "Path('got.txt').write_text(' '.join(sys.argv[1:]) + os.environ['DFINE_GPUS'])\n"
        'Path(\'run_status.json\').write_text(\'{"exit_code": 3, "message": "no labels"}\')\n'
        f"sys.exit({code and 1})"
    )
    monkeypatch.setattr(
        launch, "torchrun_command", lambda _: [sys.executable, str(script)]
    )
    before = {
        name: signal.getsignal(name)
        for name in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGUSR1,
        )
    }
    try:
        assert launch.run_processes(["--output-dir", "."], 2) == code
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    assert (here / "got.txt").read_text() == "--output-dir .2"
    assert ("error[3]: no labels" in capfd.readouterr().err) == bool(code)
