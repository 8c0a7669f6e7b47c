"""Documents become pages of the site: names, links, anchors, languages, navigation, the Python API."""

from pathlib import Path

import pytest

from docs_site.pages import (
    anchors_of,
    api_text,
    by_fences,
    chinese_titles,
    documents,
    link_package,
    navigation,
    page_file,
    page_text,
    sections_of,
    write_pages,
)
from tests.contract.test_links import anchors_of as anchors_on_github
from tests.fixtures.tiny import ROOT


@pytest.fixture
def repository(tmp_path) -> Path:
    """A small repository: two documents, one of them in both languages, and files beside them."""
    files = {
        "README.md": "# Project\n\n[简体中文](README_cn.md)\n\n"
        "[data](docs/data.md) ![a](docs/images/a.png)\n",
        "README_cn.md": "# 项目\n\n[English](README.md)\n\n[数据](docs/data_cn.md)\n",
        "docs/data.md": "# Data\n\n[简体中文](data_cn.md)\n\n## Fix\n\n## Fix\n\n[b](more/b.md#top)\n",
        "docs/data_cn.md": "# 数据\n\n[English](data.md)\n\n## 修复\n\n## 修复\n\n[b](more/b.md#top)\n",
        "docs/more/b.md": "# Top\n\n[fix](../data.md#fix-1) [code](../../src/x.py) [home](../../README.md)\n",
        "docs/README.md": "# Documents\n\n| step | page | content |\n| --- | --- | --- |\n"
        "| data | [Data](data.md) | x |\n"
        "| more | [B](more/b.md), [decisions](data.md#decisions) | y |\n| | [again](more/b.md) | |\n",
        "docs/README_cn.md": "# 文档\n\n| 步骤 | 页面 | 内容 |\n| --- | --- | --- |\n"
        "| 数据 | [数据](data_cn.md) | x |\n"
        "| 更多 | [乙](more/b.md)、[决策](data_cn.md#decisions) | y |\n| | [再次](more/b.md) | |\n",
        "docs/images/a.png": "",
        "docs_site/site.css": "body {}\n",
        "src/__init__.py": '__all__ = ["Detector", "__version__", "train"]\n',
        "src/x.py": "",
    }
    for name, text in files.items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "repository"


def page(repository: Path, document: str, repo_url: str = "") -> str:
    text = (repository / document).read_text(encoding="utf-8")
    return page_text(document, text, repository, repo_url)


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ("README.md", "index.md"),
        ("README_cn.md", "index.zh.md"),
        ("docs/README.md", "documents.md"),
        ("docs/README_cn.md", "documents.zh.md"),
        ("docs/data_cn.md", "data.zh.md"),
        ("docs/decisions/0001-a.md", "decisions/0001-a.md"),
        ("CHANGELOG.md", "changelog.md"),
        ("weights/README.md", "weights.md"),
    ],
)
def test_a_document_has_a_page(document, name):
    assert page_file(document) == name


def test_the_line_to_the_other_language_is_dropped(repository):
    for document in ("README.md", "README_cn.md", "docs/data_cn.md"):
        text = page(repository, document)
        assert "English](" not in text
        assert "简体中文](" not in text


def test_links_lead_to_pages_of_the_site(repository):
    assert "[data](data.md) ![a](images/a.png)" in page(repository, "README.md")
    text = page(repository, "docs/more/b.md")
    assert "[fix](../data.md#fix-1)" in text
    assert "[home](../index.md)" in text


def test_a_link_to_the_exported_names_leads_to_the_python_api(repository):
    text = page_text("docs/data.md", "[a](../src/__init__.py)\n", repository)
    assert text == "[a](api.md)\n"


def test_a_chinese_page_links_to_names_without_language(repository):
    assert "[数据](data.md)" in page(repository, "README_cn.md")


def test_a_file_outside_the_site_is_code_without_an_address(repository):
    assert "code (`src/x.py`)" in page(repository, "docs/more/b.md")
    text = page_text(
        "docs/data.md", "[x.py](../src/x.py) [`x`](../src/x.py)\n", repository
    )
    assert text == "`x.py` `x`\n"


def test_a_file_outside_the_site_is_a_link_if_the_address_is_known(repository):
    text = page(repository, "docs/more/b.md", "https://example.org/p/")
    assert "[code](https://example.org/p/blob/main/src/x.py)" in text
    text = page_text(
        "docs/data.md", "[s](../src)\n", repository, "https://example.org/p"
    )
    assert text == "[s](https://example.org/p/tree/main/src)\n"


