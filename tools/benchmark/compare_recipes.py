"""Train configurations with several seeds each and compare the APs that they reach.

    python tools/benchmark/compare_recipes.py \\
        -c configs/dfine/demo/dfine_dinov3_demo_dfine.yml configs/dfine/demo/dfine_dinov3_demo_deim.yml

Every run is a separate `train.py` below the output folder, in `CONFIG/seedN`. Runs that are complete
there are not repeated. The command prints a Markdown table: the best AP of each seed, their mean and
sample deviation, and CPU minutes summed over all processes of a run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c",
        "--configs",
        nargs="+",
        required=True,
        help="configuration files, .yml",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        help="random seeds of each configuration",
    )
    parser.add_argument(
        "--output", default="output/recipes", help="folder for all runs"
    )
    parser.add_argument(
        "-u",
        "--update",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of all runs",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    seeds = [f"seed {seed}" for seed in arguments.seeds]
    print(
        f"| configuration | {' | '.join(seeds)} | mean AP | deviation | mean AP50 | CPU minutes a run |"
    )
    print(f"| --- | {'--- | ' * len(seeds)}--- | --- | --- | --- |")
    for config in arguments.configs:
        runs = [
            train(
                config,
                seed,
                Path(arguments.output) / Path(config).stem / f"seed{seed}",
                arguments.update,
            )
            for seed in arguments.seeds
        ]
        best = [
            max(run["records"], key=lambda record: record["AP"]) for run in runs
        ]
        scores = [record["AP"] for record in best]
        print(
            f"| `{Path(config).name}` | {' | '.join(f'{score:.3f}' for score in scores)} | "
            f"{statistics.mean(scores):.3f} | "
            f"{statistics.stdev(scores) if len(scores) > 1 else 0:.3f} | "
            f"{statistics.mean(record['AP50'] for record in best):.3f} | "
            f"{statistics.mean(run['minutes'] for run in runs):.1f} |",
            flush=True,
        )


def train(config: str, seed: int, folder: Path, updates: list[str]) -> dict:
    """Return the epochs' records and CPU minutes of a run, from its folder if it is complete there."""
    result = folder / "result.json"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "-c",
            config,
            f"--seed={seed}",
            "--output-dir",
            str(folder),
            "--overwrite",  # a run that was interrupted starts again
            "-u",
            "report=False",
            *updates,
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(folder / "stdout.txt", "w", encoding="utf-8") as output:
            ended = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        if ended.returncode:
            sys.exit(
                f"{config}, seed {seed}: train.py ended with code {ended.returncode}; "
                f"see {folder / 'stdout.txt'}"
            )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        minutes = (
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        ) / 60
        records = [
            json.loads(line)
            for line in (folder / "log.txt")
            .read_text(encoding="utf-8")
            .splitlines()
        ]
        result.write_text(json.dumps({"minutes": minutes, "records": records}))
    return json.loads(result.read_text())


if __name__ == "__main__":
    main()
