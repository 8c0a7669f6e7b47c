"""Parts of the command that reproduces a model on COCO, `reproduce.py`."""
