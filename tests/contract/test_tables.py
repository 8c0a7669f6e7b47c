"""Tables in the documentation are tables: a header, a line of dashes, and rows with as many cells."""

from pathlib import Path

import pytest

from tests.contract.test_links import PAGES, ROOT, without_code_blocks


def table_faults(text: str) -> list[str]:
    """Return the rows that belong to no table, or have more or fewer cells than the header."""
    faults = []
    header: list[str] = []
    lines = without_code_blocks(text).splitlines()
    for line, after in zip(lines, [*lines[1:], ""]):
        if not line.startswith("|"):
            header = []
            continue
        cells = line.replace("\\|", "").strip().strip("|").split("|")
        if not header:
            header = cells
            if not after.startswith("| ---"):
                faults.append(f"{line} has no header")
        elif len(cells) != len(header):
            faults.append(
                f"{line} has {len(cells)} cells, the header has {len(header)}"
            )
    return faults


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_row_belongs_to_a_table(page: Path):
    assert table_faults(page.read_text(encoding="utf-8")) == []


def test_rows_without_a_header_and_missing_cells_are_noticed():
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert table_faults(table) == []
    assert len(table_faults(table + "\n| 3 | 4 |\n")) == 1
    assert len(table_faults(table + "| 3 |\n")) == 1
