"""Prompt files, and the names of a batch's outputs."""

import pytest

from mlx_cogvideo.errors import InvalidInputError
from mlx_cogvideo.runs.batch import (
    Prompt,
    check_distinct,
    default_output,
    output_name,
    read_prompts,
)


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_each_line_is_a_prompt_unless_it_is_blank_or_a_comment(tmp_path):
    text = "\ufeff# mine\r\n\r\n a “cat”, slowly \r\n  # no\r\na dog\u2028runs # on@home"
    assert read_prompts(write(tmp_path / "p", text)) == [
        Prompt("a “cat”, slowly", "line 3"),
        Prompt("a dog\u2028runs # on@home", "line 5"),
    ]


def test_an_image_follows_the_mark_after_a_prompt(tmp_path):
    (prompt,) = read_prompts(write(tmp_path / "p", "a cat @@ my cats/1.png"))
    assert prompt == Prompt("a cat", "line 1", "my cats/1.png")


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("", "utf-8", "has no prompts"),
        ("# only\n\n# comments\n", "utf-8", "has no prompts"),
        ("a café", "latin-1", "isn't UTF-8"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path, text, encoding, message):
    with pytest.raises(InvalidInputError, match=message):
        read_prompts(write(tmp_path / "p", text, encoding))


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="doesn't exist"):
        read_prompts(tmp_path / "p")
    with pytest.raises(InvalidInputError, match="can't be read"):
        read_prompts(tmp_path)


def test_an_output_name_has_index_prompt_and_seed(tmp_path):
    template = "{{v}}/{index:03d}-{prompt}-{seed}.mp4"
    name = output_name(template, index=3, prompt="A “golden” Größe 猫, x/../y", seed=5)
    assert name == "{v}/003-a-golden-größe-猫-x-y-5.mp4"


def test_a_long_prompt_makes_a_short_name():
    name = output_name("{prompt}.mp4", index=1, prompt="A very long story about 猫 " * 20, seed=1)
    assert len(name) <= 52
    assert not name.endswith("-.mp4")
    assert output_name("{prompt}.mp4", index=1, prompt="?!", seed=1) == "prompt.mp4"


@pytest.mark.parametrize("name", ["{x}", "{}", "{index", "{prompt.__class__}", "{index:zz}", "a}"])
def test_an_unknown_field_in_a_template_is_refused(name):
    with pytest.raises(InvalidInputError, match=r"use {index}, {prompt}, {seed}"):
        output_name(f"{name}.mp4", index=1, prompt="a", seed=1)


@pytest.mark.parametrize(
    ("from_file", "seeds", "name"),
    [
        (False, 1, "video.mp4"),
        (False, 2, "video-{seed}.mp4"),
        (True, 1, "video-{index}.mp4"),
        (True, 3, "video-{index}-{seed}.mp4"),
    ],
)
def test_the_default_name_contains_what_varies(from_file, seeds, name):
    assert default_output(from_file, seeds) == name


def test_names_that_differ_only_in_case_are_refused():
    check_distinct(["a.mp4", "b.mp4"])
    with pytest.raises(InvalidInputError, match=r"a\.mp4.*{index}"):
        check_distinct(["a.mp4", "b.mp4", "A.mp4"])
