"""The hook gives mkdocs the pages and the navigation with its Chinese titles; mkdocs itself is not needed."""

import runpy
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.fixtures.tiny import ROOT


@pytest.fixture
def hook(monkeypatch, tmp_path):
    """The function `on_config`, whose pages are written to a temporary folder."""
    plugins = ModuleType("mkdocs.plugins")
    plugins.event_priority = lambda priority: lambda function: function
    monkeypatch.setitem(sys.modules, "mkdocs", ModuleType("mkdocs"))
    monkeypatch.setitem(sys.modules, "mkdocs.plugins", plugins)
    # mkdocs also puts the folder of a hook on the path
    monkeypatch.syspath_prepend(str(ROOT / "docs_site"))
    names = runpy.run_path(str(ROOT / "docs_site/hooks.py"))
    monkeypatch.delitem(sys.modules, "pages", raising=False)
    function = names["on_config"]
    monkeypatch.setitem(function.__globals__, "PAGES", tmp_path / "pages")
    monkeypatch.setitem(function.__globals__, "PACKAGE", tmp_path / "package")
    return function


def test_the_hook_writes_the_pages_and_sets_the_navigation(hook, tmp_path):
    english = SimpleNamespace(locale="en", nav_translations=None)
    chinese = SimpleNamespace(locale="zh", nav_translations=None)
    languages = SimpleNamespace(languages=[english, chinese])
    config = SimpleNamespace(
        repo_url="https://example.org/p",
        docs_dir="docs",
        nav=None,
        plugins={"i18n": SimpleNamespace(config=languages)},
    )
    assert hook(config) is config
    assert config.docs_dir == str(tmp_path / "pages")
    assert config.nav[0] == {"Home": "index.md"}
    assert chinese.nav_translations["Home"] == "首页"
    assert english.nav_translations is None
    home = (tmp_path / "pages/index.md").read_text(encoding="utf-8")
    assert "(https://example.org/p/blob/main/LICENSE)" in home
    assert (tmp_path / "package/dfine_dinov3/api.py").is_file()
