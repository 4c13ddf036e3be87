import sys

if __name__ == "__main__":
    try:
        from mlx_cogvideo.cli.lora import main
    except ImportError as error:  # one line on a Python that is too old, or without MLX
        sys.exit(f"error: {error}")
    sys.exit(main())
