"""``python -m mlx_cogvideo.check``: see `mlx_cogvideo.cli.check`."""

import sys

from .cli.check import main

if __name__ == "__main__":
    sys.exit(main())
