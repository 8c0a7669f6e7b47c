"""The layout of Pascal VOC: splits, pixels counted from 1, difficult objects, and untrusted XML."""

import pytest

from src.core.errors import DataError
from src.data.preparation.voc import read_voc
from tests.fixtures.label_formats import voc_xml, write_voc


def files(data) -> dict[str, list[str]]:
    return {
        part: [image.file_name for image in images]
        for part, images in data.parts.items()
    }


def refused(root, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read_voc(root, **settings)
    return str(caught.value)


@pytest.fixture
def root(tmp_path):
    return write_voc(tmp_path / "voc")


def spoil(root, text: str | bytes, stem: str = "a") -> None:
    (root / f"Annotations/{stem}.xml").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )


# ---- parts ----


def test_lists_say_what_is_for_training_and_validation(root):
    assert files(read_voc(root)) == {
        "train": ["a.png", "b.png"],
        "val": ["c.png"],
    }


def test_list_of_both_is_for_training(root):
    (root / "ImageSets/Main/train.txt").rename(
        root / "ImageSets/Main/trainval.txt"
    )
    assert files(read_voc(root)) == {"train": ["a.png", "b.png"]}


def test_numbers_after_image_names_are_ignored(root):
    (root / "ImageSets/Main/train.txt").write_text("a  1\nb -1\n")
    assert files(read_voc(root))["train"] == ["a.png", "b.png"]


def test_without_lists_all_annotation_files_count(tmp_path):
    assert files(read_voc(write_voc(tmp_path / "voc", sets=False))) == {
        "train": ["a.png", "b.png", "c.png"]
    }


def test_classes_are_numbered_from_1_in_the_order_of_their_names(root):
    assert read_voc(root).categories == {1: "cat", 2: "dog", 3: "owl"}


# ---- boxes ----


def test_pixels_are_counted_from_1_and_the_last_belongs_to_a_box(root):
    assert read_voc(root).parts["train"][0].boxes.tolist() == [
        [3, 5, 20, 30],
        [10, 0, 64, 48],
    ]


def test_corners_counted_from_0_are_taken_as_they_are(root):
    assert read_voc(root, zero_based=True).parts["train"][0].boxes.tolist() == [
        [4, 6, 20, 30],
        [11, 1, 64, 48],
    ]


def test_corner_at_0_raises_a_doubt(root):
    spoil(root, voc_xml("a").replace("<xmin>4<", "<xmin>0<"))
    data = read_voc(root)
    assert data.parts["train"][0].boxes[0].tolist() == [0, 5, 20, 30]
    assert (
        data.notes[
            "boxes with a corner at 0, where VOC begins with 1 (--zero-based reads corners from 0)"
        ]
        == 1
    )


@pytest.mark.parametrize(
    ("difficult", "boxes", "crowds"),
    [("keep", 2, 0), ("skip", 0, 0), ("crowd", 2, 2)],
)
def test_difficult_objects_are_kept_left_out_or_crowds(
    root, difficult, boxes, crowds
):
    spoil(root, voc_xml("a", "<difficult>1</difficult>"))
    image = read_voc(root, difficult=difficult).parts["train"][0]
    assert (len(image.boxes), int(image.crowds.sum())) == (boxes, crowds)


@pytest.mark.parametrize("corner", ["<xmin>20</xmin>", "<ymin>30</ymin>"])
def test_box_without_area_is_a_fault_unless_it_may_be_dropped(root, corner):
    """The first box, 4 6 20 30 in the file, shrinks to a line: in pixels counted from 0 that has no area."""
    key = corner[1:5]
    text = voc_xml("a")
    spoil(
        root,
        text.replace(
            text[text.index(f"<{key}>") :].split("</")[0],
            corner.split("</")[0],
            1,
        ),
    )
    with pytest.raises(DataError) as caught:
        read_voc(root, zero_based=True)
    message = str(caught.value)
    assert (
        "boxes without area or outside their image (1): a.png: object 1 (cat): corners"
        in message
    )
    assert "--drop-boxes leaves it out" in message
    data = read_voc(root, zero_based=True, drop_boxes=True)
    assert len(data.parts["train"][0].boxes) == 1
    assert data.notes["boxes without area or outside their image, dropped"] == 1


