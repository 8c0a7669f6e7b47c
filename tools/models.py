"""List the published detectors, show one, and say which one a file holds (`src/cli/models.py`).

# write the tables of docs/models.md and docs/models_cn.md again, after configs/models.yml has changed
python tools/models.py page
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.cli import models

PAGES = ("docs/models.md", "docs/models_cn.md")
"""Pages with tables that are generated."""


def main() -> None:
    if sys.argv[1:] == ["page"]:
        write_pages()
    else:
        models.main()


def write_pages() -> None:
    from src.core.paths import read_text
    from src.detection.model_page import with_tables
    from src.detection.model_table import read_table
    from src.runtime.files import write_atomically

    for name in PAGES:
        path = ROOT / name
        text = with_tables(read_text(path), read_table())
        write_atomically(
            path, lambda file, text=text: file.write(text.encode())
        )
        print(f"{name}: written")


if __name__ == "__main__":
    main()
