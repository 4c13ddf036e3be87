"""Messages name commands as their reader called this one."""

import pytest

from mlx_cogvideo.called import command


@pytest.mark.parametrize(
    ("called", "generate", "convert"),
    [
        ("generate.py", "python generate.py", "python -m mlx_cogvideo.convert"),
        ("/clone/lora.py", "python generate.py", "python -m mlx_cogvideo.convert"),
        ("/venv/bin/mlx-cogvideo", "mlx-cogvideo generate", "mlx-cogvideo convert"),
        ("/venv/bin/mlx_cogvideo", "mlx_cogvideo generate", "mlx_cogvideo convert"),
        ("/venv/bin/mlx_cogvideo.convert", "mlx_cogvideo.generate", "mlx_cogvideo.convert"),
        (
            "/site-packages/mlx_cogvideo/__main__.py",
            "python -m mlx_cogvideo generate",
            "python -m mlx_cogvideo convert",
        ),
        (
            "/site-packages/mlx_cogvideo/generate.py",
            "python -m mlx_cogvideo.generate",
            "python -m mlx_cogvideo.convert",
        ),
        ("my_script.py", "mlx-cogvideo generate", "mlx-cogvideo convert"),
        ("", "mlx-cogvideo generate", "mlx-cogvideo convert"),
    ],
)
def test_commands_are_named_as_this_one_was_called(monkeypatch, called, generate, convert):
    monkeypatch.setattr("sys.argv", [called])
    assert (command("generate"), command("convert")) == (generate, convert)
