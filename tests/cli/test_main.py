"""``mlx-cogvideo``: one command for all others, which says what it can do without MLX."""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROMPT

from mlx_cogvideo.cli.main import COMMANDS, main
from mlx_cogvideo.version import __version__

ROOT = Path(__file__).parents[2]
DOORS = {
    "generate.py": [str(ROOT / "generate.py")],
    "lora.py": [str(ROOT / "lora.py")],
    "-m mlx_cogvideo": ["-m", "mlx_cogvideo", "generate"],
    **{f"-m mlx_cogvideo.{name}": ["-m", f"mlx_cogvideo.{name}"] for name in COMMANDS},
}
BROKEN = {
    "missing": "raise ModuleNotFoundError(\"No module named 'numpy'\")",
    "ill": "raise ImportError('\\n\\nnumpy is of another machine\\nmore')",
    "ctrl-c": "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    "except BaseException:\n    raise ImportError('swallowed')",
}


def run(*arguments) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def start(*arguments, folder=ROOT, first_on_path=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{first_on_path}:{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_each_command_and_an_example(capsys, arguments):
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: mlx-cogvideo COMMAND [OPTIONS]\n")
    for name, text in COMMANDS.items():
        assert f"  {name:10}{text}\n" in printed
    assert f'\n  mlx-cogvideo generate --prompt "{PROMPT}"\n' in printed


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["genrate"], "unknown command 'genrate': did you mean generate?"),
        (["upscale"], "unknown command 'upscale'"),
        (["a\x1b[2J"], "unknown command 'a\\x1b[2J'"),
        (["--\x1b[2J"], "--\\x1b[2J follows no command, such as mlx-cogvideo generate"),
        (["--prompt", "a"], "--prompt follows no command, such as mlx-cogvideo generate"),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest(capsys, arguments, problem):
    assert run(*arguments) == 2
    end = "(mlx-cogvideo --help lists the commands)"
    assert capsys.readouterr().err == f"error: {problem} {end}\n"


def test_help_and_version_need_no_mlx():
    code = "import sys; sys.modules |= dict.fromkeys(['mlx', 'numpy', 'tqdm', 'av'])\n"
    code += "from mlx_cogvideo.cli.main import main; main(); main(['--version'])"
    done = start("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"\nmlx-cogvideo {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help_and_the_version(capsys, command):
    assert run(command, "--version") == 0
    assert capsys.readouterr().out == f"mlx-cogvideo {__version__}\n"
    assert run(command, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: mlx-cogvideo {command} [-h]")
    examples = printed.partition("examples:\n")[2].splitlines()
    calls = [line for line in examples if line.startswith("  mlx-cogvideo")]
    assert len(calls) == 3 and all(f"mlx-cogvideo {command}" in line for line in calls)


@pytest.mark.parametrize("door", ["generate.py", "-m mlx_cogvideo"])
def test_help_is_called_as_its_reader_called_it(door):
    done = start(*DOORS[door], "--help")
    assert f"\n  {sys.executable} {shlex.join(DOORS[door])} --prompt" in done.stdout


def test_a_command_imports_no_other_one():
    code = "import sys; from mlx_cogvideo.cli.main import main\ntry: main(['check', '--version'])\n"
    code += (
        "finally: print({'mlx_cogvideo.cli.lora', 'mlx_cogvideo.cli.generate'} & {*sys.modules})"
    )
    assert start("-c", code).stdout.endswith("\nset()\n")


@pytest.mark.parametrize(
    ("door", "fault"),
    [*((door, "ctrl-c") for door in DOORS), ("lora.py", "missing"), ("-m mlx_cogvideo", "ill")],
)
def test_what_happens_while_a_command_is_imported_is_one_line(tmp_path, door, fault):
    (tmp_path / "numpy.py").write_text(BROKEN[fault])
    done = start(*DOORS[door], "--version", first_on_path=tmp_path)
    assert (done.returncode, done.stderr) == {
        "missing": (
            1,
            "error: No module named 'numpy': install mlx_cogvideo with what it needs, "
            "by pip or uv\n",
        ),
        "ill": (1, "error: numpy is of another machine\n"),
        "ctrl-c": (130, "interrupted: nothing was written\n"),
    }[fault]


def test_completion_without_shtab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    monkeypatch.setattr("mlx_cogvideo.cli.main.find_spec", lambda name: None)
    assert run("--print-completion", "bash") == 2
    line = "error: --print-completion needs the package shtab: pip install shtab\n"
    assert capsys.readouterr().err == line
    run("--help")
    assert "completion" not in capsys.readouterr().out


COMPLETE = """
source ./script
COMP_WORDS=(mlx-cogvideo "$@"); COMP_CWORD=$#
$(complete -p mlx-cogvideo | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(importlib.util.find_spec("shtab") is None, reason="needs shtab")
def test_a_shell_completes_commands_options_words_and_files(tmp_path, capsys):
    assert run("--print-completion", "dos") == 2
    assert "--print-completion takes one of bash, zsh, tcsh" in capsys.readouterr().err
    run("--help")
    assert "--print-completion SHELL" in capsys.readouterr().out
    assert run("--print-completion", "bash") == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "start.png").touch()

    def complete(*words: str) -> list[str]:
        command = ["bash", "-c", COMPLETE, "bash", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert complete("gen") == ["generate"]
    assert complete("generate", "--neg") == ["--negative-prompt"]
    assert complete("generate", "--tiling", "t") == ["tiled"]
    for command, option in (
        ("generate", "--image"),
        ("generate", "--model"),
        ("generate", "--lora"),
        ("convert", "--mlx-path"),
        ("lora", "--resume-adapter-file"),
    ):
        assert complete(command, option, "sta") == ["start.png"]
