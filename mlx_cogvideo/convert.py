"""``python -m mlx_cogvideo.convert``: see `mlx_cogvideo.cli.convert`."""

import sys

from .cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
