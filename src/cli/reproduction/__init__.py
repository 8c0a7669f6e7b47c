"""Parts of the command that reproduces a model on COCO, `reproduce.py`."""

DEFAULT_MODEL = "dfine_dinov3_s2_coco"
"""Name in `configs/models.yml`; it is here so that `--help` need not import the table."""
