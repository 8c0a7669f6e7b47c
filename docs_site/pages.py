"""Write the Markdown pages of the documentation site from the documents of the repository.

The documents are written for GitHub: Chinese pages end in `_cn.md`, and links lead to files outside docs/.
The site needs other names and links, so its pages are written to a folder of their own, from which mkdocs
builds the site. Only the standard library is used.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HOME = "index.md"
"""Page of the site for the README."""

API = "api.md"
"""Page of the site with the Python interface, which is made from docstrings."""

EXPORTS = "src/__init__.py"
"""File with the names that the package exports; links to it lead to the page about them."""

CONTENTS = "docs/README.md"
"""The document with the table of all pages, from which the navigation is made."""

OUTSIDE = {
    "README.md": HOME,
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "weights/README.md": "weights.md",
    CONTENTS: "documents.md",
}
"""Documents whose pages have other names than the files, by path in the repository."""

TITLES = {
    "Home": "首页",
    "All pages": "全部页面",
    "Python API": "Python 接口",
}
"""Titles of entries in the navigation that are not in the table, in English and in Chinese."""

FENCE = re.compile(r"^ *(`{3,}|~{3,})")
HEADING = re.compile(r"(#{1,6}) +(.+?)\s*$")
LINK = re.compile(
    r"(?P<mark>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\](?:\([^()\s]*\))?)*)\]\((?P<target>[^()\s]+)\)"
)
INLINE_CODE = re.compile(r"`[^`\n]+`")
EXTERNAL = re.compile(r"[a-z][a-z+.-]*:", re.IGNORECASE)
SWITCH = re.compile(r"^\[[^\]]+\]\([\w.-]+\.md\)\s*$")
NESTED = re.compile(r"^  (?=(?:[-*]|\d+\.) )")


class Link(NamedTuple):
    """An entry of the table of all pages."""

    title: str
    target: str
    """Path relative to the repository, with an anchor if the link has one."""


class Section(NamedTuple):
    """A part of the navigation."""

    title: str
    links: list[Link]


# --- names of pages


def documents(root: Path) -> list[str]:
    """Return the documents that become pages of the site, by path in the repository."""
    found = [name for name in OUTSIDE if (root / name).is_file()]
    found += [name for name in ("README_cn.md",) if (root / name).is_file()]
    for path in sorted((root / "docs").rglob("*.md")):
        found.append(path.relative_to(root).as_posix())
    return list(dict.fromkeys(found))


def is_chinese(document: str) -> bool:
    """Return whether a document is the Chinese version of another one."""
    return document.endswith("_cn.md")


def english_name(document: str) -> str:
    """Return the English version of a document, which may be itself."""
    return (
        document.removesuffix("_cn.md") + ".md"
        if is_chinese(document)
        else document
    )


def page_of(document: str) -> str:
    """Return the English page of the site for a document in any language: "docs/data_cn.md" -> "data.md"."""
    english = english_name(document)
    return OUTSIDE.get(english, english.removeprefix("docs/"))


def page_file(document: str) -> str:
    """Return the file of a document among the pages: "docs/data_cn.md" -> "data.zh.md"."""
    page = page_of(document)
    return page.removesuffix(".md") + ".zh.md" if is_chinese(document) else page


# --- text of pages


def by_fences(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the lines of a document, each with whether it belongs to a block of code."""
    fence = None
    for line in text.splitlines():
        match = FENCE.match(line)
        if match and fence is None:
            fence = match[1]
            yield True, line
        elif (
            match
            and line.strip().startswith(fence or "")
            and not line.strip(" `~")
        ):
            fence = None
            yield True, line
        else:
            yield fence is not None, line


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"[^\w\s-]", "", text.strip().lower())
    return re.sub(r"\s", "-", text)


def anchors_of(text: str) -> list[str]:
    """Return the anchors of all headings of a document in order; as on GitHub, repeated ones are numbered."""
    anchors: list[str] = []
    for is_code, line in by_fences(text):
        heading = None if is_code else HEADING.match(line)
        if not heading:
            continue
        anchor = anchor_of(heading[2])
        numbered = anchor
        number = 0
        while numbered in anchors:
            number += 1
            numbered = f"{anchor}-{number}"
        anchors.append(numbered)
    return anchors


