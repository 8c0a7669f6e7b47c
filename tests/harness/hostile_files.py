"""Let the checkpoint readers read files made to run code, exhaust memory or mislead them.

    python tests/harness/hostile_files.py                      # about a minute on one core
    python tests/harness/hostile_files.py --only bomb          # files whose name contains "bomb"

Each file is read in a process of its own, as `-r last.pth` and `-t` would read it. Both must refuse it with
exit code 4 and one line that names the file and does not advise to load it anyway. No code may run, and
memory may grow by at most 50 MB. Otherwise the exit code is 1. docs/reliability.md has the results.
"""

import argparse
import io
import json
import os
import pickle
import resource
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

GROWTH, SECONDS, ADDRESS_SPACE = 50_000, 20, 4 << 30
"""Allowed growth in KB and seconds; bytes at which the system stops a reader, to protect the machine."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default="", help="only files whose name contains this text"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    import torch

    from src.detection import weight_file  # noqa: F401  children find it imported

    torch.set_num_threads(1)
    faults, grown = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        kinds = {
            kind: write
            for kind, write in hostile_files(folder / "canary").items()
            if arguments.only in kind
        }
        for number, (kind, write) in enumerate(kinds.items()):
            path = (
                folder
                / f"file{number}{'.safetensors' if 'safetensors' in kind else '.pth'}"
            )
            write(path)
            fault, growth = judge(folder, path)
            grown.append(growth)
            if fault:
                faults.append(kind)
                sys.stderr.write(f"{kind}: {fault}\n")
            path.unlink()
    print(
        "hostile files refused with code 4 and one line, no code ran: "
        f"{len(kinds) - len(faults)} of {len(kinds)}; "
        f"memory grew by {max(grown) / 1e3:.0f} MB at most"
    )
    sys.exit(1 if faults else 0)


def judge(folder: Path, path: Path) -> tuple[str, int]:
    """Read a file twice; return the fault, or "", and the growth of memory in kilobytes."""
    faults, growth = [], 0
    for way in ("resume", "tuning"):
        code, said, more = read(path, way)
        growth = max(growth, more)
        if (
            code != 4
            or said.count("\n") != 1
            or path.name not in said
            or "weights_only" in said
        ):
            faults.append(f"{way}: code {code}, {said[-300:]!r}")
        if more > GROWTH:
            faults.append(f"{way}: memory grew by {more / 1e3:.0f} MB")
        if (canary := folder / "canary").exists():
            canary.unlink()
            faults.append(f"{way}: code ran")
    return "; ".join(faults), growth


def read(path: Path, way: str) -> tuple[int, str, int]:
    """Return exit code, output and growth of memory in kilobytes of a process that reads a file."""
    from src.detection.weight_file import read_weights
    from src.runtime.process import run_command
    from src.solver.checkpoint import CheckpointFolder

    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.dup2(writing, 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(
            resource.RLIMIT_AS, (ADDRESS_SPACE + _address_space(), -1)
        )
        code = 1
        try:
            run_command(
                lambda: (
                    CheckpointFolder(path.parent).load_last(path)
                    if way == "resume"
                    else read_weights(path)
                )
            )
        except SystemExit as end:
            code = int(end.code or 0)
        os.write(
            2,
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}".encode(),
        )
        os._exit(code)
    os.close(writing)
    end = time.monotonic() + SECONDS
    while (
        not (ended := os.waitpid(child, os.WNOHANG))[0]
        and time.monotonic() < end
    ):
        time.sleep(0.005)
    if not ended[0]:
        os.kill(child, 9)
        ended = os.waitpid(child, 0)
    with open(reading, errors="replace") as output:
        said, _, growth = output.read().rpartition("\n")
    return (
        os.waitstatus_to_exitcode(ended[1]),
        said + "\n",
        int(growth) if growth.isdigit() else 0,
    )


def _address_space() -> int:
    return (
        int(
            Path("/proc/self/status")
            .read_text()
            .partition("VmSize:")[2]
            .split()[0]
        )
        * 1024
    )


# ---- the files ----


def hostile_files(canary: Path) -> dict[str, Callable[[Path], None]]:
    """Return the writers of all files by name; code in the files would create the canary."""
    import numpy as np
    import torch

    command = f"touch {canary}"

    class Touches:
        def __reduce__(self):
            return Path.touch, (canary,)

    class BuiltWithState:
        def __reduce__(self):
            return dict, (), {"__class__": Touches()}

    class Persistent(pickle.Pickler):
        def persistent_id(self, thing):
            return (
                ("storage", eval, "0", "cpu", 4)
                if isinstance(thing, Touches)
                else None
            )

    class PersistentGadget(pickle.Pickler):
        def persistent_id(self, thing):
            return (
                ("module", Touches(), "x", "y")
                if isinstance(thing, list)
                else None
            )

    def with_pickler(kind: type, thing) -> bytes:
        kind(file := io.BytesIO(), 2).dump(thing)
        return file.getvalue()

    def torch_saved(thing, **options) -> Callable[[Path], None]:
        return lambda path: torch.save(thing, path, **options)

    def pickled(raw: bytes) -> Callable[[Path], None]:
        return lambda path: path.write_bytes(raw)

    def archived(
        raw: bytes, records: dict[str, bytes] | None = None
    ) -> Callable[[Path], None]:
        return lambda path: _write_zip(
            path,
            {
                "a/data.pkl": raw,
                "a/byteorder": b"little",
                "a/version": b"3\n",
                **(records or {}),
            },
        )

    honest = {"model": {"w": torch.ones(1000)}}
    global_system = f"cos\nsystem\n(S'{command}'\ntR.".encode()
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    return {
        "reduce in an archive": torch_saved({"model": Touches()}),
        "reduce in a bare pickle": pickled(pickle.dumps({"model": Touches()})),
        "reduce in a file of the old format": torch_saved(
            {"model": Touches()}, _use_new_zipfile_serialization=False
        ),
        "reduce behind sound weights": torch_saved(
            {"model": honest["model"], "progress": {"step": 1}, "zz": Touches()}
        ),
        "GLOBAL os.system in a bare pickle": pickled(global_system),
        "GLOBAL os.system in an archive": archived(global_system),
        "STACK_GLOBAL builtins.exec": archived(
            b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R."
        ),
        "INST os.system": archived(f"(S'{command}'\nios\nsystem\n.".encode()),
        "OBJ os.system": archived(
            b"(" + f"cos\nsystem\nS'{command}'\n".encode() + b"o."
        ),
        "NEWOBJ subprocess.Popen": archived(
            b"\x80\x02csubprocess\nPopen\n" + _text(command) + b"\x85\x81."
        ),
        "BUILD of an object's class": torch_saved({"model": BuiltWithState()}),
        "getattr as a gadget": archived(
            b"cbuiltins\ngetattr\n(cos\nsystem\nX\x06\x00\x00\x00__call__tR."
        ),
        "torch.load as a gadget": archived(
            b"ctorch\nload\n" + _text("/dev/zero") + b"\x85R."
        ),
        "persistent id of a foreign kind": archived(
            with_pickler(PersistentGadget, {"model": [1]})
        ),
        "persistent id with eval for a storage": archived(
            with_pickler(Persistent, {"model": Touches()}),
            {"a/data/0": bytes(16)},
        ),
        "reduce within a tensor's arguments": archived(
            rebuild
            + b"("
            + global_system[:-1]
            + b"K\x00K\x04\x85K\x01\x85\x89}tR.",
            {"a/data/0": bytes(16)},
        ),
        "array of objects": torch_saved(
            {"model": np.array([Touches()], dtype=object)}
        ),
        "a script in place of weights": lambda path: torch.jit.save(
            torch.jit.script(torch.nn.Linear(2, 2)), path
        ),
        "tar with a way out": lambda path: _write_tar(
            path,
            {
                "../../canary": b"x",
                "storages": global_system,
                "pickle": global_system,
            },
        ),
        "two data.pkl, the second with code": lambda path: _write_zip(
            path,
            [
                ("a/data.pkl", pickle.dumps(honest["model"]["w"].tolist(), 2)),
                ("a/data.pkl", global_system),
                ("a/version", b"3\n"),
            ],
        ),
        "zip bomb": lambda path: _write_bomb(path, 200 << 20),
        "records that overlap": lambda path: _write_overlapping(
            path, 1 << 20, 200
        ),
        "record that claims a terabyte": lambda path: _write_claim(
            path, 1 << 40
        ),
        "storage shorter than its tensor": archived(
            rebuild
            + b"("
            + storage
            + b"K\x00J\x00\x00\x00\x7f\x85K\x01\x85\x89}tR.",
            {"a/data/0": bytes(16)},
        ),
        "tensor of 400 GB by a stride of 0": torch_saved(
            {"model": {"w": torch.ones(1).expand(100_000_000_000)}}
        ),
        "tensor without data": torch_saved(
            {"model": {"w": torch.ones(1 << 40, device="meta")}}
        ),
        "sparse tensor of a terabyte": torch_saved(
            {
                "model": {
                    "w": torch.sparse_coo_tensor(
                        [[0], [0]], [1.0], (1 << 20, 1 << 20)
                    )
                }
            }
        ),
        "sparse tensor with indices outside": archived(
            b"ctorch._utils\n_rebuild_sparse_tensor\n(ctorch\nsparse_coo\n("
            + 2
            * (
                rebuild
                + b"("
                + storage
                + b"K\x00K\x01K\x04\x86K\x04K\x01\x86\x89}tR"
            )
            + b"K\x01\x85ttR.",
            {"a/data/0": bytes(16)},
        ),
        "nested 100000 deep": archived(b"]" * 100_000 + b"a" * 99_999 + b"."),
        "doubled 60 times": archived(
            b"]q\x00"
            + b"".join(
                b"]q%c(h%ch%ce" % (n, n - 1, n - 1) for n in range(1, 60)
            )
            + b"."
        ),
        "text that claims an exabyte": archived(
            b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x."
        ),
        "memo of two billion": archived(b"]r\xff\xff\xff\x7f."),
        "archive cut in half": lambda path: path.write_bytes(
            _saved(honest)[:2000]
        ),
        "archive without data.pkl": lambda path: _write_zip(
            path, {"a/version": b"3\n", "a/data/0": bytes(16)}
        ),
        "safetensors: header of an exabyte": pickled(
            struct.pack("<Q", 1 << 60) + b"{}"
        ),
        "safetensors: header of 99 MB that is not there": pickled(
            struct.pack("<Q", 99 << 20) + b"{}"
        ),
        "safetensors: header that is not JSON": pickled(_safetensors(b"{]")),
        "safetensors: header nested 100000 deep": pickled(
            _safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
        ),
        "safetensors: pieces that overlap": pickled(
            _safetensors(_pieces((0, 16), (0, 16)), bytes(16))
        ),
        "safetensors: piece beyond the end": pickled(
            _safetensors(_pieces((0, 1 << 40)), bytes(16))
        ),
        "safetensors: shape whose size overflows": pickled(
            _safetensors(_pieces((0, 16), shape=[1 << 62, 1 << 62]), bytes(16))
        ),
        "safetensors: pickle behind the name": pickled(pickle.dumps(Touches())),
    }


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _saved(content) -> bytes:
    import torch

    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def _write_zip(
    path: Path, records: dict[str, bytes] | list[tuple[str, bytes]]
) -> None:
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # names twice
        for name, raw in (
            records.items() if isinstance(records, dict) else records
        ):
            archive.writestr(name, raw)


def _write_tar(path: Path, records: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, raw in records.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))


def _write_bomb(path: Path, size: int) -> None:
    """Pack a valid file of this number of zero bytes."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        zipfile.ZipFile(
            io.BytesIO(_saved({"model": {"w": _zeros(4)}}))
        ) as sound,
    ):
        for record in sound.infolist():
            if not record.filename.endswith("data/0"):
                archive.writestr(record.filename, sound.read(record))
                continue
            with archive.open(record.filename, "w") as file:
                for _ in range(size >> 20):
                    file.write(bytes(1 << 20))


