"""Values that `--help` shows; this module imports nothing, so that help is fast."""

DEFAULT_MODEL = "dfine_dinov3_s2_coco"
"""Name in `configs/models.yml`."""
