"""Faults of a built site are found."""

import json
from pathlib import Path

import pytest

from docs_site.check import (
    anchor_faults,
    foreign_assets,
    language_faults,
    link_faults,
    read_pages,
    search_faults,
)


@pytest.fixture
def site(tmp_path) -> Path:
    """A site of one page in two languages, without faults."""
    files = {
        "index.html": '<link rel="stylesheet" href="a.css"><h1 id="top">x</h1>'
        '<a href="#top">a</a><a href="zh/index.html">zh</a><a href="https://example.org">b</a>',
        "zh/index.html": '<h1 id="top">x</h1><a href="../index.html#top">en</a><img src="../a.png">',
        "404.html": '<a href="/nowhere">a</a>',
        "a.css": "",
        "a.png": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def add(site: Path, text: str) -> None:
    page = site / "index.html"
    page.write_text(page.read_text() + text)


def write_index(
    site: Path,
    names: list[str],
    text: str = "训\u200b练",
    separator: str = "[\u200b]+",
) -> None:
    """Write the index of a search that knows these pages."""
    docs = [{"location": name, "text": text} for name in names]
    content = {"config": {"separator": separator}, "docs": docs}
    (site / "search").mkdir()
    (site / "search/search_index.json").write_text(json.dumps(content))


def test_a_site_without_faults_has_none(site):
    pages = read_pages(site)
    assert set(pages) == {"index.html", "zh/index.html"}
    assert not link_faults(site, pages)
    assert not foreign_assets(pages)
    assert not language_faults(pages)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<a href="gone.html">', "gone.html does not exist"),
        ('<a href="zh/index.html#no">', "has no such heading"),
        ('<a href="/index.html">', "is absolute"),
        ('<img src="gone.png">', "gone.png does not exist"),
    ],
)
def test_a_broken_link_is_found(site, text, fault):
    add(site, text)
    (found,) = link_faults(site, read_pages(site))
    assert found.startswith("index.html: ") and fault in found


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example.org/css">',
        '<link rel="preconnect" href="//fonts.example.org">',
        '<img src="https://example.org/badge.svg">',
    ],
)
def test_files_of_other_sites_are_found(site, text):
    add(site, text)
    assert len(foreign_assets(read_pages(site))) == 1


def test_a_missing_page_or_switch_of_a_language_is_found(site):
    (site / "only.html").write_text("<p>")
    (site / "zh/index.html").write_text("<p>")
    assert language_faults(read_pages(site)) == [
        "only.html: zh/only.html does not exist",
        "zh/index.html: no switch to index.html",
    ]


def test_other_anchors_than_those_of_github_are_found(site, tmp_path):
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text("# Top\n")
    (root / "README_cn.md").write_text("# Other\n")
    (root / "docs/gone.md").write_text("# Gone\n")
    assert anchor_faults(root, read_pages(site)) == [
        "zh/index.html: headings are ['top'], expected ['other']",
        "gone.html: the page of docs/gone.md does not exist",
    ]


def test_pages_that_the_search_does_not_know_are_found(site):
    write_index(site, ["index.html#top", "zh/index.html", "zh/data.html"])
    assert search_faults(site) == [
        "the search does not know data.html",
        "the search does not know api.html",
    ]


@pytest.mark.parametrize(
    ("text", "separator", "fault"),
    [
        ("训\u200b练", r"[\s\u200b]+", []),
        ("训练", r"[\s\u200b]+", ["does not know the words"]),
        ("训\u200b练", r"[\s\-]+", ["does not separate"]),
    ],
)
def test_a_search_without_chinese_words_is_found(site, text, separator, fault):
    names = ["index.html", "data.html", "api.html", "zh/index.html"]
    write_index(site, [*names, "zh/data.html"], text, separator)
    found = search_faults(site)
    assert len(found) == len(fault)
    for line, part in zip(found, fault):
        assert part in line
