"""``python -m mlx_cogvideo.tune``: see `mlx_cogvideo.cli.tune`."""

import sys

from .cli.main import run_command


def main() -> int:
    return run_command("tune")


if __name__ == "__main__":
    sys.exit(main())