def page_text(document: str, text: str, root: Path, repo_url: str = "") -> str:
    """Return the text of a page.

    The line that leads to the other language is dropped, nested lists are indented by four columns as mkdocs
    needs it, repeated headings get the anchors that they have on GitHub, and links are those of the site. The
    headings of a Chinese page have the anchors of the English page too: English pages without a translation
    are shown in both languages, and link to them.

    Args:
        document: path in the repository.
        text: text of the document.
        root: folder of the repository.
        repo_url: address of the repository, for links to files that are not pages; empty for none.
    """
    anchors = iter(anchors_of(text))
    english = iter(_english_anchors(document, root))
    seen: set[str] = set()
    lines = []
    for number, (is_code, line) in enumerate(by_fences(text)):
        if is_code or line.startswith("    "):
            lines.append(line)
            continue
        if (
            number < 5
            and SWITCH.match(line)
            and _leads_to_other_language(document, line)
        ):
            continue
        heading = HEADING.match(line)
        if heading:
            anchor = next(anchors)
            is_repeated = anchor_of(heading[2]) in seen
            seen.add(anchor_of(heading[2]))
            other = next(english, anchor)
            if other != anchor:
                lines += [f'<div id="{other}"></div>', ""]
            line = _linked(line, document, root, repo_url)
            lines.append(f"{line} {{ #{anchor} }}" if is_repeated else line)
            continue
        lines.append(
            _linked(NESTED.sub("    ", line), document, root, repo_url)
        )
    return "\n".join(lines) + "\n"


def _english_anchors(document: str, root: Path) -> list[str]:
    """Return the anchors of the English version of a Chinese document, whose headings have the same order."""
    english = root / english_name(document)
    if not is_chinese(document) or not english.is_file():
        return []
    return anchors_of(english.read_text(encoding="utf-8"))


def _leads_to_other_language(document: str, line: str) -> bool:
    match = LINK.match(line)
    assert match is not None
    folder = os.path.dirname(document)
    target = os.path.normpath(os.path.join(folder, match["target"]))
    return target != document and english_name(target) == english_name(document)


