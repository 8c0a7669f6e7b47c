"""Corrupt annotation files, configurations, checkpoints and images at random, and check how they are handled.

    # 500 + 300 + 100 + 60 files, about a minute on one core
    python tests/harness/fuzz.py --seed 0

    python tests/harness/fuzz.py --labels 20 --configs 10 --checkpoints 5 --images 5

Each malformed file must either be refused by one of the project's own errors, or be read correctly: with
the same result as a simple reader of the same file, and with every dropped or clipped box counted in the
findings. Anything else is a fault: another exception, a silent change, no answer within ten seconds, a file
that is written to, code that runs. The exit code is 1 if there is a fault.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LIMIT = 10
"""Seconds for one file."""
JUNK = (
    None,
    True,
    -1,
    0,
    1,
    3.7,
    1e30,
    -1e30,
    float("nan"),
    float("inf"),
    1 << 70,
    "",
    "1",
    "x",
    "../x",
    "\0",
    [],
    [1],
    [1, 2, 3, 4],
    {},
    {"id": 1},
)


class Wrong(Exception):
    """A file was accepted and read incorrectly."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, count in (
        ("labels", 500),
        ("configs", 300),
        ("checkpoints", 100),
        ("images", 60),
    ):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=count,
            help=f"number of malformed {name}",
        )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    faults = 0
    print(
        "| kind | n | refused clearly | accepted and right | faults |\n| --- | --- | --- | --- | --- |"
    )
    for name, make in (
        ("labels", labels),
        ("configs", configs),
        ("checkpoints", checkpoints),
        ("images", images),
    ):
        with tempfile.TemporaryDirectory() as folder:
            count, rng = (
                getattr(arguments, name),
                random.Random(f"{name} {arguments.seed}"),
            )
            spoil = make(Path(folder), rng)
            ends = Counter(
                judge(Path(folder), name, number, *spoil(number))
                for number in range(count)
            )
        print(
            f"| {name} | {count} | {ends['refused']} | {ends['right']} | {ends['fault']} |",
            flush=True,
        )
        faults += ends["fault"]
    sys.exit(1 if faults else 0)


def judge(
    folder: Path, kind: str, number: int, path: Path, read: Callable[[], None]
) -> str:
    """Read a malformed file; return the outcome and print errors."""
    from src.core.errors import RunError

    before = hashlib.sha256(path.read_bytes()).digest()
    signal.alarm(LIMIT)
    try:
        read()
        end, why = "right", ""
    except RunError as error:
        end, why = (
            ("refused", "")
            if path.name in str(error)
            else ("fault", f"the file is not named: {error}")
        )
    except BaseException as error:
        end, why = "fault", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    if hashlib.sha256(path.read_bytes()).digest() != before:
        end, why = "fault", "the file was written to"
    if (folder / "canary").exists():
        end, why = "fault", "code in it ran"
    if end == "fault":
        sys.stderr.write(f"{kind} {number}: {why[:300]}\n")
    return end


def _too_slow(*_) -> None:
    raise TimeoutError(f"no answer within {LIMIT} s")


# ---- annotation files ----


def labels(folder: Path, rng: random.Random):
    """Return a function that makes the file of a number, and the function that reads it."""
    from src.data.dataset.coco_format import load_coco

    path = folder / "labels.json"

    def spoil(_: int):
        content = sound_labels(rng)
        for _ in range(rng.choice((1, 1, 2, 4))):
            change_labels(content, rng)
        raw = json.dumps(content).encode()
        path.write_bytes(garbled(raw, rng) if rng.random() < 0.15 else raw)

        def read() -> None:
            compare_labels(
                load_coco(path),
                json.loads(path.read_bytes().decode("utf-8-sig")),
            )

        return path, read

    return spoil


