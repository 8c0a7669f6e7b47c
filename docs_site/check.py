"""Check the built documentation site: links, anchors, languages and search, and that it loads nothing else.

    python docs_site/check.py build/site

mkdocs reports links between pages that are broken. This command reads the HTML files themselves, so that it
also sees the navigation, the language switch and the Python API.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

if __package__:
    from .pages import API, anchors_of, documents, page_of
else:
    from pages import API, anchors_of, documents, page_of  # started as a file

ROOT = Path(__file__).resolve().parents[1]

ASSETS = {"script": "src", "img": "src", "source": "src", "iframe": "src"}
"""Tags that load a file, with the attribute that names it; of `link`, only some kinds load one."""

LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect"}


CHINESE = "zh/index.html"
"""Entry of the search for the Chinese start page."""

BREAK = "\u200b"
"""Character that the search puts between Chinese words."""


class Page(HTMLParser):
    """Anchors, links and loaded files of an HTML file."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.headings: list[str] = []
        self.links: list[str] = []
        self.assets: list[str] = []

    def handle_starttag(
        self, tag: str, attrs: list[tuple[str, str | None]]
    ) -> None:
        """Collect the attributes of a tag."""
        values = {name: value or "" for name, value in attrs}
        for name in ("id", "name"):
            if values.get(name) and (name == "id" or tag == "a"):
                self.anchors.add(values[name])
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6") and "id" in values:
            self.headings.append(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        kinds = set(values.get("rel", "").split())
        if tag == "link" and kinds & LOADED_LINKS:
            self.assets.append(values.get("href", ""))
        if values.get(ASSETS.get(tag, "")):
            self.assets.append(values[ASSETS[tag]])


def read_pages(site: Path) -> dict[str, Page]:
    """Return the pages of a site by path; the page for errors, whose links are absolute, is left out."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        if name != "404.html":
            page = Page()
            page.feed(path.read_text(encoding="utf-8"))
            pages[name] = page
    return pages


def is_elsewhere(link: str) -> bool:
    """Return whether a link leads to another site."""
    return link.startswith("//") or ":" in link.partition("/")[0]


def link_faults(site: Path, pages: dict[str, Page]) -> list[str]:
    """Return the links, pictures, scripts and styles of all pages that lead to nothing."""
    faults = []
    for name, page in pages.items():
        for link in [*page.links, *page.assets]:
            if is_elsewhere(link):
                continue
            target, _, anchor = unquote(link).partition("#")
            target = target.partition("?")[0]
            path = (site / name).parent / target if target else site / name
            if target.startswith("/"):
                faults.append(f"{name}: {link} is absolute")
            elif not path.is_file():
                faults.append(f"{name}: {link} does not exist")
            elif anchor and path.suffix == ".html":
                other = path.resolve().relative_to(site.resolve()).as_posix()
                if anchor not in pages[other].anchors and anchor != "__top":
                    faults.append(f"{name}: {link} has no such heading")
    return faults


def foreign_assets(pages: dict[str, Page]) -> list[str]:
    """Return the scripts, styles, fonts and pictures that a page loads from another site."""
    faults = []
    for name, page in pages.items():
        for asset in page.assets:
            if is_elsewhere(asset) and not asset.startswith("data:"):
                faults.append(f"{name}: loads {asset}")
    return faults


def anchor_faults(root: Path, pages: dict[str, Page]) -> list[str]:
    """Return the documents whose headings have other anchors than on GitHub, in English and in Chinese."""
    faults = []
    for document in documents(root):
        text = (root / document).read_text(encoding="utf-8")
        name = page_of(document).replace(".md", ".html")
        if document.endswith("_cn.md"):
            name = f"zh/{name}"
        if name not in pages:
            faults.append(f"{name}: the page of {document} does not exist")
        elif pages[name].headings != anchors_of(text):
            faults.append(
                f"{name}: headings are {pages[name].headings}, expected {anchors_of(text)}"
            )
    return faults


def language_faults(pages: dict[str, Page]) -> list[str]:
    """Return the pages that do not exist in both languages, or do not lead to each other."""
    faults = []
    for name, page in pages.items():
        other = name.removeprefix("zh/")
        if other == name:
            other = f"zh/{name}"
        if other not in pages:
            faults.append(f"{name}: {other} does not exist")
            continue
        here = Path(name).parent
        links = {_joined(here, link) for link in page.links}
        if other not in links:
            faults.append(f"{name}: no switch to {other}")
    return faults


def _joined(folder: Path, link: str) -> str:
    parts = list(folder.parts)
    for part in link.partition("#")[0].split("/"):
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def search_faults(site: Path) -> list[str]:
    """Return the pages, and the words of Chinese sentences, that the search does not find."""
    index = json.loads(
        (site / "search/search_index.json").read_text(encoding="utf-8")
    )
    found = {item["location"].partition("#")[0] for item in index["docs"]}
    needed = ["index.html", "data.html", "zh/data.html"]
    needed.append(API.replace(".md", ".html"))
    faults = []
    for name in needed:
        if name not in found:
            faults.append(f"the search does not know {name}")
    texts = [
        item["text"] for item in index["docs"] if item["location"] == CHINESE
    ]
    splits = re.compile(index["config"]["separator"])
    if not any(BREAK in text for text in texts):
        faults.append("the search does not know the words of Chinese sentences")
    elif not splits.fullmatch(BREAK):
        faults.append("the search does not separate Chinese words")
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    """Print all faults, and return the exit code: 0 if there are none, else 1."""
    arguments = sys.argv[1:] if argv is None else argv
    site = Path(arguments[0]) if arguments else ROOT / "build/site"
    pages = read_pages(site)
    faults = link_faults(site, pages) + foreign_assets(pages)
    faults += anchor_faults(ROOT, pages) + language_faults(pages)
    faults += search_faults(site)
    for fault in faults:
        print(fault)
    print(f"{len(pages)} pages, {len(faults)} faults")
    return 1 if faults or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