def _zeros(count: int):
    import torch

    return torch.zeros(count)


def _write_overlapping(path: Path, size: int, count: int) -> None:
    """Let this number of directory entries refer to one record."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"model": 1}, 2))
        archive.writestr("a/data/0", bytes(size))
        for number in range(1, count):
            alias = zipfile.ZipInfo(f"a/data/{number}")
            first = archive.getinfo("a/data/0")
            for field in (
                "header_offset",
                "file_size",
                "compress_size",
                "CRC",
                "compress_type",
            ):
                setattr(alias, field, getattr(first, field))
            archive.filelist.append(alias)
            archive.NameToInfo[alias.filename] = alias


def _write_claim(path: Path, size: int) -> None:
    """Let the directory claim this number of bytes for a small record."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"model": 1}, 2))
        archive.writestr("a/data/0", bytes(16))
        archive.getinfo("a/data/0").file_size = archive.getinfo(
            "a/data/0"
        ).compress_size = size


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _pieces(*offsets: tuple[int, int], shape: list[int] | None = None) -> bytes:
    return json.dumps(
        {
            f"w{n}": {
                "dtype": "F32",
                "shape": shape or [(end - start) // 4],
                "data_offsets": [start, end],
            }
            for n, (start, end) in enumerate(offsets)
        }
    ).encode()


if __name__ == "__main__":
    main()
