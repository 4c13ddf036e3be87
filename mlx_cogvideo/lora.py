"""``python -m mlx_cogvideo.lora``: see `mlx_cogvideo.cli.lora`."""

import sys

from .cli.lora import main

if __name__ == "__main__":
    sys.exit(main())
