"""``python -m mlx_cogvideo.convert``: see `mlx_cogvideo.cli.convert`."""

import sys

from .cli.main import run_command


def main() -> int:
    return run_command("convert")


if __name__ == "__main__":
    sys.exit(main())
