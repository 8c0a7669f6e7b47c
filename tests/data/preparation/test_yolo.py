"""The YOLO layout: what `data.yaml` may say, and what is wrong with label files."""

import json

import pytest
from PIL import Image

from src.core.errors import DataError
from src.data.preparation.yolo import label_path, read_yolo
from tests.fixtures.label_formats import write_images, write_yolo, yolo_lines


def files(data, part: str = "train") -> list[str]:
    return [image.file_name for image in data.parts[part]]


def refused(path, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read_yolo(path, **settings)
    return str(caught.value)


# ---- data.yaml ----


@pytest.mark.parametrize(
    "yaml",
    [
        "path: ROOT\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog, 2: owl}\n",
        "path: .\ntrain: [images/train]\nval: [images/val]\nnc: 3\nnames: [cat, dog, owl]\n",
        "train: ../images/train\nval: ../images/val\nnames: [cat, dog, owl]\n",
        "train: train.txt\nval: images/val\nnames: [cat, dog, owl]\n",
        "train: lists.txt\nval: images/val\nnames: [cat, dog, owl]\n",
        "train: absolute.txt\nval: images/val\nnames: [cat, dog, owl]\n",
    ],
)
def test_parts_may_be_folders_lists_and_text_files(tmp_path, yaml):
    path = write_yolo(
        tmp_path / "data", yaml.replace("ROOT", str(tmp_path / "data"))
    )
    (tmp_path / "data/train.txt").write_text(
        "./images/train/a.png\n\n./images/train/b.png\n"
    )
    (tmp_path / "data/lists.txt").write_text(
        "images/train/b.png\nimages/train/a.png\n"
    )
    (tmp_path / "data/absolute.txt").write_text(
        "".join(f"{tmp_path}/data/images/train/{stem}.png\n" for stem in "ba")
    )
    data = read_yolo(path)
    assert data.folder == tmp_path / "data" and data.categories == {
        0: "cat",
        1: "dog",
        2: "owl",
    }
    assert (files(data), files(data, "val")) == (
        ["images/train/a.png", "images/train/b.png"],
        ["images/val/c.png"],
    )
    assert [len(image.boxes) for image in data.parts["train"]] == [2, 1]


def test_folder_stands_for_its_data_yaml(tmp_path):
    write_yolo(tmp_path / "data")
    assert len(files(read_yolo(tmp_path / "data"))) == 2


def test_test_images_are_a_part_of_their_own(tmp_path):
    data = read_yolo(
        write_yolo(
            tmp_path,
            "train: images/train\nval: images/val\ntest: images/val\nnames: [cat, dog, owl]\n",
        )
    )
    assert sorted(data.parts) == ["test", "train", "val"]


def test_class_numbers_with_gaps_are_kept(tmp_path):
    data = read_yolo(
        write_yolo(
            tmp_path,
            "train: images/train\nval: images/val\nnames: {0: cat, 1: dog, 2: owl, 9: cow}\n",
        )
    )
    assert list(data.categories) == [0, 1, 2, 9] and data.parts["train"][
        0
    ].categories.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        (
            "train: images/train\n",
            "names is None, expected a list of class names",
        ),
        ("names: [a]\n", '"train" is missing'),
        ("train: nowhere\nnames: [a]\n", "data/nowhere does not exist"),
        ("train: 5\nnames: [a]\n", "data/5 does not exist"),
        ("train: {a: b}\nnames: [a]\n", "train: {'a': 'b'}, expected a folder"),
        (
            "train: images/train\nnames: [a]\nnc: 2\n",
            "nc is 2, but the number of names is 1",
        ),
        ("[1, 2]", "holds a list, expected train, val and names"),
        ("a: [", "is not valid YAML"),
        ("x: !!python/object/apply:os.getcwd []", "names is None"),
        ("path: nowhere\ntrain: a\nnames: [a]\n", "path is nowhere"),
        ("train: labels/val\nnames: [a]\n", "there is no image behind train"),
        ("train: /etc\nnames: [a]\n", "/etc is outside"),
        ("train: images/../../..\nnames: [a]\n", "is outside"),
        ("train: /etc/passwd\nnames: [a]\n", "is outside"),
    ],
)
def test_description_that_cannot_be_used_is_refused_with_its_key(
    tmp_path, yaml, text
):
    assert text in refused(write_yolo(tmp_path / "data", yaml))


@pytest.mark.parametrize(
    "names",
    ["[yes, no, on]", "\n  0: yes\n  1: no\n  2: on", "\n- yes\n- no\n- on"],
    ids=["list", "map", "lines"],
)
def test_names_stay_text(tmp_path, names):
    path = write_yolo(tmp_path, f"train: images/train\nnames: {names}\n")
    assert read_yolo(path).categories == {0: "yes", 1: "no", 2: "on"}


