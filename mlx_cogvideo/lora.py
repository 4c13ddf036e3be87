"""``python -m mlx_cogvideo.lora``: see `mlx_cogvideo.cli.lora`."""

import sys

from .cli.main import run_command


def main() -> int:
    return run_command("lora")


if __name__ == "__main__":
    sys.exit(main())
