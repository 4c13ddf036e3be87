"""A message that the troubleshooting page explains ends with the address of its entry."""

import re
from pathlib import Path

import pytest
from commands import PROMPT, run

from mlx_cogvideo.cli.troubleshooting import ENTRIES, PAGE, explained
from mlx_cogvideo.errors import InvalidInputError, device_error

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "examples" / "triangle.png"
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text()
SECTIONS = {
    re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"): body
    for heading, body in re.findall(
        r"^## ([^\n]+)$(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE
    )
}


def address(message: str) -> str | None:
    """The anchor that a message is given."""
    found = re.search(rf" \({re.escape(PAGE)}#([\w-]+)\)$", explained(InvalidInputError(message)))
    return found and found[1]


def test_the_page_has_an_entry_for_each_address():
    assert list(SECTIONS) == list(ENTRIES)


@pytest.mark.parametrize("anchor", ENTRIES)
def test_the_messages_that_an_entry_quotes_lead_to_it(anchor):
    quoted = re.findall(r"(?:^> .+\n)+", SECTIONS[anchor], re.MULTILINE)
    assert quoted
    for quote in quoted:
        message = " ".join(line[2:] for line in quote.splitlines())
        assert address(message) == anchor, message


@pytest.mark.parametrize(
    ("arguments", "anchor"),
    [
        (["--frames", "48"], "frames-and-size"),
        (["--height", "50"], "frames-and-size"),
        (["--image", IMAGE], "an-image-or-none"),
        (["--model", "demo-i2v"], "an-image-or-none"),
        (["--model", "no model"], "no-such-model"),
        (["--model", "."], "a-part-of-the-model-is-missing"),
        (["--memory-limit", "0.001"], "out-of-memory"),
        (["--resume"], "resuming-is-refused"),
        (["--output", "old.mp4"], "the-output-exists"),
        (["--lora", "lora.safetensors"], "an-adapter-that-doesnt-fit"),
    ],
)
def test_a_command_that_fails_names_the_entry(arguments, anchor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old.mp4").write_bytes(b"")
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    Path("lora.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert run("--prompt", PROMPT, "--dry-run", *arguments) != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.endswith(f" ({PAGE}#{anchor})")


def test_the_address_stands_before_a_command_that_is_copied():
    error = device_error(RuntimeError("[metal::malloc] Unable to allocate 5 bytes."))
    error.add_note("continue with: mlx-cogvideo generate --resume a.mp4")
    assert explained(error).endswith(
        "fewer frames (" + PAGE + "#out-of-memory); continue with: mlx-cogvideo generate --resume "
        "a.mp4"
    )


def test_a_message_without_an_entry_stays_as_it_is():
    assert explained(InvalidInputError("give a prompt")) == "give a prompt"
