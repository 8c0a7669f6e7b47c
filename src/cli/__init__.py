"""The commands: `dfine` and its subcommands, `train.py` and those of `tools/`.

Modules of this package parse arguments before they import anything that needs torch.
"""
