"""The examples, commands and links of the documentation work as they are written."""

import re
import shlex
from pathlib import Path

import pytest
from commands import run

from mlx_cogvideo.cli import check, convert, generate, lora
from mlx_cogvideo.runs.batch import read_prompts

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"), start=1)
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_in_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})


def test_the_pages_have_examples():
    assert len(EXAMPLES) >= 7


PARSERS = {
    "generate.py": generate.make_parser(),
    "lora.py": lora.make_parser(),
    "mlx_cogvideo.generate": generate.make_parser(),
    "mlx_cogvideo.convert": convert.make_parser(),
    "mlx_cogvideo.check": check.make_parser(),
}


def commands() -> list[str]:
    """Lines of the pages that call one of the commands."""
    codes = [code for page in PAGES for code in blocks(page, "(?:bash)?")]
    scripts = r"(?:(?:generate|lora)\.py|-m mlx_cogvideo\.(?:generate|convert|check))"
    call = re.compile(rf"^(?:mlx\.launch .* -- )?python {scripts}.*$", re.M)
    return [line for code in codes for line in call.findall(code)]


@pytest.mark.parametrize("line", commands())
def test_a_command_has_options_that_exist(line):
    arguments = shlex.split(line, comments=True)
    name = next(word for word in arguments if word in PARSERS)
    PARSERS[name].parse_args(arguments[arguments.index(name) + 1 :])


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, *ROOT.glob("tools/*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_example_prompts_are_a_dozen_long_ones_that_fit():
    prompts = read_prompts(ROOT / "examples" / "prompts.txt")
    assert len(prompts) == 12
    for prompt in prompts:
        # T5 makes about 1.35 tokens of an English word, and reads 226.
        assert 80 <= len(prompt.text.split()) <= 150, prompt.label
        assert prompt.text.isascii()


def test_the_example_prompts_can_be_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--prompt-file", ROOT / "examples" / "prompts.txt", "--dry-run") == 0
    assert "video-1.mp4 and 11 more" in capsys.readouterr().err
