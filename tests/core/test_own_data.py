"""Mistakes in a user's own data set are named with the class, the method and the index."""

import errno

import numpy as np
import pytest
import torch

from src.core.detection_data import DetectionData, require_detection_data
from src.core.errors import ConfigError, DataError
from src.core.ground_truth import Objects
from src.core.own_data import call, check_boxes_inside, check_image, check_item

BOX = torch.tensor([[1.0, 2.0, 5.0, 6.0]])
LABEL = torch.tensor([0])


class Shapes(DetectionData):
    """Two images with an object each; tests replace what it returns."""

    class_names = ["star", "disc"]
    returned = Objects(BOX, LABEL)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.rand(3, 8, 8), {"boxes": BOX / 8, "labels": LABEL}

    def objects(self, index):
        return self.returned


def shapes(**members) -> Shapes:
    """Return a data set with other members."""
    return type("Shapes", (Shapes,), members)()


def test_a_sound_data_set_passes():
    data = Shapes()
    require_detection_data(data)
    assert data.check() == []


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (None, "a NoneType, expected Objects"),
        ((BOX, LABEL), "a tuple, expected Objects"),
        (Objects(BOX.numpy(), LABEL), "boxes as a ndarray"),
        (Objects([[1, 2, 5, 6]], LABEL), "boxes as a list"),
        (Objects(torch.rand(1, 5), LABEL), r"boxes of shape \[1, 5\]"),
        (Objects(torch.tensor([]), torch.tensor([])), r"boxes of shape \[0\]"),
        (
            Objects(BOX, torch.tensor([0, 1])),
            r"labels of shape \[2\] for 1 box",
        ),
        (Objects(BOX, torch.tensor([[0]])), r"labels of shape \[1, 1\]"),
        (
            Objects(BOX, torch.tensor([0.0])),
            "labels of type torch.float32, expected integers",
        ),
        (
            Objects(BOX, torch.tensor([2])),
            "labels from 2 to 2, expected 0 to 1",
        ),
        (
            Objects(BOX, torch.tensor([-1])),
            "labels from -1 to -1, expected 0 to 1",
        ),
        (
            Objects(BOX, LABEL, ignored=torch.tensor([0])),
            "ignored of type torch.int64, expected torch.bool",
        ),
        (Objects(BOX, LABEL, areas=torch.rand(3)), r"areas of shape \[3\]"),
        (Objects(BOX * float("nan"), LABEL), "boxes with NaN or infinity"),
        (
            Objects(torch.tensor([[5.0, 5.0, 3.0, 9.0]]), LABEL),
            "are these x, y, width, height",
        ),
    ],
)
def test_wrong_objects_are_refused_with_what_is_expected(returned, found):
    with pytest.raises(
        DataError,
        match=rf"^Shapes.objects\(0\) returned .*{found}.*docs/data.md",
    ):
        shapes(returned=returned).check()


def test_boxes_of_any_number_type_and_images_without_objects_pass():
    for boxes in (
        BOX.int(),
        BOX.half(),
        BOX.bfloat16(),
        BOX.clone().requires_grad_(),
    ):
        assert shapes(returned=Objects(boxes, LABEL)).check() == []
    for labels in (torch.zeros(0), torch.zeros(0, dtype=torch.int64)):
        assert shapes(returned=Objects(torch.zeros(0, 4), labels)).check() == []


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("star", "is a str, expected a list"),
        ({"star": 0}, "is a dict, expected a list"),
        ({"star"}, "is a set, expected a list"),
        ([], "has no name"),
        ([0, 1], "has 0, 1, expected texts"),
        (["star", "star"], "has star more than once"),
    ],
)
def test_class_names_are_a_list_of_different_texts(names, found):
    with pytest.raises(ConfigError, match=f"^Shapes.class_names {found}"):
        require_detection_data(shapes(class_names=names))


@pytest.mark.parametrize("ids", [[1], [1, 1], ["1", "2"], [1, 2, 3]])
def test_category_ids_are_an_integer_for_each_name(ids):
    with pytest.raises(
        ConfigError, match="expected 2 different integers, one for each name"
    ):
        require_detection_data(shapes(category_ids=ids))


