"""Train or evaluate a detector. The code is in `src/cli/trainer.py`; `dfine` has shorter commands."""

from src.cli.trainer import main, parse_arguments

__all__ = ["main", "parse_arguments"]

if __name__ == "__main__":
    main()
