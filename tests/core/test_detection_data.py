"""Methods that every data set needs, and the defaults of the optional ones."""

import pytest
import torch

from src.core.detection_data import (
    DetectionData,
    refuse_incomplete_class,
    require_detection_data,
)
from src.core.errors import ConfigError, DataError
from src.core.ground_truth import Objects


class TwoImages(DetectionData):
    class_names = ("cat", "dog")
    found = (
        Objects(
            torch.tensor([[1.0, 2, 5, 4], [0, 0, 2, 2]]),
            torch.tensor([1, 0]),
            torch.tensor([False, True]),
        ),
        Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    )

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise NotImplementedError

    def objects(self, index):
        return self.found[index]


def test_truth_is_a_coco_dictionary_with_positions_as_ids():
    assert TwoImages().ground_truth() == {
        "images": [{"id": 0}, {"id": 1}],
        "annotations": [
            {
                "id": 1,
                "image_id": 0,
                "category_id": 1,
                "bbox": [1, 2, 4, 2],
                "area": 8,
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 0,
                "category_id": 0,
                "bbox": [0, 0, 2, 2],
                "area": 4,
                "iscrowd": 1,
            },
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }


def test_boxes_are_counted():
    data = TwoImages()
    assert (data.boxes_per_image().tolist(), data.usable_boxes()) == ([2, 0], 1)


def test_data_without_a_usable_box_has_no_truth():
    data = TwoImages()
    data.found = (TwoImages.found[1],) * 2
    with pytest.raises(
        DataError,
        match="^TwoImages has no ground truth: none of its 2 images has a usable box",
    ):
        data.ground_truth()


def test_identity_changes_with_one_box_of_one_image():
    before, data = TwoImages().identity(), TwoImages()
    boxes, labels, ignored, _ = TwoImages.found[0]
    data.found = (Objects(boxes + 1, labels, ignored), TwoImages.found[1])
    after = data.identity()
    assert (before["labels"] == after["labels"]).tolist() == [False, True]
    assert torch.equal(before["names"], after["names"])
    assert before["classes"] == [[0, "cat"], [1, "dog"]]


def test_labels_that_are_those_of_the_data_are_accepted():
    TwoImages().use_labels([0, 1])


def test_names_and_numbers_have_defaults_that_can_be_set():
    data = TwoImages()
    assert (
        data.ann_file,
        list(data.category_ids),
        data.image_id(1),
        data.image_name(1),
        data.num_classes,
    ) == (
        "TwoImages",
        [0, 1],
        1,
        "image 1",
        2,
    )
    data.ann_file, data.category_ids = "labels.xml", [4, 8]
    assert (data.ann_file, data.category_ids, data.label_names) == (
        "labels.xml",
        [4, 8],
        {0: "cat", 1: "dog"},
    )


def test_a_class_that_lacks_members_is_refused_with_what_they_return():
    class Short(DetectionData):
        def __len__(self):
            return 0

    with pytest.raises(ConfigError) as caught:
        refuse_incomplete_class(Short)
    assert str(caught.value) == (
        "Short cannot be used as a data set: it lacks __getitem__ "
        "(returns the model's input, an image `[3, H, W]`, float in 0..1, and its `Target`), "
        "objects (returns the `Objects` of an image, without reading the image); "
        "see 'A data set of your own' in docs/data.md"
    )


def test_a_data_set_without_class_names_is_refused():
    data = object.__new__(
        type(
            "Bare",
            (DetectionData,),
            dict.fromkeys(["__len__", "__getitem__", "objects"]),
        )
    )
    with pytest.raises(
        ConfigError,
        match=r"^Bare cannot be used as a data set: it lacks class_names \(a list with",
    ):
        require_detection_data(data)


def test_a_class_that_does_not_derive_from_the_base_is_refused_with_advice():
    class Foreign:
        class_names, objects = (), None
        __len__ = __getitem__ = None

    with pytest.raises(
        ConfigError,
        match="it lacks the defaults of DetectionData, from which it must derive; see",
    ):
        require_detection_data(Foreign())
