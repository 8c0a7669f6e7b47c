"""Chinese pages have the structure, commands and figures of the English pages."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

PAGES = {
    "README_cn.md": "README.md",
    "docs/README_cn.md": "docs/README.md",
    "docs/data_cn.md": "docs/data.md",
    "docs/deployment_cn.md": "docs/deployment.md",
    "docs/environments_cn.md": "docs/environments.md",
    "docs/gpu_cn.md": "docs/gpu.md",
    "docs/models_cn.md": "docs/models.md",
    "docs/training_cn.md": "docs/training.md",
    "docs/evaluate_cn.md": "docs/evaluate.md",
    "docs/evidence_cn.md": "docs/evidence.md",
    "docs/improve_cn.md": "docs/improve.md",
    "docs/moving_cn.md": "docs/moving.md",
    "docs/start_cn.md": "docs/start.md",
    "docs/troubleshooting_cn.md": "docs/troubleshooting.md",
    "docs/watch_cn.md": "docs/watch.md",
}
"""Chinese pages with the English pages that they translate."""


class Page(NamedTuple):
    levels: list[int]
    """Level of each heading, 1 to 6."""
    code: list[str]
    """Lines of code without comments."""
    tables: list[list[tuple[str, ...]]]
    """For each table, the numbers of each row."""


def parse(text: str) -> Page:
    page = Page([], [], [])
    fenced = False
    in_table = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            code = re.sub(r"(^|\s)#.*", "", line).rstrip()
            if code:
                page.code.append(code)
        elif heading := re.match(r"(#+) ", line):
            page.levels.append(len(heading.group(1)))
        if not line.startswith("|"):
            in_table = False
            continue
        if not in_table:
            page.tables.append([])
            in_table = True
        page.tables[-1].append(tuple(re.findall(r"\d+(?:\.\d+)?", line)))
    return page


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_file_tree(text: str) -> str:
    """Remove the descriptions of file trees, which are prose."""
    return re.sub(r"```\n(?:train\.py|DATA/).*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize(("chinese", "english"), PAGES.items())
def test_a_chinese_page_has_the_headings_of_the_english_one(chinese, english):
    assert parse(read(chinese)).levels == parse(read(english)).levels


@pytest.mark.parametrize(("chinese", "english"), PAGES.items())
def test_a_chinese_page_has_the_commands_of_the_english_one(chinese, english):
    ours, theirs = (
        parse(without_file_tree(read(name))) for name in (chinese, english)
    )
    assert ours.code == theirs.code


@pytest.mark.parametrize(("chinese", "english"), PAGES.items())
def test_a_chinese_page_has_the_tables_of_the_english_one(chinese, english):
    ours, theirs = (parse(read(name)) for name in (chinese, english))
    assert [len(table) for table in ours.tables] == [
        len(table) for table in theirs.tables
    ]
    assert numbers(ours.tables) == numbers(theirs.tables)


def test_every_chinese_page_is_compared_and_linked_from_the_chinese_readme():
    pages = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").glob("*_cn.md")
    }
    assert pages == set(PAGES) - {"README_cn.md"}
    for page in pages:
        assert f"]({page})" in read("README_cn.md")


def test_a_missing_row_a_changed_number_and_a_changed_command_are_noticed():
    page = parse("## A\n\n    run --x 1  # why\n\n| a |\n| --- |\n| 0.5 |\n")
    assert page == ([2], ["    run --x 1"], [[(), (), ("0.5",)]])
    assert parse("| a |\n| --- |\n| 0.6 |").tables != page.tables
    assert parse("    run --x 2").code != page.code


def numbers(tables: list[list[tuple[str, ...]]]) -> list[list[list[str]]]:
    """Return the numbers of each row in a fixed order, because word order differs between languages."""
    return [[sorted(row) for row in table] for table in tables]
