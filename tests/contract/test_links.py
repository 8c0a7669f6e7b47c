"""Links in the documentation lead to files and headings that exist; pages are linked where they are named."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]

NOT_SEARCHED = ("build", "output", "data", "node_modules")
"""Folders of results and downloads; hidden folders are not searched either."""

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
EXTERNAL = re.compile(r"[a-z][a-z+.-]*:", re.IGNORECASE)
PAGE_NAME = re.compile(r"`(?:\.\./)*[\w./-]*\.md`|\bdocs/[\w./-]*\.md\b")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def markdown_files() -> list[Path]:
    found = []
    for path in sorted(ROOT.rglob("*.md")):
        folders = path.relative_to(ROOT).parts[:-1]
        hidden = any(folder.startswith(".") for folder in folders)
        if not hidden and not (folders and folders[0] in NOT_SEARCHED):
            found.append(path)
    return found


PAGES = markdown_files()


def without_code_blocks(text: str) -> str:
    """Remove fenced code, and code that is indented by four columns after an empty line."""
    text = FENCED.sub("", text)
    return re.sub(r"(?<=\n\n)(?: {4}.*\n)+", "", text)


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"[^\w\s-]", "", text.strip().lower())
    return re.sub(r"\s", "-", text)


def anchors_of(text: str) -> set[str]:
    """Return the anchors of all headings; equal headings are numbered."""
    anchors: set[str] = set()
    for match in re.finditer(
        r"^#{1,6} +(.+?)\s*$", without_code_blocks(text), re.M
    ):
        anchor = anchor_of(match[1])
        number = 0
        numbered = anchor
        while numbered in anchors:
            number += 1
            numbered = f"{anchor}-{number}"
        anchors.add(numbered)
    return anchors


def links_of(text: str) -> Iterator[str]:
    """Yield the targets of all links and images outside code."""
    plain = re.sub(r"`[^`\n]*`", "code", without_code_blocks(text))
    for match in LINK.finditer(plain):
        yield match[1]


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page whose file or anchor does not exist."""
    broken = []
    for link in links_of(page.read_text(encoding="utf-8")):
        if EXTERNAL.match(link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = page.parent / name if name else page
        if name.startswith("/") or not target.exists():
            broken.append(f"{link}: the file does not exist")
        elif anchor and (
            target.suffix != ".md"
            or anchor not in anchors_of(target.read_text(encoding="utf-8"))
        ):
            broken.append(f"{link}: the heading does not exist")
    return broken


def pages_that_are_not_linked(text: str) -> list[str]:
    """Return the names of Markdown pages that stand outside links."""
    return PAGE_NAME.findall(LINK.sub("", without_code_blocks(text)))


def test_the_pages_of_the_project_are_found():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "docs/data.md", "weights/README.md"} <= names


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    assert not broken_links(page)


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page_that_is_named_is_linked(page):
    assert not pages_that_are_not_linked(page.read_text(encoding="utf-8"))


def test_every_decision_is_linked_from_the_architecture():
    linked = set(
        links_of((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    )
    for decision in (ROOT / "docs/decisions").glob("*.md"):
        assert f"decisions/{decision.name}" in linked


@pytest.mark.parametrize("suffix", ["", "_cn"])
def test_every_page_is_linked_from_the_index_of_the_documents(suffix):
    index = ROOT / f"docs/README{suffix}.md"
    linked = set(links_of(index.read_text(encoding="utf-8")))
    for page in (ROOT / "docs").glob("*.md"):
        other = page.stem.endswith("_cn") != (suffix == "_cn")
        if not other and page != index:
            assert page.name in linked


@pytest.mark.parametrize("name", ["README.md", "README_cn.md"])
def test_the_readme_fits_on_one_screen(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text) <= 5000
    assert len(text.splitlines()) <= 80


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("A data set of your own", "a-data-set-of-your-own"),
        ("`train.py` refuses my labels", "trainpy-refuses-my-labels"),
        ("8. Preprocessing, for a runner", "8-preprocessing-for-a-runner"),
        ("log.txt", "logtxt"),
        ("梯度累积", "梯度累积"),
        ("命令中有 `--opt-level O1`", "命令中有---opt-level-o1"),
    ],
)
def test_an_anchor_is_made_as_on_github(heading, anchor):
    assert anchor_of(heading) == anchor


def test_broken_links_and_names_without_a_link_are_noticed(tmp_path):
    (tmp_path / "other.md").write_text("# One\n\n## Two\n\n## Two\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n\n[a](other.md#two-1) [b](other.md#three) [c](gone.md) [d](#top)\n"
        "![e](gone.png) [f](https://a.b/c) `[g](gone.md)`\n\n"
        "    [h](gone.md)\n\n```\n[i](gone.md)\n```\n"
    )
    assert [line.split(":")[0] for line in broken_links(page)] == [
        "other.md#three",
        "gone.md",
        "gone.png",
    ]
    text = "See `docs/data.md`, docs/errors.md and [`data.md`](data.md).\n"
    assert pages_that_are_not_linked(text) == [
        "`docs/data.md`",
        "docs/errors.md",
    ]
