"""The documentation site: the pages of docs/ as mkdocs needs them (docs/decisions/0034)."""
