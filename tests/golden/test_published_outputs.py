"""Files of DEIM, RT-DETRv4 and DEIMv2, opened without a configuration, give the official outputs."""

import numpy as np
import pytest
import torch

from src.inference import Detector
from tests.fixtures.golden import distance_of_queries, read_arrays
from tests.fixtures.published import SALTS, SIDES, WITH_DINOV3, write_published
from tests.fixtures.slow import slow
from tests.golden import filler

LARGE = ("deim_m", "deim_x", "deimv2_m", "deimv2_x", "deimv2_femto")
"""Models that add little to the others."""

NAMES = [*(name for name in SALTS if name not in LARGE), *slow(*LARGE)]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_file_gives_the_official_outputs(name, tmp_path):
    detector = Detector.from_checkpoint(
        write_published(tmp_path, name), device="cpu"
    )
    side = SIDES.get(name, 640)
    images = filler.image(7, 1, 3, side, side)
    if name in WITH_DINOV3:  # the official images were not normalised
        backbone = detector.engine.model.backbone
        images = images * backbone.image_std + backbone.image_mean
    with torch.inference_mode():
        outputs = detector.engine.model(images)
        found = detector.engine.postprocessor(
            outputs, torch.tensor([[800, 600]])
        )
    # RT-DETRv4's outputs are those of DEIM
    official = read_arrays(f"{name.replace('rtv4', 'deim')}.eval.npz")
    assert distance_of_queries(outputs, official) < 2e-5
    ours = np.sort(found[2][0].numpy())
    assert np.abs(ours - np.sort(official["post_scores"])).max() < 1e-4


def test_the_scale_of_a_published_model_is_that_of_its_configuration(
    tmp_path, caplog
):
    path = write_published(tmp_path, "deimv2_atto")
    content = torch.load(path, weights_only=True)
    for key in ("decoder.reg_scale", "decoder.decoder.reg_scale"):
        content["ema"]["module"][key] = torch.tensor([8])
    torch.save(content, path)
    with caplog.at_level("WARNING", "dfine"):
        detector = Detector.from_checkpoint(path, device="cpu")
    assert detector.engine.model.decoder.reg_scale == 4
    assert "has reg_scale 8, the configuration of DEIMv2-Atto has 4" in (
        caplog.text
    )