@pytest.mark.parametrize(
    "text",
    [
        "`[a](../src/x.py)`\n",
        "```\n[a](../src/x.py)\n  - b\n```\n",
        "    [a](../src/x.py)\n",
        "[a](#top) [b](https://example.org/x_cn.md)\n",
        "````\n```\n[a](../src/x.py)\n````\n",
    ],
)
def test_code_and_other_links_stay_as_they_are(repository, text):
    assert page_text("docs/data.md", text, repository) == text


def test_links_in_brackets_and_pictures_with_links_are_found(repository):
    text = "([`a[0]`](data_cn.md)) [![p](images/a.png)](more/b.md)\n"
    assert page_text("docs/data.md", text, repository) == (
        "([`a[0]`](data.md)) [![p](images/a.png)](more/b.md)\n"
    )


def test_nested_lists_are_indented_as_mkdocs_needs_it(repository):
    text = "- a\n  - b\n  c\n"
    assert page_text("docs/data.md", text, repository) == (
        "- a\n    - b\n  c\n"
    )


def test_repeated_headings_have_the_anchors_of_github(repository):
    assert "## Fix\n\n## Fix { #fix-1 }" in page(repository, "docs/data.md")


def test_headings_of_a_chinese_page_have_the_english_anchors_too(repository):
    text = page(repository, "docs/data_cn.md")
    assert '<div id="fix-1"></div>\n\n## 修复 { #修复-1 }' in text


@pytest.mark.parametrize("document", documents(ROOT))
def test_anchors_are_those_that_links_in_the_documents_use(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert set(anchors_of(text)) == anchors_on_github(text)


def test_fences_may_contain_shorter_fences():
    lines = list(by_fences("a\n````\n```\nb\n````\nc"))
    assert [is_code for is_code, _ in lines] == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]


def test_the_navigation_is_the_table_of_pages(repository):
    (repository / "docs/decisions").mkdir()
    (repository / "docs/decisions/0001-a.md").write_text("# 0001\n")
    assert navigation(repository) == [
        {"Home": "index.md"},
        {"Python API": "api.md"},
        {"Data": "data.md"},
        {
            "More": [
                {"B": "more/b.md"},
                {"Decisions": ["decisions/0001-a.md"]},
                {"Again": "more/b.md"},
            ]
        },
        {"All pages": "documents.md"},
    ]


def test_the_navigation_has_chinese_titles(repository):
    titles = chinese_titles(repository)
    assert (titles["Data"], titles["More"], titles["B"]) == (
        "数据",
        "更多",
        "乙",
    )
    assert titles["Home"] == "首页"


def test_tables_of_two_languages_with_other_pages_are_an_error(repository):
    path = repository / "docs/README_cn.md"
    path.write_text(path.read_text().replace("[再次](more/b.md)", ""))
    with pytest.raises(ValueError, match="have different pages"):
        chinese_titles(repository)


def test_every_section_of_the_project_has_a_chinese_title():
    titles = chinese_titles(ROOT)
    english = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for section in sections_of(english):
        assert not titles[section.title].isascii()


def test_the_python_api_has_all_exported_names(repository):
    text = api_text(repository)
    assert "from dfine_dinov3 import Detector, train\n" in text
    assert "::: dfine_dinov3.Detector\n" in text
    assert "__version__" not in text
    names = ("Detector", "Prediction", "train", "evaluate", "export")
    for name in names:
        assert f"::: dfine_dinov3.{name}\n" in api_text(ROOT)


def test_pages_are_written_once_and_old_ones_are_removed(repository, tmp_path):
    folder = tmp_path / "pages"
    write_pages(repository, folder)
    assert {"index.zh.md", "data.zh.md", "api.md", "images/a.png"} <= {
        path.relative_to(folder).as_posix() for path in folder.rglob("*")
    }
    before = (folder / "index.md").stat().st_mtime_ns
    (repository / "docs/more/b.md").unlink()
    write_pages(repository, folder)
    assert (folder / "index.md").stat().st_mtime_ns == before
    assert not (folder / "more/b.md").exists()


def test_the_package_is_found_under_its_installed_name(repository, tmp_path):
    for _ in range(2):
        link_package(repository, tmp_path / "package")
    assert (tmp_path / "package/dfine_dinov3/x.py").is_file()
