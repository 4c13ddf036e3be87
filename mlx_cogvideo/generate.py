"""``python -m mlx_cogvideo.generate``: see `mlx_cogvideo.cli.generate`."""

import sys

from .cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