def sound_labels(rng: random.Random) -> dict:
    """Return labels of 12 images of 200 x 100 pixels: unordered ids, categories, polygons, a crowd."""
    ids, categories = rng.sample(range(1000), 12), rng.sample(range(100), 4)
    annotations = [
        {
            "id": n + 1,
            "image_id": rng.choice(ids[:11]),
            "category_id": rng.choice(categories),
            "iscrowd": int(n == 7),
            "area": 50.5,
            "bbox": [
                round(rng.uniform(0, 150), 2),
                round(rng.uniform(0, 60), 2),
                round(rng.uniform(2, 45), 2),
                round(rng.uniform(2, 35), 2),
            ],
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        }
        for n in range(150)
    ]
    return {
        "info": {},
        "images": [
            {"id": i, "file_name": f"a/{i}.jpg", "width": 200, "height": 100}
            for i in ids
        ],
        "annotations": annotations,
        "categories": [
            {"id": c, "name": f"class {c}", "supercategory": "x"}
            for c in categories
        ],
    }


def change_labels(content: dict, rng: random.Random) -> None:
    """Change one thing, as people, scripts and converters do."""
    part = rng.choice(("images", "annotations", "annotations", "categories"))
    records = content.get(part)
    if rng.random() < 0.05 or not isinstance(records, list) or not records:
        content[part] = rng.choice(JUNK)
        return
    index = rng.randrange(len(records))
    record, way = records[index], rng.randrange(9)
    if not isinstance(record, dict) or not record:
        return
    key = rng.choice(list(record))
    if way == 0:
        del record[key]
    elif way == 1:
        record[key] = rng.choice(JUNK)
    elif way == 2:
        records.insert(rng.randrange(len(records)), copy.deepcopy(record))
    elif way == 3:
        del records[index]
    elif way == 4:
        records[index] = rng.choice(JUNK)
    elif way == 5:
        rng.shuffle(records)
    elif isinstance(record.get("bbox"), list) and len(record["bbox"]) == 4:
        record["bbox"][rng.randrange(4)] = (
            rng.choice((*JUNK, 0, -5, 190, 199.9, 400, 1e-9, 90.25))
            if way < 8
            else rng.uniform(-50, 250)
        )
    else:
        other = records[rng.randrange(len(records))]
        record[key] = other.get(key) if isinstance(other, dict) else None


def compare_labels(found, content: dict) -> None:
    """Compare the labels with a simple reading of the file, record by record."""
    import numpy as np

    names = {c["id"]: c["name"] for c in content["categories"]}
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in content["images"]
    }
    expected, changes = (
        {image["id"]: [] for image in content["images"]},
        Counter(),
    )
    if len(sizes) != len(content["images"]) or len(names) != len(
        content["categories"]
    ):
        raise Wrong("duplicate id")
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        with np.errstate(over="ignore"):
            box = [float(np.float32(v)) for v in (x, y, x + w, y + h)]
        limits = sizes[record["image_id"]] * 2
        inside = [
            min(max(value, 0.0), float(limit))
            for value, limit in zip(box, limits)
        ]
        if box[2] <= box[0] or box[3] <= box[1]:
            changes["boxes without area, dropped"] += 1
        elif inside[2] <= inside[0] or inside[3] <= inside[1]:
            changes["boxes outside their image, dropped"] += 1
        else:
            changes["boxes reaching beyond their image, clipped"] += any(
                abs(a - b) > 0.5 for a, b in zip(box, inside)
            )
            changes["missing areas, computed from the box"] += (
                record.get("area") is None
            )
            expected[record["image_id"]].append(
                (
                    inside,
                    names[record["category_id"]],
                    bool(record.get("iscrowd")),
                )
            )
    noted = {
        note.kind.text: len(note.index)
        for note in found.findings.notes
        if note.kind.text in changes
    }
    if noted != {text: count for text, count in changes.items() if count}:
        raise Wrong(f"noted {noted}, expected {dict(changes)}")
    if found.image_ids.tolist() != list(expected) or found.sizes.tolist() != [
        list(sizes[i]) for i in expected
    ]:
        raise Wrong("the images differ")
    for index, (image, boxes) in enumerate(expected.items()):
        rows = found.rows(index)
        ours = list(
            zip(
                found.boxes[rows].tolist(),
                (
                    found.category_names[c]
                    for c in found.categories[rows].tolist()
                ),
                found.crowds[rows].tolist(),
            )
        )
        if ours != boxes:
            raise Wrong(f"image {image}: {ours} is not {boxes}"[:300])


