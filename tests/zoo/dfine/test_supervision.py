"""Pairs that supervise the heads: those of matching and of denoising queries."""

import pytest
import torch

from tests.fixtures.detector import (
    small_criterion,
    training_outputs,
)
from tests.fixtures.plain_losses import reference_losses


def test_terms_of_matching_queries_do_not_see_denoising_ones():
    outputs, targets = training_outputs(3, 1)
    without = {
        key: value
        for key, value in outputs.items()
        if not key.startswith("dn_")
    }
    full, expected = (
        small_criterion()(outputs, targets),
        small_criterion()(without, targets),
    )
    assert all(
        torch.equal(full[name], value) for name, value in expected.items()
    )


def test_a_denoising_query_that_changes_changes_denoising_terms_alone():
    outputs, targets = training_outputs(3, 1)
    before = small_criterion()(outputs, targets)
    outputs["dn_outputs"][1]["pred_logits"] = (
        outputs["dn_outputs"][1]["pred_logits"] + 1
    )
    after = small_criterion()(outputs, targets)
    assert [
        name for name in before if not torch.equal(before[name], after[name])
    ] == ["loss_vfl_dn_1"]


def test_denoising_distillation_takes_the_balance_of_matching_queries():
    outputs, targets = training_outputs(3, 1)
    before = small_criterion()(outputs, targets)
    outputs["dn_outputs"] = [
        {
            key: value[:, :6]
            if value.ndim == 3 and value.shape[1] > 6
            else value
            for key, value in head.items()
        }
        for head in outputs["dn_outputs"]
    ]  # one group of six in place of two
    outputs["dn_pre_outputs"] = {
        key: value[:, :6] for key, value in outputs["dn_pre_outputs"].items()
    }
    outputs["dn_meta"] |= {
        "dn_num_group": 1,
        "dn_positive_idx": [
            index[index < 6] for index in outputs["dn_meta"]["dn_positive_idx"]
        ],
    }
    after, expected = (
        small_criterion()(outputs, targets),
        reference_losses(outputs, targets),
    )
    assert before["loss_ddf_dn_0"] != after["loss_ddf_dn_0"]
    assert after["loss_ddf_dn_0"].item() == pytest.approx(
        expected["loss_ddf_dn_0"].item(), rel=1e-4
    )