def _linked(line: str, document: str, root: Path, repo_url: str) -> str:
    """Return a line with the links of the site; code in backticks is left as it is."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"\0{len(kept) - 1}\0"

    def replace(match: re.Match[str]) -> str:
        return _link(match, document, root, repo_url)

    # links are found with their code hidden: brackets in code are not those of links
    hidden = INLINE_CODE.sub(keep, line)
    linked = LINK.sub(replace, hidden)
    return re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], linked)


def _link(
    match: re.Match[str], document: str, root: Path, repo_url: str
) -> str:
    target, _, anchor = match["target"].partition("#")
    if EXTERNAL.match(match["target"]) or not target:
        return match[0]
    text = match["text"]
    if text.startswith("!["):  # a picture that is a link
        text = LINK.sub(
            lambda inner: _link(inner, document, root, repo_url), text
        )
    path = os.path.normpath(os.path.join(os.path.dirname(document), target))
    if path.startswith("docs/images/"):
        name = path.removeprefix("docs/")
    elif path == EXPORTS:
        name = API
    elif path in documents(root):
        name = page_of(path)
    elif repo_url:
        kind = "tree" if (root / path).is_dir() else "blob"
        return f"[{text}]({repo_url.rstrip('/')}/{kind}/main/{path})"
    else:
        return _as_code(text, path)
    relative = os.path.relpath(name, os.path.dirname(page_of(document)) or ".")
    anchor = f"#{anchor}" if anchor else ""
    return f"{match['mark']}[{text}]({relative}{anchor})"


def _as_code(text: str, path: str) -> str:
    """Return what a link to a file outside the site becomes: its text, with the path as code."""
    if "\0" in text:  # the text is code already
        return text
    last = path.rpartition("/")[2]
    if text.rstrip("/") in (path, last):
        return f"`{text}`"
    return f"{text} (`{path}`)"


# --- the Python interface


def api_text(root: Path) -> str:
    """Return the page with the Python interface: directives of mkdocstrings for all exported names."""
    module = ast.parse((root / EXPORTS).read_text(encoding="utf-8"))
    exported: list[str] = []
    for node in module.body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "__all__"
        ):
            exported = ast.literal_eval(node.value)
    names = [name for name in exported if not name.startswith("_")]
    functions = [name for name in names if name.islower()]
    classes = [name for name in names if not name.islower()]
    lines = [
        "# Python API",
        "",
        "The package exports the names below. [Deployment](deployment.md#11-use-from-python) has examples.",
        "",
        "```python",
        f"from dfine_dinov3 import {', '.join(classes + functions)}",
        "```",
    ]
    for name in classes + functions:
        lines += ["", f"::: dfine_dinov3.{name}"]
        if name == "train":
            lines += ["", "::: dfine_dinov3.api.TrainResult"]
    lines += [
        "",
        "## Errors",
        "",
        "Expected errors are subclasses of `RunError`. [Errors](errors.md) lists causes and remedies.",
        "",
        "::: dfine_dinov3.core.errors",
        "    options:",
        "      show_root_heading: false",
        "      show_root_toc_entry: false",
        "      members_order: source",
        "      filters: ['Error$|^Preempted$']",
        "",
    ]
    return "\n".join(lines)


# --- navigation


def sections_of(text: str) -> list[Section]:
    """Return the sections of the table of all pages, with the links of each.

    Args:
        text: text of docs/README.md, or of its Chinese version.
    """
    sections: list[Section] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 3 or "](" not in cells[1]:
            continue
        if cells[0]:
            sections.append(Section(_capitalized(cells[0]), []))
        for match in LINK.finditer(cells[1]):
            target = os.path.normpath(os.path.join("docs", match["target"]))
            sections[-1].links.append(Link(_capitalized(match["text"]), target))
    return sections


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def navigation(root: Path) -> list[dict]:
    """Return the navigation of the site, as mkdocs takes it; its titles are English."""
    text = (root / CONTENTS).read_text(encoding="utf-8")
    entries: list[dict] = [{"Home": HOME}]
    for section in sections_of(text):
        pages: list = []
        for link in section.links:
            target, _, anchor = link.target.partition("#")
            if anchor == "decisions":
                pages.append({link.title: _decisions(root)})
            else:
                pages.append({link.title: page_of(target)})
        if len(pages) == 1:
            pages = [{section.title: page} for page in pages[0].values()]
            entries.append(pages[0])
        else:
            entries.append({section.title: pages})
    entries.insert(-2, {"Python API": API})
    entries.append({"All pages": page_of(CONTENTS)})
    return entries


def _decisions(root: Path) -> list[str]:
    folder = root / "docs/decisions"
    return [f"decisions/{path.name}" for path in sorted(folder.glob("*.md"))]


def chinese_titles(root: Path) -> dict[str, str]:
    """Return the Chinese titles of the navigation by the English ones.

    Raises:
        ValueError: if the tables of the two languages have different sections or numbers of links.
    """
    both = []
    for name in (CONTENTS, CONTENTS.replace(".md", "_cn.md")):
        both.append(sections_of((root / name).read_text(encoding="utf-8")))
    english, chinese = both
    titles = dict(TITLES)
    pages = [
        [
            page_of(link.target.partition("#")[0])
            for s in part
            for link in s.links
        ]
        for part in both
    ]
    if pages[0] != pages[1] or len(english) != len(chinese):
        raise ValueError(
            f"the tables of {CONTENTS} and of its Chinese version have different pages: "
            f"{pages[0]} and {pages[1]}"
        )
    for ours, theirs in zip(english, chinese):
        titles[ours.title] = theirs.title
        for link, translated in zip(ours.links, theirs.links):
            # a section with one page has the title of the section
            titles.setdefault(link.title, translated.title)
    return titles


# --- writing


def write_pages(root: Path, folder: Path, repo_url: str = "") -> None:
    """Write all pages, pictures and the style sheet of the site into a folder; other files there are removed.

    Files that have not changed keep their time, so that `mkdocs serve` does not build again and again.

    Args:
        root: folder of the repository.
        folder: folder of the pages.
        repo_url: as for `page_text`.
    """
    texts = {API: api_text(root)}
    for document in documents(root):
        text = (root / document).read_text(encoding="utf-8")
        texts[page_file(document)] = page_text(document, text, root, repo_url)
    copies = {"site.css": root / "docs_site/site.css"}
    for path in sorted((root / "docs/images").iterdir()):
        copies[f"images/{path.name}"] = path
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in texts and name not in copies:
            path.unlink()
    for name, text in texts.items():
        _write(folder / name, text.encode())
    for name, path in copies.items():
        _write(folder / name, path.read_bytes())


def _write(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def link_package(root: Path, folder: Path) -> None:
    """Make `src` available as `dfine_dinov3` in a folder, where the docstrings are read."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "dfine_dinov3"
    if link.is_symlink():
        if link.resolve() == (root / "src").resolve():
            return
        link.unlink()
    if not link.exists():
        link.symlink_to(root / "src", target_is_directory=True)
