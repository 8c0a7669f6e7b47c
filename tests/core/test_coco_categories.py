"""The class tables that released weights depend on."""

from src.core.coco_categories import (
    COCO_CATEGORY_IDS,
    COCO_NAMES,
    COCO_TO_OBJECTS365,
    OBJECTS365_SLOTS,
)


def test_coco_has_80_categories_with_rising_ids_from_1_to_90():
    assert len(COCO_CATEGORY_IDS) == 80
    assert list(COCO_CATEGORY_IDS) == sorted(set(COCO_CATEGORY_IDS))
    assert (COCO_CATEGORY_IDS[0], COCO_CATEGORY_IDS[-1]) == (1, 90)


def test_cocos_gaps_are_the_ids_without_a_category():
    assert set(range(1, 91)) - set(COCO_CATEGORY_IDS) == {
        12,
        26,
        29,
        30,
        45,
        66,
        68,
        69,
        71,
        83,
    }


def test_every_coco_label_has_a_name_of_its_own():
    assert len(set(COCO_NAMES)) == 80


def test_names_stand_at_the_labels_of_their_ids():
    assert {
        COCO_CATEGORY_IDS[COCO_NAMES.index(name)]
        for name in ("person", "stop sign", "cat", "toothbrush")
    } == {1, 13, 17, 90}


def test_every_coco_label_has_an_objects365_class_of_its_own_with_a_slot():
    assert len(set(COCO_TO_OBJECTS365)) == len(COCO_TO_OBJECTS365) == 80
    assert (
        min(COCO_TO_OBJECTS365) >= 0
        and max(COCO_TO_OBJECTS365) + 1 < OBJECTS365_SLOTS
    )
