"""In eval mode, each published size gives the outputs of the official code, part by part and when fused."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fixtures.golden import (
    SALTS,
    coco_config,
    distance_of_queries,
    read_arrays,
)
from tests.fixtures.slow import slow
from tests.golden import filler


class Results(NamedTuple):
    """Outputs of one size; of each map, every 997th number."""

    official: dict[str, np.ndarray]
    backbone: list[np.ndarray]
    encoder: list[np.ndarray]
    outputs: dict[str, Tensor]
    deployed: dict[str, Tensor]
    postprocessor: torch.nn.Module


@pytest.fixture(scope="module", params=[*"nsm", *slow("l", "x")])
def results(request) -> Results:
    config = coco_config(request.param)
    model = filler.fill(config.model, SALTS[request.param]).eval()
    images = filler.image(7, 1, 3, 640, 640)
    with torch.inference_mode():
        maps = model.backbone(images)
        encoded = model.encoder(maps)
        outputs = model.decoder(encoded)
        deployed = model.deploy()(images)
    samples = [
        [x.flatten()[::997].numpy().copy() for x in part]
        for part in (maps, encoded)
    ]
    return Results(
        dict(read_arrays(f"dfine_{request.param}.eval.npz")),
        *samples,
        outputs,
        deployed,
        config.postprocessor,
    )


def test_backbone_maps_are_the_official_ones(results):
    for level, ours in enumerate(results.backbone):
        np.testing.assert_allclose(
            ours, results.official[f"backbone{level}"], rtol=0, atol=1e-4
        )


def test_encoder_maps_are_the_official_ones(results):
    for level, ours in enumerate(results.encoder):
        np.testing.assert_allclose(
            ours, results.official[f"encoder{level}"], rtol=0, atol=1e-4
        )


def test_logits_and_boxes_are_the_official_ones(results):
    assert distance_of_queries(results.outputs, results.official) <= 1e-4


def test_scores_after_post_processing_are_the_official_ones(results):
    detections = results.postprocessor(
        results.outputs, torch.tensor([[800.0, 600.0]])
    )[0]
    np.testing.assert_allclose(
        np.sort(detections["scores"].numpy()),
        np.sort(results.official["post_scores"]),
        rtol=0,
        atol=1e-4,
    )


def test_fused_model_computes_the_same_logits_and_boxes(results):
    assert distance_of_queries(results.deployed, results.official) <= 1e-3


def test_post_processor_makes_the_official_detections_of_the_official_outputs(
    results,
):
    outputs = {
        name: torch.from_numpy(results.official[name])
        for name in ("pred_logits", "pred_boxes")
    }
    detections = results.postprocessor(outputs, torch.tensor([[800.0, 600.0]]))[
        0
    ]
    for name in ("labels", "boxes", "scores"):
        np.testing.assert_allclose(
            detections[name].numpy(),
            results.official[f"post_{name}"],
            rtol=1e-6,
            atol=1e-4,
            err_msg=name,
        )
