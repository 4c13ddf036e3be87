"""``python -m mlx_cogvideo.generate``: see `mlx_cogvideo.cli.generate`."""

import sys

from .cli.main import run_command


def main() -> int:
    return run_command("generate")


if __name__ == "__main__":
    sys.exit(main())
