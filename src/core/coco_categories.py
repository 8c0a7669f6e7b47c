"""COCO's and Objects365's class tables, which released weights depend on, and how two tables of categories are compared."""

COCO_CATEGORY_IDS: tuple[int, ...] = (*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70,
                                      *range(72, 83), *range(84, 91))
"""COCO's category id of each of its 80 labels."""

COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl",
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave",
    "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush")
"""COCO's name of each of its 80 labels."""

COCO_TO_OBJECTS365: tuple[int, ...] = (
    0, 46, 5, 58, 114, 55, 116, 65, 21, 40, 176, 127, 249, 24, 56, 139, 92, 78, 99, 96, 144, 295, 178, 180, 38, 39, 13, 43, 120, 219,
    148, 173, 165, 154, 137, 113, 145, 146, 204, 8, 35, 10, 88, 84, 93, 26, 112, 82, 265, 104, 141, 152, 234, 143, 150, 97, 2, 50, 25,
    75, 98, 153, 37, 73, 115, 132, 106, 61, 163, 134, 277, 81, 133, 18, 94, 30, 169, 70, 328, 226)
"""For each COCO label, the 0-based Objects365 class of the same name; its category id, and its row in a head with 366
slots, is one more."""

OBJECTS365_SLOTS = 366
"""Rows of a class head trained by D-FINE on Objects365, whose category ids run from 1 to 365."""


def differing_categories(ours: dict[int, str], theirs: dict[int, str]) -> list[str]:
    """Return "id 7: dog / cat" for each id that two tables (names by id) do not agree on; their order does not count."""
    return [f"id {i}: {ours.get(i, 'none')} / {theirs.get(i, 'none')}" for i in sorted(set(ours) | set(theirs)) if ours.get(i) != theirs.get(i)]
