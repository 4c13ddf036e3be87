"""``python -m mlx_cogvideo.serve``: see `mlx_cogvideo.web.serve`."""

import sys

from .cli.main import run_command


def main() -> int:
    return run_command("serve")


if __name__ == "__main__":
    sys.exit(main())
