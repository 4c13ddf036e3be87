"""Batches: the file of prompts, and the names of the outputs."""

import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidInputError
from ..files import absolute, read_text

IMAGE_MARK = "@@"
FIELDS = ("index", "prompt", "seed")
LONGEST_PIPE = 2**24
"""Characters of prompts that come through a pipe."""

_LONGEST_PROMPT = 48


@dataclass(frozen=True)
class Prompt:
    """A prompt to make videos of.

    Attributes:
        label: its place, such as ``line 3``; "" for that of ``--prompt``.
        image: path of the picture to start from.
    """

    text: str
    label: str = ""
    image: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Reads the prompts of a text file, or of a pipe that a shell has opened, one a line.

    ``prompt@@image`` starts from an image, as in the original tools. Blank lines and lines that
    begin with # are skipped.

    Raises:
        InvalidInputError: the file is missing, isn't UTF-8 or has no prompts.
    """
    prompts = []
    for number, line in enumerate(map(str.strip, _text(path).split("\n")), start=1):
        if line and not line.startswith("#"):
            text, mark, image = (part.strip() for part in line.partition(IMAGE_MARK))
            if mark and not image:
                raise InvalidInputError(
                    f"line {number} of {path} names no image after {IMAGE_MARK}"
                )
            prompts.append(Prompt(text, f"line {number}", image if mark else None))
    if not prompts:
        raise InvalidInputError(f"{path} has no prompts: write one a line")
    return prompts


def _text(path: Path) -> str:
    if path.parts[:2] != ("/", "dev") or not path.is_fifo():
        return read_text(path)
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(LONGEST_PIPE + 1)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} isn't UTF-8 text: {error.reason}") from None
    if len(text) > LONGEST_PIPE:
        raise InvalidInputError(f"{path} has more than {LONGEST_PIPE:,} characters: split the text")
    return text


def output_name(template: str, *, index: int, prompt: str, seed: int) -> str:
    """Fills ``{index}``, ``{prompt}`` and ``{seed}`` into the name of an output.

    Args:
        template: a format string of Python: ``{index:03d}`` works and ``{{`` is a brace.
        index: number of the prompt, from 1.
        prompt: its letters and digits are used, 48 at most.

    Raises:
        InvalidInputError: the template has another field, or a format that doesn't fit.
    """
    try:
        for _, field, _, _ in string.Formatter().parse(template):
            if field is not None and field not in FIELDS:
                raise ValueError(f"there is no {{{field}}}")
        return template.format(index=index, prompt=_slug(prompt), seed=seed)
    except ValueError as error:
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise InvalidInputError(
            f"the output's name {template!r} can't be filled in ({error}): use {known}, "
            "and {{ for a brace"
        ) from None


def default_output(from_file: bool, seeds: int) -> str:
    """The name of the outputs when none is given, with the fields that tell them apart."""
    fields = ["video", "{index}" if from_file else "", "{seed}" if seeds > 1 else ""]
    return "-".join(filter(None, fields)) + ".mp4"


def check_distinct(outputs: Iterable[str]) -> None:
    """Raises InvalidInputError where two videos would be one file.

    On a Mac's disk upper and lower case are the same, and links lead to the same folder.
    """
    names = Counter(str(absolute(Path(output))).casefold() for output in outputs)
    for name, count in names.most_common(1):
        if count > 1:
            raise InvalidInputError(
                f"{count} videos would be called {Path(name).name}: put {{index}} or {{seed}} into "
                "--output"
            )


def _slug(prompt: str) -> str:
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")
    return words[:_LONGEST_PROMPT].strip("-_") or "prompt"
