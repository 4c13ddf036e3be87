"""``python -m mlx_cogvideo.ui``: see `mlx_cogvideo.web.ui`."""

import sys

from .cli.main import run_command


def main() -> int:
    return run_command("ui")


if __name__ == "__main__":
    sys.exit(main())
