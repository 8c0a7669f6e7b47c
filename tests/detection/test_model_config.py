"""The configuration in a checkpoint describes a model of the size of its weights, and does nothing else."""

import logging
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from src.core.errors import CheckpointError
from src.core.yaml_config import YAMLConfig
from src.detection.model_config import model_config, other_family
from src.detection.weight_file import WeightFile, read_weights
from src.inference import Detector
from tests.fixtures.published_states import file_of, state_without_data
from tests.fixtures.tiny import DEMO_CONFIG, ROOT
from tests.fixtures.trained_tiny import TRAINED

CANARY = "canary_that_must_not_be_opened"

FORBIDDEN_EVENTS = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen")

LIMIT_SECONDS = 5
"""Maximum CPU time until a hostile configuration is refused."""


@pytest.fixture
def opened():
    """Names of the files, addresses and commands that are opened during a test."""
    seen: list[str] = []
    active = [True]

    def audit(event: str, arguments: tuple) -> None:
        if active[0] and event == "open":
            seen.append(str(arguments[0]))
        elif active[0] and event in FORBIDDEN_EVENTS:
            seen.append(f"{CANARY} {event}")

    sys.addaudithook(audit)
    yield seen
    active[0] = False


def settings_of_the_checkpoint() -> dict:
    content = torch.load(TRAINED, weights_only=True)
    return yaml.safe_load(content["meta"]["config"])


def checkpoint_with(folder, config) -> str:
    content = torch.load(TRAINED, weights_only=True)
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    content["meta"]["config"] = text
    path = folder / "hostile.pth"
    torch.save(content, path)
    return str(path)


def backbone(**settings) -> dict:
    return {"DFINE": {"backbone": {"type": "DINOv3Backbone", **settings}}}


HOSTILE = {
    "a path in an inline backbone": backbone(
        pretrained=True, checkpoint_path=CANARY
    ),
    "an address in an inline backbone": backbone(
        pretrained=True, checkpoint_path="https://example.org/a.pth"
    ),
    "published weights of an inline backbone": backbone(pretrained=True),
    "an inline HGNetv2": {
        "DFINE": {
            "backbone": {
                "type": "HGNetv2",
                "name": "B0",
                "pretrained": True,
                "local_model_dir": CANARY,
            }
        }
    },
    "a teacher as backbone": {
        "DFINE": {
            "backbone": {"type": "GramAnchoring", "checkpoint_path": CANARY}
        }
    },
    "a data set as backbone": {
        "DFINE": {
            "backbone": {
                "type": "CocoDetection",
                "img_folder": CANARY,
                "ann_file": CANARY,
            }
        }
    },
    "a loader as model": {"model": "DataLoader"},
    "a data set as model": {
        "model": "CocoDetection",
        "CocoDetection": {"img_folder": CANARY, "ann_file": CANARY},
    },
    "an optimizer as model": {"model": "AdamW"},
    "a criterion as post-processor": {"postprocessor": "DFINECriterion"},
    "a transform as encoder": {
        "DFINE": {"encoder": {"type": "Resize", "size": [9, 9]}}
    },
    "a decoder as encoder": {"DFINE": {"encoder": "DFINETransformer"}},
    "a backbone as decoder": {"DFINE": {"decoder": "DINOv3Backbone"}},
    "an evaluator as decoder": {
        "DFINE": {"decoder": {"type": "CocoEvaluator"}}
    },
    "a class that does not exist": {"DFINE": {"backbone": "os.system"}},
    "a model of another hub": backbone(model_name="hf-hub:somebody/model"),
    "an imported file": {"__import__": [CANARY]},
    "an included file": {"__include__": [CANARY]},
    "transforms that are random": {
        "val_dataloader": {
            "dataset": {
                "type": "CocoDetection",
                "img_folder": "a",
                "ann_file": "a.json",
                "transforms": {
                    "type": "Compose",
                    "ops": [{"type": "RandomHorizontalFlip"}],
                },
            }
        }
    },
    "transforms that are a number": {
        "val_dataloader": {"dataset": {"type": "NotImported", "transforms": 3}}
    },
    "transforms without a type": {
        "val_dataloader": {
            "dataset": {"type": "NotImported", "transforms": {"ops": [{}]}}
        }
    },
    "no detections": {"DFINEPostProcessor": {"num_top_queries": 0}},
    "a deviation of zero": {"DINOv3Backbone": {"image_std": [0, 0, 0]}},
    "another input size": {
        "val_dataloader": {
            "dataset": {
                "type": "NotImported",
                "transforms": {"ops": [{"type": "Resize", "size": [96, 64]}]},
            }
        }
    },
    "an input of 256 megapixels": {
        "val_dataloader": {
            "dataset": {
                "type": "NotImported",
                "transforms": {
                    "ops": [{"type": "Resize", "size": [16_000, 16_000]}]
                },
            }
        }
    },
    "many layers": {"DFINETransformer": {"num_layers": 16_000}},
    "many queries": {"DFINETransformer": {"num_queries": 10**9}},
    "a wide decoder": {"DFINETransformer": {"hidden_dim": 16_000}},
    "a wide encoder": {
        "HybridEncoder": {"hidden_dim": 16_384, "dim_feedforward": 16_384}
    },
    "many encoder layers": {"HybridEncoder": {"num_encoder_layers": 16_000}},
    "many classes": {"num_classes": 16_000},
    "a large image": {"eval_spatial_size": [16_384, 16_384]},
    "a deep backbone": {"DINOv3Backbone": {"depth": 16_000}},
    "a negative width": {"DFINETransformer": {"hidden_dim": -64}},
    "an integer of many digits": {"DFINETransformer": {"reg_max": 10**300}},
}


