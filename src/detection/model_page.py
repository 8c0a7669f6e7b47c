"""Text about the models of the table: the tables of docs/models.md and the commands for one model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from msgspec import structs

from ..core.commands import is_installed
from ..core.errors import ConfigError
from .model_table import TITLES, Entry

Column = tuple[str, Callable[[Entry], str]]
"""Heading of a column and the text of a cell."""


def file_name(entry: Entry) -> str:
    """Return the name under which the file of a model is looked for first."""
    return entry.files[0] if entry.files else f"{entry.name}.pth"


def commands(entry: Entry) -> dict[str, str]:
    """Return the commands to evaluate, fine-tune and export a model, by purpose.

    The file is found by the name of the model in `weights/`. Models without published weights are evaluated
    and exported from the file that their own training writes.
    """
    if is_installed():
        return _commands_of_package(entry)
    if entry.source is None:
        weights = f"output/{entry.config.rpartition('/')[2][:-4]}/best.pth"
    else:
        weights = entry.name
    texts = {
        "evaluate": f"python train.py -c {entry.config} --test-only -r {weights}"
    }
    if entry.custom_config is not None:
        texts["fine-tune"] = (
            f"python train.py -c {entry.custom_config} --use-amp --seed=0 -t {weights}"
        )
    texts["export"] = (
        f"python tools/deployment/export_onnx.py -r {weights} --check"
    )
    return texts


def _commands_of_package(entry: Entry) -> dict[str, str]:
    """Return the commands for who installed the package, which has no train.py and no tools/."""
    train = {"fine-tune": f"dfine train --data DATA --model {entry.name}"}
    if entry.source is None:
        return train
    return {
        "evaluate": f"dfine val {entry.name} --data DATA",
        **train,
        "export": f"dfine export {entry.name} --check",
    }


def table_of_models(entries: Iterable[Entry]) -> str:
    """Return the table of sizes, costs, AP and licences in Markdown.

    A model has a row for each of its input sizes.
    """
    columns: list[Column] = [
        ("name", lambda entry: f"`{entry.name}`"),
        ("family", lambda entry: TITLES.get(entry.family, entry.family)),
        ("size", lambda entry: entry.title.rpartition("-")[2]),
        ("input", lambda entry: _shown(entry.input, "{}")),
        ("M parameters (deployed)", _parameters),
        ("GFLOPs", lambda entry: _shown(entry.gflops, "{:.1f}")),
        ("CPU cost", lambda entry: _shown(entry.cost, "{:.2f}")),
        ("COCO AP", lambda entry: _shown(entry.ap, "{:.1f}")),
        ("source of AP", lambda entry: entry.ap_source or "-"),
        ("start weights", lambda entry: entry.start_weights or "-"),
        ("licence", lambda entry: entry.licence or "-"),
        ("use", lambda entry: entry.use or "-"),
    ]
    rows = []
    for entry in entries:
        rows += [entry, *_at_other_inputs(entry)]
    return _markdown(columns, rows)


def table_of_files(entries: Iterable[Entry]) -> str:
    """Return the table of file names and configurations in Markdown."""
    columns: list[Column] = [
        ("name", lambda entry: f"`{entry.name}`"),
        ("files in `weights/`", _files),
        ("from", _link_to_source),
        ("configuration", lambda entry: _link(entry.config)),
        ("your own data", lambda entry: _link(entry.custom_config)),
    ]
    return _markdown(columns, entries)


def block_of_commands(entries: Iterable[Entry]) -> str:
    """Return the commands of all models as a code block in Markdown."""
    lines = []
    for entry in entries:
        lines += [f"# {entry.name}", *commands(entry).values(), ""]
    return "\n".join(["```bash", *lines[:-1], "```", ""])


def with_tables(page: str, table: Mapping[str, Entry]) -> str:
    """Return a page with its tables written again.

    Args:
        page: Markdown in which `<!-- table: NAME -->` begins a table (sizes, files, commands) and
            `<!-- end of table -->` ends it.
        table: the models by name.

    Raises:
        ConfigError: if the page does not have these tables, in this order.
    """
    written = {
        "sizes": table_of_models(table.values()),
        "files": table_of_files(table.values()),
        "commands": block_of_commands(table.values()),
    }
    marks = re.findall(r"<!-- table: (\w+) -->", page)
    if marks != list(written):
        raise ConfigError(
            f"the page has the tables {marks}, expected {list(written)} between '<!-- table: NAME -->' and "
            "'<!-- end of table -->'"
        )
    for name, text in written.items():
        start = f"<!-- table: {name} -->\n"
        before, _, rest = page.partition(start)
        _, end, after = rest.partition("<!-- end of table -->")
        page = f"{before}{start}{text}{end}{after}"
    return page


def short_list(entries: Iterable[Entry]) -> str:
    """Return a line for each model, for terminals."""
    rows = [("name", "model", "M params", "GFLOPs", "CPU cost", "COCO AP")]
    for entry in entries:
        rows.append(
            (
                entry.name,
                entry.title,
                _shown(_millions(entry.deployed), "{:.1f}"),
                _shown(entry.gflops, "{:.1f}"),
                _shown(entry.cost, "{:.2f}"),
                _shown(entry.ap, "{:.1f}"),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def description(entry: Entry) -> str:
    """Return all that the table has about a model, for terminals."""
    ap = _shown(entry.ap, "{:.1f}")
    facts = {
        "model": entry.title,
        "use": entry.use,
        "parameters": f"{_parameters(entry)} M (deployed)",
        "GFLOPs": f"{_shown(entry.gflops, '{:.1f}')} at {entry.input} x {entry.input} pixels",
        "CPU cost": f"{_shown(entry.cost, '{:.2f}')} of a bare ViT-S/16",
        "other sizes": _other_inputs(entry),
        "COCO AP": f"{ap} ({entry.ap_source})" if entry.ap_source else ap,
        "start weights": entry.start_weights,
        "licence": entry.licence,
        "configuration": entry.config,
        "your own data": entry.custom_config,
        "file": f"weights/{file_name(entry)}" if entry.source else None,
        "from": entry.source or "no weights are published",
        "sha256": entry.sha256,
        **commands(entry),
    }
    lines = [entry.name]
    for name, value in facts.items():
        if value is not None:
            lines.append(f"  {name + ':':15} {value}")
    return "\n".join(lines)


def _at_other_inputs(entry: Entry) -> list[Entry]:
    """Return the entry once for each of its other input sizes, whose AP is not known."""
    copies = []
    for size in entry.other_inputs:
        setting = f"eval_spatial_size=[{size.input}, {size.input}]"
        copies.append(
            structs.replace(
                entry,
                input=size.input,
                gflops=size.gflops,
                cost=size.cost,
                ap=None,
                ap_source=None,
                use=f"the same with `-u '{setting}'`",
            )
        )
    return copies


def _other_inputs(entry: Entry) -> str | None:
    if not entry.other_inputs:
        return None
    texts = []
    for size in entry.other_inputs:
        texts.append(
            f"{size.input} x {size.input} pixels ({size.gflops:.1f} GFLOPs, CPU cost {size.cost:.2f})"
        )
    return ", ".join(texts)


def _markdown(columns: list[Column], entries: Iterable[Entry]) -> str:
    rows = [[heading for heading, _ in columns], ["---"] * len(columns)]
    for entry in entries:
        rows.append([cell(entry) for _, cell in columns])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _millions(number: int | None) -> float | None:
    return None if number is None else number / 1e6


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _parameters(entry: Entry) -> str:
    training = _shown(_millions(entry.params), "{:.1f}")
    return f"{training} ({_shown(_millions(entry.deployed), '{:.1f}')})"


def _files(entry: Entry) -> str:
    if entry.source is None:
        return "-"
    return ", ".join(f"`{file}`" for file in entry.files)


def _link(path: str | None) -> str:
    if path is None:
        return "-"
    return f"[{path.rpartition('/')[2]}](../{path})"


def _link_to_source(entry: Entry) -> str:
    if entry.source is None:
        return "not published"
    return f"[{entry.source.rpartition('/')[2]}]({entry.source})"
