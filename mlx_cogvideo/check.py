"""``python -m mlx_cogvideo.check``: see `mlx_cogvideo.cli.check`."""

import sys

from .cli.main import run_command


def main() -> int:
    return run_command("check")


if __name__ == "__main__":
    sys.exit(main())