def hostile(changes: dict) -> dict:
    settings = settings_of_the_checkpoint()
    for section, values in changes.items():
        if isinstance(values, dict) and isinstance(settings.get(section), dict):
            settings[section].update(values)
        else:
            settings[section] = values
    return settings


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_configuration_opens_nothing_and_is_refused(
    name, tmp_path, opened
):
    path = checkpoint_with(tmp_path, hostile(HOSTILE[name]))
    opened.clear()
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"hostile\.pth"):
        Detector.from_checkpoint(path, device="cpu")
    assert time.process_time() - began < LIMIT_SECONDS
    assert not [place for place in opened if CANARY in place]


def test_pretrained_settings_of_sections_are_not_followed(tmp_path, opened):
    """The checkpoint is usable: its own weights fill the model."""
    changes = {
        "DINOv3Backbone": {"pretrained": True, "checkpoint_path": CANARY}
    }
    path = checkpoint_with(tmp_path, hostile(changes))
    Detector.from_checkpoint(path, device="cpu")
    assert not [place for place in opened if CANARY in place]


@pytest.mark.parametrize(
    "part",
    [
        "train_dataloader",
        "val_dataloader",
        "optimizer",
        "criterion",
        "evaluator",
    ],
)
def test_nothing_but_a_model_is_built_from_it(part):
    cfg = model_config(read_weights(TRAINED))
    with pytest.raises(
        Exception, match=f"describes only a model, so {part} cannot be"
    ):
        built = getattr(cfg, part)
        built(None)  # the evaluator is a function of the ground truth


def test_the_configuration_of_a_trained_checkpoint_describes_its_model():
    cfg = model_config(read_weights(TRAINED))
    assert isinstance(cfg, YAMLConfig)
    assert cfg.yaml_cfg["model"] == "DFINE"


def published(name: str, file: str, classes: int = 80, **options):
    return file_of(state_without_data(name, classes), file, **options)


def test_a_published_file_gets_the_configuration_of_its_model():
    cfg = model_config(published("deimv2_s", "model.pth"))
    assert cfg.path == ROOT / "configs/deimv2/deimv2_dinov3_s_coco.yml"
    assert cfg.yaml_cfg["num_classes"] == 80


def test_its_classes_count_and_not_those_of_the_configuration():
    cfg = model_config(published("deimv2_s", "model.pth", classes=5))
    assert cfg.yaml_cfg["num_classes"] == 5
    assert cfg.yaml_cfg["remap_mscoco_category"] is False


def test_a_choice_that_the_tensors_did_not_make_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "dfine"):
        model_config(published("deim_l", "deim_l.pth"))
        assert not caplog.text
        model_config(published("deim_s", "deim_s.pth"))
    assert "with SiLU in the decoder, as the name of the file" in caplog.text


@pytest.mark.parametrize(
    ("name", "file", "options", "config", "message"),
    [
        ("deim_s", "deim.pth", {}, "dfine", "DEIM-S according to its name, wi"),
        ("deim_l", "a.pth", {}, "dfine", "DEIM-L according to its tensors, wi"),
        (
            "dfine_s",
            "a.pth",
            {"family": "deim"},
            "dfine",
            "--family, with SiLU",
        ),
        ("dfine_s", "dfine.pth", {}, "deim", "a decoder with SiLU"),
        ("dfine_s", "a.pth", {}, "dfine", None),
        ("dfine_s", "a.pth", {}, "deim", None),
        ("rtv4_s", "a.pth", {}, "deim", None),
    ],
)
def test_a_configuration_of_another_family_is_recognized(
    name, file, options, config, message
):
    size = name[-1]
    cfg = YAMLConfig(
        ROOT / f"configs/{config}/{config}_hgnetv2_{size}_coco.yml"
    )
    difference = other_family(published(name, file, **options), cfg)
    if message is None:
        assert difference is None
    else:
        assert message in difference


def test_the_configuration_in_a_file_decides_and_not_its_name():
    content = torch.load(TRAINED, weights_only=True)
    file = WeightFile(Path("deim.pth"), content["model"], content["meta"])
    assert other_family(file, YAMLConfig(DEMO_CONFIG)) is None