def test_names_that_look_like_numbers_dates_or_nothing_stay_text(tmp_path):
    path = write_yolo(
        tmp_path,
        "train: images/train\nnc: 6\nnames: [012, 1e3, null, 2024-01-01, 0x1F, ~]\n",
    )
    assert list(read_yolo(path).categories.values()) == [
        "012",
        "1e3",
        "null",
        "2024-01-01",
        "0x1F",
        "~",
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    path = write_yolo(tmp_path)
    for file in (path, tmp_path / "labels/train/a.txt"):
        file.write_text(file.read_text(), encoding=encoding)
    assert read_yolo(path).parts["train"][0].boxes.shape == (2, 4)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_part_that_is_listed_but_not_there_is_left_out_with_a_note(
    tmp_path, part
):
    path = write_yolo(
        tmp_path,
        f"train: images/train\n{part}: ../{part}/images\nnames: [cat, dog, owl]\n",
    )
    data = read_yolo(path)
    assert list(data.parts) == ["train"]
    assert list(data.notes) == [
        f"{path}: {part} is listed but does not exist, left out (../{part}/images)"
    ] or (
        data.notes[
            f"{path}: {part} is listed but does not exist, left out (../{part}/images)"
        ]
        == 1
    )


def test_images_count_by_their_content_and_other_files_are_counted(tmp_path):
    path = write_yolo(tmp_path)
    folder = tmp_path / "images/train"
    Image.new("RGB", (8, 8)).save(folder / "c.jfif", "JPEG")
    Image.new("RGB", (8, 8)).save(folder / "d.image", "PNG")
    (folder / "Thumbs.db").write_bytes(b"x")
    data = read_yolo(path)
    assert [image.file_name for image in data.parts["train"]] == [
        f"images/train/{name}"
        for name in ("a.png", "b.png", "c.jfif", "d.image")
    ]
    assert data.notes["files .db among the images, which are not read"] == 1


# ---- labels ----


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("images/images/a.b.png", "images/labels/a.b.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("a.jpg", "a.txt"),
        ("set/images.jpg", "set/images.txt"),
        ("myimages/a.jpg", "myimages/a.txt"),
    ],
)
def test_labels_are_beside_the_images_or_in_the_labels_folder_for_the_last_images_folder(
    image, labels
):
    assert label_path(image) == labels


def test_labels_are_found_if_the_root_lies_in_a_folder_of_images_itself(
    tmp_path,
):
    write_images(tmp_path / "images/set/train", "ab")
    (tmp_path / "labels/set/train").mkdir(parents=True)
    for stem in "ab":
        (tmp_path / f"labels/set/train/{stem}.txt").write_text(yolo_lines(stem))
    (tmp_path / "data.yaml").write_text(
        "path: images/set\ntrain: train\nnames: [cat, dog, owl]\n"
    )
    assert [
        len(image.boxes)
        for image in read_yolo(tmp_path / "data.yaml").parts["train"]
    ] == [2, 1]


def test_missing_and_empty_label_files_are_images_without_objects(tmp_path):
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/b.txt").write_text("\n \n")
    data = read_yolo(path)
    assert [len(image.boxes) for image in data.parts["train"]] == [2, 0]
    assert (
        data.notes["images without a label file, taken as without objects"] == 1
    )


def test_data_without_any_box_are_refused_with_where_labels_were_looked_for(
    tmp_path,
):
    path = write_yolo(tmp_path)
    for stem in "ab":
        (tmp_path / f"labels/train/{stem}.txt").unlink()
    assert refused(path).endswith(
        f"no training image has a box; labels of {tmp_path}/images/train/a.png would be in "
        f"{tmp_path}/labels/train/a.txt"
    )


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("1 0.25 0.25 0.75 0.25 0.75 0.5", [16, 12, 48, 24]),
        ("1 0.25 0.25 0.75 0.25 0.75 0.5 0.3 0.6", [16, 12, 48, 28.8]),
        ("1.0 0.5 0.5 0.5 0.5", [16, 12, 48, 36]),
        ("1 1.0 0.5 0.5 0.5", [48, 12, 64, 36]),
        ("1 1.0000004 0.5 0.5 0.5", [48, 12, 64, 36]),
    ],
)
def test_polygons_and_boxes_become_corners_inside_the_image(
    tmp_path, line, box
):
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(line)
    image = read_yolo(path).parts["train"][0]
    assert image.categories.tolist() == [1] and image.boxes.round(
        2
    ).tolist() == [box]


