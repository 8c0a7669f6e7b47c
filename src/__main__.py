"""`python -m dfine_dinov3` is the command `dfine`."""

from .cli.main import main

if __name__ == "__main__":
    main()
