"""Compare variants of a training over several seeds.

    # what would be trained, with states and expected costs
    python tools/benchmark/ablate.py configs/ablation/adapter_start.yml --task shapes --list

    # train for an hour at most; the same command continues later
    python tools/benchmark/ablate.py configs/ablation/adapter_start.yml --task shapes --minutes 60

    # a task with data of your own
    python tools/benchmark/ablate.py configs/ablation/adapter_start.yml --task bccd --set DATA=/path/to/bccd

Every run is a separate `train.py` on one thread. Complete runs are not repeated, and a run that was
interrupted resumes from its last checkpoint. Plans that need the same run share it. At the end the command
prints a Markdown table for each plan and task, and writes it to the folder of results together with JSON and
a plot. `docs/evidence.md` explains plans and tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .common import parser_for, positive_integer, run, user_path

if TYPE_CHECKING:
    from .ablation.runs import Run, Side

TRAINER: tuple[str, ...] = ()
"""Command that trains a run; empty for `train.py`."""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument(
        "plans",
        nargs="+",
        metavar="PLAN",
        help="plan files, .yml; configs/ablation/ has examples",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="show the runs with their states and expected costs, and train nothing",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="write the tables of the runs that are complete, and train nothing",
    )
    parser.add_argument(
        "--task",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tasks of the plans; default: all",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="VARIANT",
        help="train only these variants",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="SEED",
        help="random seeds; default: those of the plan",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="values of names such as $DATA in the settings of a plan",
    )
    parser.add_argument(
        "--results",
        type=user_path,
        default=Path("output/ablation"),
        metavar="DIR",
        help="folder of all runs and tables; default: output/ablation",
    )
    parser.add_argument(
        "--jobs",
        type=positive_integer,
        default=1,
        metavar="N",
        help="number of runs at a time; default: 1",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="after this time start no run, and interrupt running ones so that they can be continued",
    )
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        metavar="N",
        help="priority of the runs, 0 to 19; 19 is the lowest; default: 0",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)
    run(lambda: _study(arguments), arguments)


def _study(arguments: argparse.Namespace) -> None:
    from ..runtime.files import prepare_output_dir
    from .ablation.runs import (
        in_order,
        parse_variables,
        refuse_missing_variables,
    )

    variables = parse_variables(arguments.set)
    sides = _sides(arguments)
    wanted = [
        side
        for side in sides
        if side.variant.name in arguments.only or not arguments.only
    ]
    runs: list[Run] = []
    for group in _by_plan_and_task(wanted):
        for needed in in_order(group):
            if not any(_is_same(needed, known) for known in runs):
                runs.append(needed)
    if arguments.list:
        _list_runs(sides, runs, arguments.results)
        return
    failed: list[Run] = []
    _warn_of_other_values(runs, variables, arguments.results)
    if not arguments.table:
        refuse_missing_variables(wanted, variables)
        prepare_output_dir(arguments.results)
        failed = _train(arguments, variables, runs)
    for group in _by_plan_and_task(sides):
        _write_results(group, arguments.results)
    _report_state(runs, arguments, failed)


def _warn_of_other_values(
    runs: Sequence[Run], variables: dict[str, str], results: Path
) -> None:
    """Log a warning for each run that was started with other values of `--set`."""
    from ..runtime.log import logger
    from .ablation.records import read_record
    from .ablation.training import name_of

    for item in runs:
        before = read_record(item, results).variables
        for name in sorted(item.variables() & set(before)):
            if name in variables and variables[name] != before[name]:
                logger.warning(
                    "%s was trained with %s=%s, now %s=%s; its folder is used as it is",
                    name_of(item),
                    name,
                    before[name],
                    name,
                    variables[name],
                )


def _is_same(run: Run, other: Run) -> bool:
    return (run.group, run.seed) == (other.group, other.seed)


def _sides(arguments: argparse.Namespace) -> list[Side]:
    """Return all variants of the plans on the wanted tasks."""
    from .ablation.plan import load_plan
    from .ablation.runs import chosen, sides_of

    plans = [load_plan(path) for path in arguments.plans]
    tasks = list(dict.fromkeys(task for plan in plans for task in plan.tasks))
    names = list(
        dict.fromkeys(name for plan in plans for name in plan.variants)
    )
    wanted = chosen(arguments.task, tasks, "--task")
    chosen(arguments.only, names, "--only")
    sides: list[Side] = []
    for plan in plans:
        for task in plan.tasks.values():
            if task.name in wanted:
                seeds = tuple(arguments.seeds) or plan.seeds
                sides += sides_of(plan, task, seeds)
    return sides


def _by_plan_and_task(sides: Sequence[Side]) -> list[list[Side]]:
    groups: dict[tuple[Path, str], list[Side]] = {}
    for side in sides:
        groups.setdefault((side.plan.file, side.task.name), []).append(side)
    return list(groups.values())


def _list_runs(
    sides: Sequence[Side], runs: Sequence[Run], results: Path
) -> None:
    """Print a line for each run: its state, expected and used CPU minutes, and the variants that need it."""
    from ..core.counts import counted
    from ..runtime.log import say
    from .ablation.records import COMPLETE, read_record, state_of

    left = 0.0
    unknown = 0
    for item in runs:
        state = state_of(item, results)
        expected = item.expected_minutes
        used = read_record(item, results).cpu_minutes
        if state != COMPLETE:
            left += max((expected or 0.0) - used, 0.0)
            unknown += expected is None
        cost = "unknown" if expected is None else f"{expected:.0f}"
        users = ", ".join(_users(item, sides))
        say(
            f"{state:<12} {used:6.1f} of {cost} min  {item.group} seed {item.seed}: {users}"
        )
    more = f", and {counted(unknown, 'run')} of unknown cost" if unknown else ""
    say(
        f"{counted(len(runs), 'run')}; about {left:.0f} CPU minutes are left{more}"
    )


def _users(item: Run, sides: Sequence[Side]) -> list[str]:
    """Return the names "plan/task/variant" of the variants that need a run."""
    found = []
    for side in sides:
        name = f"{side.plan.name}/{side.task.name}/{side.variant.name}"
        for used in side.runs.values():
            if _is_same(used, item):
                found.append(name)
            elif used.teacher is not None and _is_same(used.teacher, item):
                found.append(f"teacher of {name}")
    return list(dict.fromkeys(found))


def _train(
    arguments: argparse.Namespace, variables: dict[str, str], runs: list[Run]
) -> list[Run]:
    from ..runtime.log import logger
    from .ablation.training import Conditions, train_all

    conditions = Conditions(
        results=arguments.results,
        variables=variables,
        jobs=arguments.jobs,
        minutes=arguments.minutes,
        nice=arguments.nice,
        trainer=TRAINER,
    )
    return train_all(runs, conditions, lambda line: logger.info("%s", line))


def _write_results(sides: Sequence[Side], results: Path) -> None:
    """Print the table of one plan and task, and write it with JSON and a plot."""
    from ..runtime.files import write_atomically, write_json
    from ..runtime.log import say
    from ..runtime.own_files import write_png
    from .ablation.comparison import summarize
    from .ablation.pictures import draw_comparison
    from .ablation.records import read_outcome
    from .ablation.tables import as_json, markdown

    plan, task = sides[0].plan, sides[0].task
    outcomes = {}
    for side in sides:
        complete = {}
        for seed, item in side.runs.items():
            outcome = read_outcome(item, results)
            if outcome is not None:
                complete[seed] = outcome
        outcomes[side.variant.name] = complete
    if not any(outcomes.values()):
        say(f"{plan.name}, {task.title}: no run is complete")
        return
    summaries = summarize(
        outcomes,
        plan.baseline,
        equal_steps=plan.equal_steps,
        where=f"{plan.file}, task {task.name}",
    )
    text = markdown(plan, task, summaries, list(sides[0].runs))
    for line in text.splitlines():
        say(line)
    path = results / f"{plan.name}-{task.name}"
    write_atomically(
        path.with_name(f"{path.name}.md"),
        lambda file: file.write(text.encode()),
    )
    write_json(
        path.with_name(f"{path.name}.json"), as_json(plan, task, summaries)
    )
    title = f"AP, {plan.name}, {task.title}"
    picture = draw_comparison(title, summaries)
    write_png(path.with_name(f"{path.name}.png"), picture)


def _report_state(
    runs: Sequence[Run], arguments: argparse.Namespace, failed: Sequence[Run]
) -> None:
    """Print how many runs are complete.

    Raises:
        RunError: if runs failed, with the number.
    """
    from ..core.errors import RunError
    from ..runtime.log import say
    from .ablation.records import read_record
    from .ablation.training import name_of

    complete = 0
    for item in runs:
        complete += read_record(item, arguments.results).is_complete
    say(f"{complete} of {len(runs)} runs are complete")
    if failed:
        names = ", ".join(name_of(item) for item in failed)
        raise RunError(
            f"runs that failed: {len(failed)} ({names}); the lines above give the reasons, and the same "
            "command tries again"
        )


if __name__ == "__main__":
    main()
