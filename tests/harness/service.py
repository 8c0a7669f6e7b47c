"""Run a detector as a long-lived service and mix bad items into its requests (docs/deployment.md, "Serving").

    python tests/harness/service.py                            # 2,000 predictions, one minute on one core
    python tests/harness/service.py --predictions 20000 --seed 1

One process predicts requests of 1 to 16 images, one in twenty of which is bad: truncated, missing, a FIFO, a
text file, an image of too many pixels, an object of a wrong type, an array of a wrong shape. Every image must
have one result in its place: good ones the boxes that they have alone, bad ones an error. The memory of the
process must not grow by more than 20 MB after the first tenth of the requests. The C library uses
one heap (MALLOC_ARENA_MAX=1), because the heaps of several threads grow for a while by fragmentation, which
hides leaks. Exit code 1 if one of these does not hold.
"""

import argparse
import gc
import os
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LARGEST_REQUEST = 16

GROWTH_MB = 20
"""Growth of the memory that is allowed after the warm-up."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--predictions", type=int, default=2000)
    parser.add_argument(
        "--bad", type=float, default=0.05, help="fraction of bad items"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if "MALLOC_ARENA_MAX" not in os.environ:  # it is read when a process starts
        os.environ["MALLOC_ARENA_MAX"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    import torch

    from src.inference import Detector
    from tests.fixtures.trained_tiny import TRAINED

    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    detector = Detector.from_checkpoint(TRAINED, device="cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = good_items(folder)
        bad = bad_items(folder)
        expected = {kind: detector.predict(item) for kind, item in good.items()}
        counts = dict.fromkeys([*good, *bad], 0)
        faults = []
        seconds = []
        done = 0
        sizes = []
        began = time.monotonic()
        while done < arguments.predictions:
            kinds = []
            size = min(
                rng.randint(1, LARGEST_REQUEST), arguments.predictions - done
            )
            for _ in range(size):
                items = bad if rng.random() < arguments.bad else good
                kinds.append(rng.choice(list(items)))
            request = [
                good[kind] if kind in good else bad[kind] for kind in kinds
            ]
            at = time.monotonic()
            found = detector.predict(request, errors="skip")
            seconds.append(time.monotonic() - at)
            faults += faults_of(kinds, found, expected)
            for kind in kinds:
                counts[kind] += 1
            done += size
            if done >= arguments.predictions * (len(sizes) + 1) / 10:
                sizes.append(memory_mb())
    print("memory at each tenth:", *(f"{size:.0f}" for size in sizes), "MB")
    warm = sizes[0]
    end = sizes[-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    is_flat = end - warm <= GROWTH_MB
    wrong = sum(counts[kind] for kind in bad)
    print(
        f"{done} predictions in {len(seconds)} requests, {time.monotonic() - began:.0f} s"
    )
    print(
        f"bad items: {wrong}, of "
        + ", ".join(f"{kind} {counts[kind]}" for kind in bad)
    )
    print(
        f"results that are missing, in another place or different: {len(faults)}"
    )
    print(f"longest request: {max(seconds):.2f} s")
    print(f"memory after the warm-up: {warm:.1f} MB, at the end: {end:.1f} MB")
    print(f"peak of memory: {peak:.0f} MB")
    for fault in faults[:10]:
        print(fault)
    sys.exit(0 if is_flat and not faults else 1)


def good_items(folder: Path) -> dict:
    """Return images of several kinds by name, which all have detections."""
    import numpy as np
    from PIL import Image

    from src.data.dataset.synthetic import draw_scene

    items = {}
    for number in range(6):
        scene = draw_scene(np.random.default_rng(number), 64)[0]
        path = folder / f"{number}.png"
        Image.fromarray(scene).save(path)
        items[f"file {number}"] = path
        items[f"array {number}"] = scene
    scene = Image.fromarray(scene)
    scene.resize((1600, 1200)).save(folder / "large.jpg")
    items["large file"] = folder / "large.jpg"
    return items


def bad_items(folder: Path) -> dict:
    """Return items without a prediction by kind."""
    import numpy as np

    whole = (folder / "large.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture\n" * 100)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "fifo.jpg")
    huge = black_png(20_000)
    (folder / "huge.png").write_bytes(huge)
    (folder / "huge_truncated.png").write_bytes(huge[: len(huge) // 2])
    paths = "truncated.jpg", "empty.jpg", "text.jpg", "folder.jpg", "fifo.jpg"
    paths += "huge.png", "huge_truncated.png", "missing.jpg"
    return {
        **{name: folder / name for name in paths},
        "device": "/dev/zero",
        "None": None,
        "dict": {"image": "0.png"},
        "number": 7,
        "wrong shape": np.zeros((8, 8, 4), np.uint8),
        "wrong type": np.zeros((8, 8, 3)),
        "no pixels": np.zeros((0, 8, 3), np.uint8),
    }


def black_png(side: int) -> bytes:
    """Return a black image of these sides without holding its pixels in memory."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packer = zlib.compressobj()
    rows = [packer.compress(bytes(side + 1)) for _ in range(side)]
    content = b"".join([*rows, packer.flush()])
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        parts += [struct.pack(">I", len(data)), kind, data, crc]
    return b"".join(parts)


def faults_of(kinds: list[str], found: list, expected: dict) -> list[str]:
    """Return what is wrong with the results of a request."""
    import numpy as np

    if len(found) != len(kinds):
        return [f"{len(found)} results for {len(kinds)} images"]
    faults = []
    for kind, one in zip(kinds, found):
        if kind not in expected:
            if one.error is None or len(one):
                faults.append(f"{kind}: no error")
            continue
        right = expected[kind]
        is_right = one.error is None and one.source == right.source
        if not is_right or one.names != right.names:
            faults.append(f"{kind}: {one}")
        elif not np.allclose(one.boxes, right.boxes, atol=1e-2):
            faults.append(f"{kind}: boxes differ")
    return faults


def memory_mb() -> float:
    """Return the resident memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