def test_box_outside_its_image_is_a_fault_unless_it_may_be_dropped(root):
    spoil(
        root,
        voc_xml("a")
        .replace("<xmax>20<", "<xmax>400<")
        .replace("<xmin>4<", "<xmin>300<"),
    )
    assert (
        "object 1 (cat): corners 299, 5, 400, 30 in 64 x 48 pixels"
        in refused(root)
    )
    assert len(read_voc(root, drop_boxes=True).parts["train"][0].boxes) == 1


def test_reversed_corners_are_those_of_the_same_box(root):
    spoil(
        root,
        voc_xml("a")
        .replace("<xmax>20<", "<xmax>4<")
        .replace("<xmin>4<", "<xmin>20<"),
    )
    data = read_voc(root)
    assert data.parts["train"][0].boxes.tolist() == [
        [3, 5, 20, 30],
        [10, 0, 64, 48],
    ]
    assert data.notes["boxes with reversed corners, swapped"] == 1


def test_box_that_reaches_out_of_its_image_is_clipped_and_counted(root):
    spoil(root, voc_xml("a").replace("<xmax>64<", "<xmax>67<"))
    data = read_voc(root)
    assert data.parts["train"][0].boxes.tolist() == [
        [3, 5, 20, 30],
        [10, 0, 64, 48],
    ]
    assert data.notes["boxes reaching beyond their image, clipped"] == 1


@pytest.mark.parametrize(
    "name", ["A.PNG", "images\\a.png", "C:\\data\\images\\a.png"]
)
def test_an_image_is_found_by_a_name_that_is_written_another_way(root, name):
    (root / "JPEGImages/a.png").rename(root / "JPEGImages/other.png")
    (root / "JPEGImages/other.png").rename(root / "JPEGImages/a.PNG")
    (root / "Annotations/a.xml").rename(root / "Annotations/x.xml")
    (root / "ImageSets/Main/train.txt").write_text("x\nb\n")
    spoil(
        root,
        voc_xml("a").replace("<filename>a.png<", f"<filename>{name}<"),
        "x",
    )
    assert files(read_voc(root))["train"] == ["a.PNG", "b.png"]


# ---- faults ----


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<annotation>", "is not valid XML: no element found, line 1"),
        (b"", "is not valid XML: no element found"),
        (b"\xff\xfe\x00", "is not valid XML"),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>',
            "has a document type (DTD)",
        ),
        (
            '<!DOCTYPE a [<!ENTITY x "xxxxxxxx"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>',
            "has a document type (DTD)",
        ),
        (
            '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a><a/>'.encode(
                "utf-16"
            ),
            "has a document type (DTD)",
        ),
        (
            voc_xml("a").replace("<xmin>4<", "<xmin>nan<"),
            "object 1 (cat): bndbox is nan, 6, 20, 30, expected xmin, ymin, xmax, ymax",
        ),
        (
            voc_xml("a").replace("<xmin>4<", "<xmin>x<"),
            "object 1 (cat): bndbox is x, 6, 20, 30",
        ),
        (
            voc_xml("a").replace("<name>dog<", "<name> <"),
            "object 2 has no name",
        ),
        (
            voc_xml("a").replace("<width>64<", "<width>65<"),
            "size is 65 x 48, but ",
        ),
    ],
    ids=range(10),
)
def test_annotation_file_that_cannot_be_used_is_named(root, text, what):
    spoil(root, text)
    assert f"{root}/Annotations/a.xml: {what}" in refused(root)


