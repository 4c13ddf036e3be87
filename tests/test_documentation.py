"""The examples, commands and links of the documentation work as they are written."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import run

from mlx_cogvideo.cli import check, convert, generate, lora
from mlx_cogvideo.cli.troubleshooting import PAGE as TROUBLESHOOTING
from mlx_cogvideo.runs.batch import read_prompts
from mlx_cogvideo.video import read_video
from mlx_cogvideo.web import serve, ui

ROOT = Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
REPOSITORY = URLS["Repository"]
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
    "generate": generate.make_parser(),
    "convert": convert.make_parser(),
    "lora": lora.make_parser(),
    "check": check.make_parser(),
    "ui": ui.make_parser(),
    "serve": serve.make_parser(),
}
NAMES = "|".join(PARSERS)


def commands() -> list[str]:
    """Lines of the pages that call one of the commands."""
    codes = [code for page in PAGES for code in blocks(page, "(?:bash)?")]
    call = re.compile(rf"^(?:mlx\.launch .* -- )?mlx-cogvideo (?:{NAMES})\b.*$", re.M)
    return [line for code in codes for line in call.findall(code)]


@pytest.mark.parametrize("line", commands())
def test_a_command_has_options_that_exist(line):
    arguments = shlex.split(line, comments=True)
    call = arguments.index("mlx-cogvideo") + 1
    PARSERS[arguments[call]].parse_args(arguments[call + 1 :])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_within_a_sentence_has_options_that_exist(page):
    for name, rest in re.findall(rf"`mlx-cogvideo\s+({NAMES})\b([^`]*)`", page.read_text()):
        help_text = PARSERS[name].format_help()
        for option in re.findall(r"(?<=\s)--?[a-z][\w-]*", rest):
            assert option in help_text, f"{page.name}: mlx-cogvideo {name} {option}"


def test_pages_name_the_command_and_not_its_scripts():
    old = r"python (-m mlx_cogvideo\.|generate\.py|lora\.py)"
    assert not [page.name for page in PAGES if re.search(old, page.read_text())]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def targets(page: Path) -> list[str]:
    """The addresses of a page's links and pictures."""
    text = page.read_text()
    shown = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"|^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
    return ["".join(found) for found in shown]


@pytest.mark.parametrize(
    "page", [*PAGES, *ROOT.glob("tools/*/README.md")], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    for target in targets(page):
        if target.startswith(REPOSITORY):
            name = re.sub(r"^/(blob|raw|tree)/main/", "", target.removeprefix(REPOSITORY))
            path, _, anchor = name.partition("#")
            if path in ("", "/issues/new/choose"):
                continue
            file = ROOT / path
        elif "://" in target:
            continue
        else:
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def test_links_of_the_readme_work_on_the_package_index():
    relative = [target for target in targets(ROOT / "README.md") if "://" not in target]
    assert not relative


def test_links_between_pages_stay_on_the_site():
    """A page of docs/ links to another one by its name, so that the site needs no GitHub."""
    for page in (ROOT / "docs").glob("*.md"):
        assert not [target for target in targets(page) if "/blob/main/docs/" in target], page.name


SITE = (ROOT / "mkdocs.yml").read_text()


def test_every_page_is_in_the_navigation_once():
    listed = re.findall(r"^ +- [^#\n]+: (\S+\.md)$", SITE, re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_site_loads_nothing_from_other_hosts():
    assert "font: false" in SITE
    assert set(re.findall(r"https?://\S+", SITE)) == {REPOSITORY, URLS["Documentation"]}
    for page in (ROOT / "docs").glob("*.md"):
        assert not re.findall(r"!\[[^\]]*\]\(https?:|<(?:img|script|iframe)", page.read_text()), (
            page
        )


def test_messages_lead_to_the_site():
    assert f"{URLS['Documentation']}troubleshooting/" == TROUBLESHOOTING


def test_the_tables_of_macs_are_what_the_package_estimates():
    script = ROOT / "tools" / "docs" / "mac_tables.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0


def test_the_picture_is_small_and_moves():
    picture = ROOT / "docs" / "assets" / "demo.gif"
    frames, _ = read_video(picture)
    assert picture.stat().st_size < 1e6
    assert len(frames) > 17 and (frames[0] != frames[16]).any()


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
