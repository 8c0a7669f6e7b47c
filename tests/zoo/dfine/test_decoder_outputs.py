"""The dict that a decoder returns in training."""

import pytest
import torch

from tests.fixtures.detector import (
    CLASSES,
    QUERIES,
    small_decoder,
    training_outputs,
)


def test_training_outputs_are_those_that_the_loss_is_promised():
    outputs, _ = training_outputs(3, 1)
    layer = {"pred_logits", "pred_boxes", "pred_corners", "ref_points"}
    assert set(outputs) == layer | {
        "up",
        "reg_scale",
        "aux_outputs",
        "enc_aux_outputs",
        "pre_outputs",
        "enc_meta",
        "dn_outputs",
        "dn_pre_outputs",
        "dn_meta",
    }
    assert all(
        set(head) == layer | {"teacher_corners", "teacher_logits"}
        for head in [*outputs["aux_outputs"], *outputs["dn_outputs"]]
    )
    assert all(
        set(head) == {"pred_logits", "pred_boxes"}
        for head in (
            *outputs["enc_aux_outputs"],
            outputs["pre_outputs"],
            outputs["dn_pre_outputs"],
        )
    )
    assert (
        len(outputs["aux_outputs"]),
        len(outputs["enc_aux_outputs"]),
        len(outputs["dn_outputs"]),
    ) == (
        2,
        1,
        3,
    )


def test_matching_and_denoising_queries_are_split_apart():
    outputs, _ = training_outputs(3, 1)  # 6 // 3 = 2 groups of 2 x 3
    assert (
        outputs["dn_meta"]["dn_num_split"] == [12, QUERIES]
        and outputs["dn_meta"]["dn_num_group"] == 2
    )
    assert {
        head["pred_logits"].shape[1]
        for head in [
            outputs,
            *outputs["aux_outputs"],
            outputs["pre_outputs"],
            *outputs["enc_aux_outputs"],
        ]
    } == {QUERIES}
    assert {
        head["pred_logits"].shape[1]
        for head in [*outputs["dn_outputs"], outputs["dn_pre_outputs"]]
    } == {12}


def test_last_layer_teaches_the_others():
    outputs, _ = training_outputs(3, 1)
    assert all(
        torch.equal(head["teacher_corners"], outputs["pred_corners"])
        for head in outputs["aux_outputs"]
    )
    last = outputs["dn_outputs"][-1]
    assert all(
        torch.equal(head["teacher_logits"], last["pred_logits"])
        for head in outputs["dn_outputs"]
    )


def test_a_batch_without_objects_has_denoising_outputs_of_no_length():
    outputs, _ = training_outputs(0, 0)
    assert (
        outputs["dn_meta"]["dn_num_split"] == [0, QUERIES]
        and outputs["dn_meta"]["dn_num_group"] == 0
    )
    assert outputs["dn_outputs"][0]["pred_logits"].shape == (2, 0, CLASSES)


@pytest.mark.parametrize(
    ("settings", "with_targets"),
    [({"num_denoising": 0}, True), ({}, False), ({"aux_loss": False}, True)],
)
def test_there_is_no_denoising_without_queries_targets_or_auxiliary_losses(
    settings, with_targets
):
    outputs, _ = training_outputs(
        3, 1, decoder=small_decoder(**settings), denoise=with_targets
    )
    assert not any(key.startswith("dn_") for key in outputs)


def test_without_auxiliary_losses_the_last_layer_comes_alone():
    outputs, _ = training_outputs(3, 1, decoder=small_decoder(aux_loss=False))
    assert set(outputs) == {
        "pred_logits",
        "pred_boxes",
        "pred_corners",
        "ref_points",
        "up",
        "reg_scale",
    }


def test_reference_boxes_are_the_pre_heads_without_a_gradient():
    outputs, _ = training_outputs(3, 1)
    assert (
        torch.equal(outputs["ref_points"], outputs["pre_outputs"]["pred_boxes"])
        and not outputs["ref_points"].requires_grad
    )


def test_agnostic_selection_scores_tokens_by_a_single_number():
    outputs, _ = training_outputs(
        3, 1, decoder=small_decoder(query_select_method="agnostic")
    )
    assert outputs["enc_aux_outputs"][0]["pred_logits"].shape == (
        2,
        QUERIES,
        1,
    ) and outputs["enc_meta"] == {"class_agnostic": True}