def test_all_faults_are_reported_at_once(root):
    spoil(root, "x")
    spoil(root, "", "b")
    message = refused(root)
    assert (
        f"{root} has 2 faults, nothing was written: " in message
        and "a.xml: is not valid XML" in message
        and "b.xml: is not valid XML" in message
    )


def test_size_that_is_not_given_comes_from_the_file(root):
    spoil(root, voc_xml("a").replace("<width>64<", "<width>0<"))
    assert read_voc(root).parts["train"][0].size == (64, 48)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("../../secret.png", "which leaves the image folder"),
        ("/etc/passwd", "which is an absolute path"),
        ("", "expected a file name"),
        ("none.png", "none.png is missing"),
    ],
)
def test_image_name_that_leads_elsewhere_is_refused(root, name, what):
    (root / "JPEGImages/a.png").rename(root / "JPEGImages/z.png")
    spoil(root, voc_xml("a").replace("a.png", name))
    assert what in refused(root)


def test_image_of_another_name_is_found_by_what_the_file_says(root):
    (root / "JPEGImages/a.png").rename(root / "JPEGImages/z.png")
    spoil(root, voc_xml("a").replace("a.png", "z.png"))
    assert files(read_voc(root))["train"] == ["z.png", "b.png"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "x/y"])
def test_listed_name_that_is_a_path_is_refused_with_its_line(root, name):
    (root / "ImageSets/Main/train.txt").write_text(f"a\n{name}\n")
    assert f"train.txt line 2: '{name}' is not the name of an image" in refused(
        root
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("JPEGImages/a.png", "its image "),
        ("Annotations/a.xml", "leads out of "),
    ],
)
def test_link_out_of_the_data_set_is_refused_unless_trusted(
    root, tmp_path, name, what
):
    (root / name).rename(tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    assert (
        what in (message := refused(root))
        and "give --follow-links if you trust it" in message
    )
    assert len(read_voc(root, follow_links=True).parts["train"]) == 2


def test_image_that_cannot_be_read_is_named(root):
    (root / "JPEGImages/a.png").write_text("no image")
    assert (
        f"a.xml: its image {root}/JPEGImages/a.png is not an image file"
        in refused(root)
    )


@pytest.mark.parametrize("name", ["Annotations", "JPEGImages"])
def test_missing_folder_is_named(root, name):
    (root / name).rename(root / "x")
    assert f"{root} has no folder {name}" in refused(root)


def test_sizes_may_be_written_as_floats_and_lists_may_name_files(root):
    spoil(root, voc_xml("a").replace("<width>64<", "<width>64.0<"))
    (root / "ImageSets/Main/train.txt").write_text("a.png\nb.xml\n")
    assert files(read_voc(root))["train"] == ["a.png", "b.png"]


def test_annotation_files_in_subfolders_are_named(root):
    (root / "ImageSets").rename(root / "Sets")
    (root / "Annotations/sub").mkdir()
    for path in list((root / "Annotations").glob("*.xml")):
        path.rename(root / "Annotations/sub" / path.name)
    assert (
        "Annotations has subfolders; put all XML files into Annotations itself"
        in refused(root)
    )


def test_data_whose_objects_are_all_left_out_are_refused(root):
    for stem in "ab":
        spoil(root, voc_xml(stem, "<difficult>1</difficult>"), stem)
    assert "no box is left; --difficult skip leaves out objects" in refused(
        root, difficult="skip"
    )


def test_tags_of_objects_may_be_written_large_and_two_boxes_in_one_are_a_fault(
    root,
):
    spoil(
        root,
        voc_xml("a")
        .replace("<object>", "<Object>")
        .replace("</object>", "</Object>"),
    )
    assert len(read_voc(root).parts["train"][0].boxes) == 2
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    spoil(root, voc_xml("a").replace("<object>", f"<object>{box}", 1))
    assert "object 1 (cat) has 2 bndbox, expected one" in refused(root)
