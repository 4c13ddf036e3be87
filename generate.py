import sys

if __name__ == "__main__":
    try:
        from mlx_cogvideo.cli.main import run_command
    except ImportError as error:  # one line on a Python that is too old
        sys.exit(f"error: {error}")
    sys.exit(run_command("generate"))
