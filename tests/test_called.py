"""Messages name commands as their reader called this one, so that they run as printed."""

import os
import shlex
from pathlib import Path

import pytest

import mlx_cogvideo
from mlx_cogvideo.called import command, shell_word

ROOT = Path(__file__).parents[1]
PACKAGE = Path(mlx_cogvideo.__file__).parent


def named(monkeypatch, argument: str, python: str = "python3") -> tuple[str, str]:
    monkeypatch.setattr("sys.argv", [argument])
    monkeypatch.setattr("sys.orig_argv", [python, argument])
    return command("generate"), command("convert")


@pytest.mark.parametrize(
    ("called", "generate", "convert"),
    [
        ("generate.py", "python3 generate.py", "python3 -m mlx_cogvideo.convert"),
        ("./lora.py", "python3 generate.py", "python3 -m mlx_cogvideo.convert"),
        (
            PACKAGE / "__main__.py",
            "python3 -m mlx_cogvideo generate",
            "python3 -m mlx_cogvideo convert",
        ),
        (
            PACKAGE / "generate.py",
            "python3 -m mlx_cogvideo.generate",
            "python3 -m mlx_cogvideo.convert",
        ),
        ("my_script.py", "mlx-cogvideo generate", "mlx-cogvideo convert"),
        ("", "mlx-cogvideo generate", "mlx-cogvideo convert"),
    ],
)
def test_commands_are_named_as_this_one_was_called(monkeypatch, called, generate, convert):
    monkeypatch.chdir(ROOT)
    assert named(monkeypatch, str(called)) == (generate, convert)


@pytest.mark.parametrize(
    ("script", "generate"),
    [
        ("mlx-cogvideo", "mlx-cogvideo generate"),
        ("mlx_cogvideo", "mlx_cogvideo generate"),
        ("mlx_cogvideo.convert", "mlx_cogvideo.generate"),
    ],
)
def test_an_installed_command_has_its_path_where_the_shell_does_not_find_it(
    tmp_path, monkeypatch, script, generate
):
    folder = tmp_path / "my bin"
    folder.mkdir()
    for name in (script, generate.split()[0]):
        (folder / name).touch(0o755)
    with_path = (
        shlex.quote(str(folder / generate.split()[0])) + generate[len(generate.split()[0]) :]
    )
    assert named(monkeypatch, str(folder / script))[0] == with_path
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    assert named(monkeypatch, str(folder / script))[0] == generate


def test_a_script_of_another_folder_has_its_path_and_one_of_somebody_else_is_none(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    script = str(ROOT / "lora.py")
    assert named(monkeypatch, script, "/my python/bin/python")[0] == (
        f"'/my python/bin/python' {shlex.quote(str(ROOT / 'generate.py'))}"
    )
    assert named(monkeypatch, "generate.py")[0] == "mlx-cogvideo generate"


def test_a_file_is_one_word_that_is_no_option():
    assert [shell_word(name) for name in ("a.mp4", "my clip.mp4", "-a.mp4")] == [
        "a.mp4",
        "'my clip.mp4'",
        "./-a.mp4",
    ]
