import logging

import pytest
import torch

from src.core import CheckpointError
from src.core.coco_categories import COCO_NAMES, COCO_TO_OBJECTS365
from src.detection.weight_file import WeightFile
from src.solver.finetune import load_for_tuning, map_classes
from tests.fixtures.tiny import tiny_config

HEAD = "decoder.dec_score_head.0.weight"
EMBEDDING = "decoder.denoising_class_embed.weight"


def model(classes: int, **overrides):
    torch.manual_seed(classes)
    return tiny_config(num_classes=classes, **overrides).model


def file(source, tmp_path, classes: list[str] | None = None) -> WeightFile:
    meta = (
        {"classes": [{"id": i, "name": name} for i, name in enumerate(classes)]}
        if classes
        else {}
    )
    return WeightFile(
        tmp_path / "source.pth",
        {k: v.clone() for k, v in source.state_dict().items()},
        meta,
    )


def test_names_decide_which_rows_carry_over():
    assert map_classes(3, 2, ["cat", "dog", "cow"], ["cow", "pig"]) == [2, None]


def test_names_match_whatever_their_case_but_the_same_spelling_comes_first():
    assert map_classes(3, 2, ["Cat", "cat", "Dog"], ["cat", "dog"]) == [1, 2]


def test_a_checkpoint_of_ours_from_objects365_starts_coco_classes_by_the_published_table(
    tmp_path,
):
    source, target = model(366), model(80)
    classes = [{"id": i, "name": f"Object {i}"} for i in range(1, 366)]
    load_for_tuning(
        target,
        WeightFile(
            tmp_path / "source.pth", source.state_dict(), {"classes": classes}
        ),
        list(COCO_NAMES),
    )
    expected = source.state_dict()[HEAD][
        torch.tensor(COCO_TO_OBJECTS365)
    ]  # ids begin with 1, our labels with 0
    assert torch.equal(target.state_dict()[HEAD], expected)


def test_positions_mean_nothing_when_counts_differ_and_names_are_unknown():
    assert map_classes(80, 3, None, ["a", "b", "c"]) == [None, None, None]


def test_equal_counts_without_names_are_the_same_classes():
    assert map_classes(3, 3, None, ["a", "b", "c"]) == [0, 1, 2]


def test_objects365_rows_go_to_coco_classes_one_behind_their_index():
    mapping = map_classes(366, 80, None, None)
    assert mapping == [index + 1 for index in COCO_TO_OBJECTS365]
    assert mapping[COCO_NAMES.index("bicycle")] == 47


def test_coco_rows_are_copied_to_objects365_and_the_rest_is_reinitialized():
    mapping = map_classes(80, 366, None, None)
    assert mapping[47] == COCO_NAMES.index("bicycle")
    assert mapping[0] is None and sum(row is not None for row in mapping) == 80


def test_rows_of_known_classes_are_taken_and_others_stay_as_they_were(tmp_path):
    source, target = model(3), model(2)
    fresh = target.state_dict()[HEAD].clone()
    load_for_tuning(
        target, file(source, tmp_path, ["cat", "dog", "cow"]), ["cow", "pig"]
    )
    assert torch.equal(
        target.state_dict()[HEAD][0], source.state_dict()[HEAD][2]
    )
    assert torch.equal(target.state_dict()[HEAD][1], fresh[1])


def test_the_padding_row_of_the_denoising_embedding_stays_the_last(tmp_path):
    source, target = model(3), model(2)
    source.decoder.denoising_class_embed.weight.data[-1] = 7.0
    load_for_tuning(
        target, file(source, tmp_path, ["cat", "dog", "cow"]), ["cow", "pig"]
    )
    assert (target.state_dict()[EMBEDDING][-1] == 7.0).all()


def test_the_number_of_reinitialized_classes_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "dfine"):
        load_for_tuning(model(2), file(model(3), tmp_path), ["a", "b"])
    assert (
        "re-initialised: 2 of 2 classes in 7 class tensors "
        "(decoder.denoising_class_embed.weight, decoder.enc_score_head.weight"
        in caplog.text
    )


def test_a_file_with_denoising_starts_a_model_without(tmp_path):
    target = model(3, DFINETransformer={"num_denoising": 0})
    load_for_tuning(target, file(model(3), tmp_path), ["a", "b", "c"])
    assert EMBEDDING not in target.state_dict()


def test_another_architecture_is_refused_with_its_keys(tmp_path):
    source = file(model(3), tmp_path)
    source.weights["decoder.enc_output.proj.bias"] = torch.zeros(5)
    with pytest.raises(
        CheckpointError,
        match=r"1 of another shape \(decoder\.enc_output\.proj\.bias \[5\] not "
        r"\[32\]\); -t changes the classes",
    ):
        load_for_tuning(model(3), source, ["a", "b", "c"])


def test_a_backbone_file_is_no_detector(tmp_path):
    with pytest.raises(
        CheckpointError, match="is not a D-FINE checkpoint: no class head found"
    ):
        load_for_tuning(
            model(3),
            WeightFile(tmp_path / "vit.pth", {"cls_token": torch.ones(1)}, {}),
            None,
        )


@pytest.mark.parametrize(
    ("theirs", "row"), [(80, COCO_NAMES.index("dog")), (366, None)]
)
def test_classes_of_a_published_file_are_kept_by_name(tmp_path, theirs, row):
    if row is None:
        row = COCO_TO_OBJECTS365[COCO_NAMES.index("dog")] + 1
    source, target = model(theirs), model(2)
    before = target.state_dict()[HEAD].clone()
    load_for_tuning(target, file(source, tmp_path), ["pig", "Dog"])
    after = target.state_dict()[HEAD]
    assert torch.equal(after[1], source.state_dict()[HEAD][row])
    assert torch.equal(after[0], before[0])


def test_coco_classes_in_another_order_are_kept_by_name(tmp_path):
    source, target = model(80), model(80)
    names = list(COCO_NAMES)[::-1]
    load_for_tuning(target, file(source, tmp_path), names)
    expected = source.state_dict()[HEAD].flip(0)
    assert torch.equal(target.state_dict()[HEAD], expected)


def test_objects365_to_itself_keeps_every_row(tmp_path):
    source, target = model(366), model(366)
    names = ["(unused 0)", "Person", *(f"Object {i}" for i in range(364))]
    load_for_tuning(target, file(source, tmp_path), names)
    expected = source.state_dict()[HEAD]
    assert torch.equal(target.state_dict()[HEAD], expected)
