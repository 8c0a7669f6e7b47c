import pytest
import torch

from src.zoo.dfine.prediction_heads import denoising_heads, matching_heads
from tests.fixtures.detector import (
    BINS,
    CLASSES,
    QUERIES,
    small_decoder,
    training_outputs,
)


def test_layers_come_before_the_heads_that_predict_boxes_directly():
    (stack,) = matching_heads(training_outputs(3, 1)[0], BINS)
    assert stack.suffixes == ["_aux_0", "_aux_1", "", "_pre", "_enc_0"]


def test_shapes_are_those_of_five_heads_and_three_layers():
    (stack,) = matching_heads(training_outputs(3, 1)[0], BINS)
    assert (tuple(stack.logits.shape), tuple(stack.boxes.shape)) == (
        (5, 2, QUERIES, CLASSES),
        (5, 2, QUERIES, 4),
    )
    assert (tuple(stack.corners.shape), tuple(stack.reference.shape)) == (
        (3, 2, QUERIES, 4, BINS),
        (2, QUERIES, 4),
    )
    assert (
        tuple(stack.teacher_corners.shape),
        tuple(stack.teacher_logits.shape),
    ) == (
        (2, QUERIES, 4, BINS),
        (2, QUERIES, CLASSES),
    )


def test_each_row_of_a_stack_is_that_of_its_head():
    outputs, _ = training_outputs(3, 1)
    (stack,) = matching_heads(outputs, BINS)
    heads = [
        *outputs["aux_outputs"],
        outputs,
        outputs["pre_outputs"],
        *outputs["enc_aux_outputs"],
    ]
    for row, head in enumerate(heads):
        assert torch.equal(
            stack.logits[row], head["pred_logits"]
        ) and torch.equal(stack.boxes[row], head["pred_boxes"])


def test_last_layer_is_the_teacher():
    outputs, _ = training_outputs(3, 1)
    (stack,) = matching_heads(outputs, BINS)
    assert torch.equal(
        stack.teacher_corners.flatten(-2), outputs["pred_corners"]
    ) and torch.equal(stack.teacher_logits, outputs["pred_logits"])


@pytest.mark.parametrize(
    "part", ["teacher_corners", "teacher_logits", "reference"]
)
def test_teacher_and_reference_carry_no_gradient(part):
    (stack,) = matching_heads(training_outputs(3, 1)[0], BINS)
    assert not getattr(stack, part).requires_grad


def test_an_encoder_whose_scores_know_no_classes_gets_a_stack_of_its_own():
    outputs, _ = training_outputs(
        3, 1, decoder=small_decoder(query_select_method="agnostic")
    )
    layers, encoder = matching_heads(outputs, BINS)
    assert (
        layers.suffixes[-1],
        encoder.suffixes,
        encoder.logits.shape[-1],
        encoder.corners,
    ) == (
        "_pre",
        ["_enc_0"],
        1,
        None,
    )


def test_a_single_layer_teaches_nobody():
    (stack,) = matching_heads(
        training_outputs(3, 1, decoder=small_decoder(num_layers=1))[0], BINS
    )
    assert (
        stack.suffixes == ["", "_pre", "_enc_0"]
        and stack.teacher_corners is None
    )


def test_without_auxiliary_outputs_the_last_layer_stands_alone():
    (stack,) = matching_heads(
        training_outputs(3, 1, decoder=small_decoder(aux_loss=False))[0], BINS
    )
    assert stack.suffixes == [""]


def test_denoising_heads_are_all_layers_and_the_pre_head():
    outputs, _ = training_outputs(3, 1)
    stack = denoising_heads(outputs, BINS)
    assert stack.suffixes == ["_dn_0", "_dn_1", "_dn_2", "_dn_pre"]
    assert torch.equal(
        stack.teacher_logits, outputs["dn_outputs"][-1]["pred_logits"]
    )


def test_half_precision_becomes_single():
    outputs, _ = training_outputs(3, 1)
    outputs["pred_logits"] = outputs["pred_logits"].bfloat16()
    for head in (
        *outputs["aux_outputs"],
        outputs["pre_outputs"],
        *outputs["enc_aux_outputs"],
    ):
        head["pred_logits"] = head["pred_logits"].bfloat16()
    assert matching_heads(outputs, BINS)[0].logits.dtype == torch.float32
