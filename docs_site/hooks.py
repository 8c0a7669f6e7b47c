"""Hook of mkdocs: before a build, write the pages of the site and set its navigation.

`docs/` stays as it is for GitHub; `docs_site/pages.py` writes the pages. mkdocs calls `on_config` once for
each language.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.plugins import event_priority
from pages import (  # the folder of this file is on the path while it is loaded
    chinese_titles,
    link_package,
    navigation,
    write_pages,
)

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build/site-pages"
PACKAGE = ROOT / "build/site-package"


@event_priority(100)  # mkdocstrings looks for the package in its own on_config
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write the pages, and return the configuration with their folder and the navigation."""
    write_pages(ROOT, PAGES, config.repo_url or "")
    link_package(ROOT, PACKAGE)
    config.docs_dir = str(PAGES)
    config.nav = navigation(ROOT)
    for language in config.plugins["i18n"].config.languages:
        if language.locale == "zh":
            language.nav_translations = chinese_titles(ROOT)
    return config