# ---- configurations ----


def configs(folder: Path, rng: random.Random):
    """Return a function that makes the file of a number, and the function that reads it."""
    from src.core import YAMLConfig
    from src.core.yaml_text import dump_yaml

    path, sound = (
        folder / "malformed.yml",
        YAMLConfig(ROOT / "configs/dfine/demo/dfine_dinov3_demo.yml").yaml_cfg,
    )
    tags = [
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{folder}/canary']]",
        f"!!python/object/new:os.system ['touch {folder}/canary']",
        "!!python/name:os.system",
        "&a [*a]",
        "!!binary x",
        "1e-4",
        "no",
        "012",
        "2020-13-40",
    ]

    def spoil(number: int):
        values = copy.deepcopy(sound)
        for _ in range(rng.choice((1, 1, 3))):
            change_config(values, rng)
        text = dump_yaml(values)
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        match number % 6:
            case 0:
                lines.insert(at, lines[at])
            case 1:
                lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(tags)}"
            case 2:
                lines[at] = (
                    rng.choice(
                        (
                            "\t",
                            " ",
                            "- ",
                            "  ",
                            ": ",
                            "{",
                            "'",
                            "\x00",
                            "%",
                            "@",
                        )
                    )
                    + lines[at]
                )
        path.write_bytes(
            garbled(text.encode(), rng)
            if number % 6 == 3
            else "\n".join(lines).encode()
        )
        return path, lambda: compare_config(
            YAMLConfig(path).yaml_cfg, path.read_text(encoding="utf-8-sig")
        )

    return spoil


def change_config(values: dict, rng: random.Random) -> None:
    """Change one value or key, at any depth."""
    place = values
    while True:
        key = (
            rng.choice(list(place))
            if isinstance(place, dict)
            else rng.randrange(len(place))
        )
        if (
            not isinstance(place[key], dict | list)
            or not place[key]
            or rng.random() < 0.2
        ):
            break
        place = place[key]
    if isinstance(place, dict) and rng.random() < 0.3:
        place[f"{key}{rng.choice('sx_')}"] = place.pop(key)
    else:
        place[key] = rng.choice(
            [value for value in JUNK if value != "\0"]
            + [{"type": "DFINE"}, {"type": 5}, [{"type": "Resize"}]]
        )


def compare_config(found: dict, text: str) -> None:
    """Compare settings with those of a standard parser, which reads 1e-4 as a string."""
    import yaml

    plain = yaml.safe_load(text) or {}

    def agree(ours, theirs) -> bool:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return all(
                agree(ours.get(key), theirs.get(key))
                for key in {*ours, *theirs}
            )
        if isinstance(ours, list) and isinstance(theirs, list):
            return len(ours) == len(theirs) and all(map(agree, ours, theirs))
        if isinstance(ours, float) and isinstance(theirs, str):
            return ours == float(theirs)
        return type(ours) is type(theirs) and ours == theirs

    if not agree(found, plain):
        raise Wrong("a value is not what the file says")


# ---- checkpoints ----