def test_keypoints_behind_a_box_are_ignored(tmp_path):
    path = write_yolo(
        tmp_path,
        "train: images/train\nnames: [cat, dog, owl]\nkpt_shape: [2, 3]\n",
    )
    (tmp_path / "labels/train/a.txt").write_text(
        "1 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 1"
    )
    assert read_yolo(path).parts["train"][0].boxes.tolist() == [
        [16, 12, 48, 36]
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "3 0.5 0.5 0.5 0.5",
            "class 3 is not among the 3 names (numbers 0 to 2)",
        ),
        ("-1 0.5 0.5 0.5 0.5", "class -1 is not among"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5 is not among"),
        ("nan 0.5 0.5 0.5 0.5", "class nan is not among"),
        (
            "0 nan 0.5 0.5 0.5",
            "coordinate nan, expected fractions of the image from 0 to 1",
        ),
        (
            "0 0.5 1.6 0.5 0.5",
            "coordinate 1.6, expected fractions of the image from 0 to 1",
        ),
        (
            "0 320 240 50 50",
            "coordinate 320, expected fractions of the image from 0 to 1 (pixels?)",
        ),
        (
            "0 0.5 0.5 0.5",
            "4 columns, expected 5 (class cx cy w h) or a class and three or more points",
        ),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 columns, expected 5"),
        ("cat 0.5 0.5 0.5 0.5", "'cat 0.5 0.5 0.5 0.5', expected numbers"),
        ("0", "1 columns"),
    ],
)
def test_line_that_is_not_a_box_is_refused_with_file_and_line(
    tmp_path, line, text
):
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(f"{yolo_lines('a')}\n{line}\n")
    message = refused(path)
    assert message.startswith(f"{path} has 1 fault, nothing was written: ")
    assert f"(1): {tmp_path}/labels/train/a.txt line 4: {text}" in message


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5 0 0.5", "0 1.2 0.5 0.1 0.5"], ids=["no area", "outside"]
)
def test_box_that_cannot_be_used_is_a_fault_unless_it_may_be_dropped(
    tmp_path, line
):
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(f"{line}\n1 0.5 0.5 0.5 0.5\n")
    message = refused(path)
    assert (
        f"boxes without area or outside their image (1): {tmp_path}/labels/train/a.txt line 1: "
        in message
    )
    assert "--drop-boxes leaves it out" in message
    data = read_yolo(path, drop_boxes=True)
    assert len(data.parts["train"][0].boxes) == 1
    assert data.notes["boxes without area or outside their image, dropped"] == 1


def test_coordinates_a_little_outside_are_clipped_and_counted(tmp_path):
    """As in a real export, whose coordinates go from -0.0078 to 1.03."""
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(
        "0 0.0261 0.5 0.0678 0.5\n1 0.9 0.2 1.03 0.2 1.03 0.9\n"
    )
    data = read_yolo(path)
    boxes = data.parts["train"][0].boxes
    assert (
        boxes[:, 0].tolist() == pytest.approx([0, 57.6], abs=0.01)
        and boxes[1, 2] == 64
    )
    assert data.notes["boxes reaching beyond their image, clipped"] == 1
    (tmp_path / "labels/train/a.txt").write_text("0 0.0261 0.5 0.08 0.5\n")
    assert (
        read_yolo(path).notes["boxes reaching beyond their image, clipped"] == 1
    )


def test_a_negative_width_is_that_of_the_same_box(tmp_path):
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 -0.5 0.5\n")
    data = read_yolo(path)
    assert data.parts["train"][0].boxes.tolist() == [[16, 12, 48, 36]]
    assert data.notes["boxes with reversed corners, swapped"] == 1


def test_many_faults_are_grouped_by_kind(tmp_path):
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(
        "0 90 0.5 0.5 0.5\n" * 40 + "7 0.5 0.5 0.5 0.5\n" * 2
    )
    message = refused(path)
    assert (
        "has 42 faults, nothing was written: coordinates far outside 0 to 1 (40): "
        in message
    )
    assert (
        "; ... and 35 more. classes without a name (2): " in message
        and len(message) < 2000
    )


# ---- images ----


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("../secret.png", "is outside"),
        ("/etc/passwd", "is outside"),
        ("images/../../x.png", "is outside"),
        ("images/train/none.png", "images/train/none.png: is missing"),
        ("images/tr\x07.png", "which contains a control character"),
    ],
)
def test_listed_file_that_is_not_in_the_data_set_is_refused(
    tmp_path, line, text
):
    path = write_yolo(
        tmp_path / "data", "train: train.txt\nnames: [cat, dog, owl]\n"
    )
    (tmp_path / "data/train.txt").write_text(f"images/train/a.png\n{line}\n")
    assert text in refused(path)


