"""The measurements of `tools/benchmark/everything.py`: one module for each kind of work."""
