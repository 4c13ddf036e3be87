"""``mlx-cogvideo`` and ``python -m mlx_cogvideo``: see `mlx_cogvideo.cli.main`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