@pytest.mark.parametrize("name", ["images/train/a.png", "labels/train/a.txt"])
def test_link_out_of_the_data_set_is_refused_unless_trusted(tmp_path, name):
    path = write_yolo(tmp_path / "data")
    (tmp_path / "data" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    assert (
        f"images/train/a.png: or its labels lead out of {tmp_path}/data to {tmp_path}/elsewhere"
        in refused(path)
    )
    assert len(read_yolo(path, follow_links=True).parts["train"]) == 2


def test_file_that_is_not_an_image_is_named(tmp_path):
    path = write_yolo(tmp_path)
    (tmp_path / "images/train/b.png").write_text(json.dumps({}))
    assert f"{tmp_path}/images/train/b.png: is not an image file" in refused(
        path
    )


# ---- nothing is lost ----


@pytest.mark.parametrize("key", ["valid", "validation"])
def test_validation_images_may_be_named_valid(tmp_path, key):
    data = read_yolo(
        write_yolo(
            tmp_path,
            f"train: images/train\n{key}: images/val\nnames: [cat, dog, owl]\n",
        )
    )
    assert files(data, "val") == ["images/val/c.png"]


@pytest.mark.parametrize("rename", ["a.png.txt", "a.TXT"])
def test_labels_are_found_under_the_names_that_other_tools_give_them(
    tmp_path, rename
):
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train" / rename)
    assert [len(image.boxes) for image in read_yolo(path).parts["train"]] == [
        2,
        1,
    ]


def test_label_files_without_an_image_are_a_fault_unless_they_may_be_dropped(
    tmp_path,
):
    path = write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").rename(tmp_path / "labels/train/z.txt")
    (tmp_path / "labels/train/classes.txt").write_text("cat\ndog\n")
    message = refused(path)
    assert (
        f"label files without an image (1): {tmp_path}/labels/train/z.txt: "
        in message
    )
    assert (
        read_yolo(path, drop_boxes=True).notes[
            "label files without an image, left out"
        ]
        == 1
    )


def test_labels_of_images_that_no_list_names_are_counted(tmp_path):
    path = write_yolo(
        tmp_path, "train: train.txt\nval: images/val\nnames: [cat, dog, owl]\n"
    )
    (tmp_path / "train.txt").write_text("images/train/a.png\n")
    data = read_yolo(path)
    assert files(data) == ["images/train/a.png"]
    assert data.notes["labels of images that no list names, left out"] == 1


def test_training_images_without_any_box_are_refused_although_validation_has_some(
    tmp_path,
):
    path = write_yolo(
        tmp_path,
        "train: images/val\nval: images/train\nnames: [cat, dog, owl]\n",
    )
    assert "no training image has a box" in refused(path)


def test_corners_are_refused(tmp_path):
    path = write_yolo(tmp_path)
    corners = "".join(
        f"0 {x} 0.1 {x + 0.35:.2f} {0.6 + x / 4}\n"
        for x in (0.2, 0.3, 0.45, 0.5, 0.6)
    )
    (tmp_path / "labels/train/a.txt").write_text(corners)
    (tmp_path / "labels/train/b.txt").write_text(corners)
    assert "boxes in another format (1)" in refused(
        path
    ) and "would fit as x1 y1 x2 y2" in refused(path)


def test_a_path_of_another_machine_is_ignored_with_a_note_if_the_images_are_there(
    tmp_path,
):
    path = write_yolo(
        tmp_path,
        "path: /content/x\ntrain: images/train\nval: images/val\nnames: [cat, dog, owl]\n",
    )
    data = read_yolo(path)
    assert any(
        "path is /content/x, which does not exist" in note
        for note in data.notes
    )
    path.write_text(path.read_text().replace("images/train", "elsewhere"))
    assert "path is /content/x, which is not a folder" in refused(
        path
    ) and "remove the line" in refused(path)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            "names: [\u732b\u72d7]\n".encode("gbk"),
            "is not UTF-8 (byte 10): save it in this encoding",
        ),
        (b"train: images\n\tval: x\n", "line 2"),
        (b"train: images/train\nnames: ['', a]\n", "names is"),
    ],
)
def test_description_that_cannot_be_read_says_where(tmp_path, raw, text):
    path = write_yolo(tmp_path)
    path.write_bytes(raw)
    assert text in refused(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train/_annotations.coco.json", "which need no conversion"),
        ("obj.names", "Darknet's layout"),
        ("classes.txt", "classes.txt has the class names"),
        ("train/a.xml", "put them into Annotations/"),
        ("labels.json", "other tools can export to COCO"),
        ("a.png", "docs/data.md describes"),
    ],
)
def test_a_folder_without_a_description_is_refused_with_its_apparent_layout(
    tmp_path, name, text
):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert "has no data.yaml; " in refused(tmp_path) and text in refused(
        tmp_path
    )
