"""A process on pretended GPUs that forks: each call gets a fresh CUDA runtime without importing torch again.

`Host` is the side of the tests. As a script, this module is the other side: it reads requests, one JSON
object per line, and answers each with the exit codes of its ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.fixtures.ports import free_port  # noqa: E402
from tests.fixtures.progress import wait_until  # noqa: E402
from tests.pretend_gpu import runtime  # noqa: E402


class Result(NamedTuple):
    """Result of one rank."""

    code: int
    output: str
    """Standard output and error."""
    value: Any
    """Value that the function returned; None if it did not return."""
    report: dict[str, Any]
    """See `PretendedGpu.report`; empty if the process was killed."""


class Host:
    """Process that calls functions of this package on pretended GPUs."""

    def __init__(self, folder: Path) -> None:
        """Start the process; `folder` receives its files."""
        self.folder = folder
        self.calls = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env=runtime.preloaded()
            | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            text=True,
        )

    def call(
        self,
        function: str,
        *,
        ranks: int = 1,
        devices: int = 1,
        capability: int = 90,
        memory_gb: float = 80.0,
        environment: dict[str, str] | None = None,
        **arguments: Any,
    ) -> list[Result]:
        """Call a function of `tests.pretend_gpu.scenarios` on each rank; return the results in rank order.

        Args:
            function: name of the function.
            ranks: number of processes; several can join a group.
            devices: number of GPUs.
            capability: compute capability times ten.
            memory_gb: memory of each GPU.
            environment: further environment variables.
            arguments: keyword arguments of the function, as JSON has them.
        """
        self.calls += 1
        folder = self.folder / f"call{self.calls}"
        folder.mkdir()
        port = str(free_port())
        common = runtime.preloaded(devices, capability, memory_gb)
        chosen = {
            k: v for k, v in common.items() if k.startswith(("PRETEND", "CUDA"))
        }
        chosen.update(environment or {})
        environments = []
        for rank in range(ranks):
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            texts = {name: str(value) for name, value in own.items()}
            environments.append(chosen | (texts if ranks > 1 else {}))
        request = {
            "function": function,
            "arguments": arguments,
            "environments": environments,
            "folder": str(folder),
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = folder / "codes.json"
        wait_until(answer.exists, self.process.pid, lambda: _outputs(folder))
        codes = json.loads(answer.read_text())
        return [_result(folder, rank, code) for rank, code in enumerate(codes)]

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def _outputs(folder: Path) -> str:
    return "\n".join(
        path.read_text() for path in sorted(folder.glob("output*"))
    )


def _result(folder: Path, rank: int, code: int) -> Result:
    found = []
    for name in ("value", "report"):
        path = folder / f"{name}{rank}.json"
        found.append(json.loads(path.read_text()) if path.exists() else {})
    output = (folder / f"output{rank}").read_text()
    return Result(code, output, found[0] or None, found[1])


# ---- the other side ----


def _serve() -> None:
    scenarios = import_module("tests.pretend_gpu.scenarios")
    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        children = []
        for rank, environment in enumerate(request["environments"]):
            child = os.fork()
            if not child:
                os.environ.update(environment)
                _run(scenarios, request, folder, rank)
            children.append(child)
        codes = []
        for child in children:
            _, status = os.waitpid(child, 0)
            codes.append(os.waitstatus_to_exitcode(status))
        unfinished = folder / "codes"
        unfinished.write_text(json.dumps(codes))
        unfinished.rename(folder / "codes.json")


def _run(scenarios: Any, request: dict, folder: Path, rank: int) -> None:
    """Run a function in a child process, and end it."""
    from tests.pretend_gpu.session import recording

    output = os.open(folder / f"output{rank}", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(output, stream)
    code = 0
    try:
        with recording(folder / f"report{rank}.json") as gpu:
            function = getattr(scenarios, request["function"])
            value = function(gpu, **request["arguments"])
            (folder / f"value{rank}.json").write_text(json.dumps(value))
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