def checkpoints(folder: Path, rng: random.Random):
    """Return a function that makes the file of a number, and the function that reads it."""
    import torch

    from src.detection.weight_file import read_weights
    from src.runtime.weight_files import write_tensor_file

    path = folder / "malformed.pth"
    sound = {
        f"layer{n}.weight": torch.randn(
            20, 20, generator=torch.Generator().manual_seed(n)
        )
        for n in range(4)
    }
    write_tensor_file(
        path, {"model": sound, "meta": {"classes": [{"id": 1, "name": "cat"}]}}
    )
    raw = path.read_bytes()

    class Touches:
        def __reduce__(self):
            return Path.touch, (folder / "canary",)

    objects = [
        Touches(),
        [1],
        {},
        {"model": Touches()},
        {"model": {"w": 1}},
        {"model": {"w": torch.tensor(float("nan"))}},
        {"foo": 1},
        None,
        "x",
    ]

    def spoil(number: int):
        whole = number % 4 != 3
        if whole:
            path.write_bytes(
                garbled(raw, rng) if number % 4 else flipped(raw, rng)
            )
        else:
            torch.save(rng.choice(objects), path)

        def read() -> None:
            weights = read_weights(path).weights
            if (
                not whole
                or weights.keys() != sound.keys()
                or any(
                    not torch.equal(weights[key], sound[key]) for key in sound
                )
            ):
                raise Wrong("other weights than were saved")

        return path, read

    return spoil


# ---- images ----


def images(folder: Path, rng: random.Random):
    """Return a function that makes the file of a number, and the function that reads it."""
    import numpy as np
    from PIL import Image

    from src.data.dataset.decoding import load_image

    width, height = 60, 40
    colours = np.random.default_rng(0).integers(
        0, 256, (height, width, 3), np.uint8
    )
    kinds = [
        ("RGB", "png"),
        ("RGB", "jpg"),
        ("L", "png"),
        ("L", "jpg"),
        ("P", "png"),
        ("P", "gif"),
        ("1", "png"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("RGB", "webp"),
        ("RGB", "bmp"),
        ("I;16", "png"),
        ("F", "tif"),
    ]

    def spoil(number: int):
        mode, suffix = kinds[number % len(kinds)]
        path = folder / f"{number}.{suffix}"
        grey = Image.fromarray(colours).convert("L")
        image = (
            Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
            if mode == "I;16"
            else Image.fromarray(colours).convert(mode)
        )
        image.save(path, **({"lossless": True} if suffix == "webp" else {}))
        damaged = rng.random() < 0.5
        if damaged:
            raw = path.read_bytes()
            path.write_bytes(
                rng.choice(
                    (
                        garbled(raw, rng),
                        b"",
                        b"<html>404</html>",
                        raw[: len(raw) // 2],
                        flipped(raw, rng),
                    )
                )
            )

        def read() -> None:
            found = load_image(path, (width, height)).permute(1, 2, 0).numpy()
            if found.shape != (height, width, 3) or found.dtype != np.uint8:
                raise Wrong(f"{found.shape} {found.dtype}")
            with contextlib.redirect_stderr(io.StringIO()):
                plain = (
                    grey.convert("RGB")
                    if mode == "I;16" and not damaged
                    else Image.open(path).convert("RGB")
                )
            limit = 3 if suffix == "jpg" else 1
            if (
                not (damaged and mode == "I;16")
                and np.abs(
                    found.astype(int) - np.asarray(plain).astype(int)
                ).max()
                > limit
            ):
                raise Wrong(
                    f"pixels of a {mode} {suffix} differ from a plain reading"
                )

        return path, read

    return spoil


# ---- damage ----


def garbled(raw: bytes, rng: random.Random) -> bytes:
    """Cut, repeat, lose or overwrite a piece."""
    at, length = rng.randrange(len(raw)), rng.choice((1, 2, 10, 200))
    return rng.choice(
        (
            raw[:at],
            raw[:at] + raw[at + length :],
            raw[: at + length] + raw[at:],
            raw[:at]
            + bytes(rng.randrange(256) for _ in range(length))
            + raw[at + length :],
        )
    )


def flipped(raw: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    changed = bytearray(raw)
    changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(changed)


if __name__ == "__main__":
    main()