def test_ids_and_names_of_images_are_checked():
    with pytest.raises(
        DataError,
        match="2 images have the id 7; image_id must return another number",
    ):
        shapes(image_id=lambda self, index: 7).check()
    with pytest.raises(
        DataError, match="Shapes.image_id returned 'a', expected an integer"
    ):
        shapes(image_id=lambda self, index: "a").check()
    with pytest.raises(
        DataError, match="Shapes.image_name returned a int, expected a text"
    ):
        shapes(image_name=lambda self, index: index).check()
    (warning,) = shapes(image_name=lambda self, index: "same").check()
    assert "images with the name of another image (image_name): 1" in warning
    for count in (0, 3.0):
        with pytest.raises(
            DataError,
            match=f"Shapes.__len__ returned {count}, expected the number of images",
        ):
            require_detection_data(
                shapes(__len__=lambda self, count=count: count)
            )


def test_integers_of_numpy_are_integers_too():
    """Tables read by numpy or pandas give them; a checkpoint must not hold them."""
    data = shapes(
        category_ids=np.array([3, 7]),
        image_id=lambda self, index: np.int64(index + 5),
    )
    require_detection_data(data)
    assert data.check() == []
    truth = data.ground_truth()
    values = [
        truth["images"][0]["id"],
        *(value for value, _ in data.identity()["classes"]),
    ]
    assert values == [5, 3, 7] and all(type(value) is int for value in values)


def test_an_exception_is_named_with_the_call_that_raised_it():
    def objects(self, index):
        raise KeyError("train_00.png")

    with pytest.raises(
        DataError, match=r"Shapes.objects\(0\) raised KeyError: 'train_00.png'"
    ):
        shapes(objects=objects).check()


def test_limits_of_the_machine_are_not_treated_as_faults_of_the_data():
    def load_image(index):
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        call(Shapes(), load_image, 0)


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ([0.1, 0.2, 0.5, 0.6], "boxes with numbers from 0 to 1"),
        (
            [10.0, 10.0, 300.0, 50.0],
            "the box .* expected x1, y1, x2, y2 within the image of 100 x 80",
        ),
        ([-40.0, 10.0, 50.0, 50.0], "the box"),
    ],
)
def test_boxes_that_cannot_belong_to_their_image_are_refused(box, found):
    with pytest.raises(DataError, match=found):
        check_boxes_inside("Shapes.objects(3)", torch.tensor([box]), 100, 80)


def test_boxes_a_little_outside_their_image_are_accepted():
    check_boxes_inside(
        "Shapes.objects(3)", torch.tensor([[-2.0, 0.0, 101.0, 80.5]]), 100, 80
    )


@pytest.mark.parametrize(
    "image",
    [
        None,
        torch.rand(3, 4, 4),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
    ],
)
def test_other_images_than_rgb_bytes_are_refused(image):
    with pytest.raises(
        DataError,
        match=r"^Shapes.load_image\(3\) returned a .*expected a torch.Tensor \[3, H, W\] uint8",
    ):
        check_image("Shapes.load_image(3)", image)


GOOD = {
    "boxes": BOX / 8,
    "labels": LABEL,
    "image_id": torch.tensor([1]),
    "orig_size": torch.tensor([8, 8]),
}


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (torch.rand(3, 8, 8), "expected an image and its target"),
        ((torch.rand(8, 8, 3), GOOD), r"an image \[8, 8, 3\]"),
        (
            (torch.zeros(3, 8, 8, dtype=torch.uint8), GOOD),
            "of type torch.uint8",
        ),
        ((torch.rand(3, 8, 8) * 255, GOOD), "an image with values up to"),
        (
            (torch.rand(3, 8, 8), GOOD | {"boxes": BOX}),
            "expected center x, center y, width, height in 0..1",
        ),
        (
            (torch.rand(3, 8, 8), GOOD | {"labels": torch.tensor([5])}),
            "labels from 5 to 5",
        ),
        (
            (torch.rand(3, 8, 8), {"labels": LABEL}),
            "a target whose boxes is NoneType",
        ),
    ],
)
def test_items_that_cannot_be_put_into_a_batch_are_refused(item, found):
    with pytest.raises(
        DataError, match=rf"^Shapes.__getitem__\(0\) returned .*{found}"
    ):
        check_item("Shapes.__getitem__(0)", item, 2, training=True)


def test_evaluation_needs_the_id_and_the_size_of_an_image():
    check_item(
        "Shapes.__getitem__(0)",
        (torch.rand(3, 8, 8), GOOD | {"boxes": BOX}),
        2,
        training=False,
    )
    with pytest.raises(DataError, match="a target whose image_id is NoneType"):
        check_item(
            "x",
            (torch.rand(3, 8, 8), {"boxes": BOX, "labels": LABEL}),
            2,
            training=False,
        )
