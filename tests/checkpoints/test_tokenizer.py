"""The tokenizer: shapes, padding, truncation and clear errors."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_cogvideo.checkpoints.tokenizer import T5Tokenizer
from mlx_cogvideo.errors import CheckpointError, InvalidInputError


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return T5Tokenizer.from_pretrained(tokenizer_folder)


def test_prompts_become_int32_rows_of_one_length(tokenizer):
    ids = tokenizer(["a red circle", "the river"], max_length=226)
    assert ids.shape == (2, 226)
    assert ids.dtype == mx.int32


def test_the_default_length_is_226(tokenizer):
    assert tokenizer(["a"]).shape == (1, 226)


def test_an_empty_prompt_is_the_end_token_and_pads(tokenizer):
    assert tokenizer([""], max_length=5).tolist() == [[1, 0, 0, 0, 0]]


def test_one_string_is_a_batch_of_one(tokenizer):
    assert mx.array_equal(tokenizer("a red dog"), tokenizer(["a red dog"]))


def test_the_end_token_follows_the_text_and_is_kept_when_text_is_cut(tokenizer):
    ids = tokenizer.encode("a red circle moves right")
    count = len(ids)
    assert count > 4
    assert tokenizer(["a red circle moves right"], count + 1).tolist() == [[*ids, 1]]
    assert tokenizer(["a red circle moves right"], count).tolist() == [[*ids[:-1], 1]]


def test_the_end_of_a_long_prompt_is_cut(tokenizer):
    prompt = "a red circle moves right over the river"
    kept = len(tokenizer.encode("a red circle moves"))
    report = tokenizer.report(prompt, kept + 1)
    assert report.cut == "right over the river"
    assert report.problems() == [f"is cut at {kept + 1} tokens; this is lost: right over the river"]
    assert tokenizer.report(prompt, 1).cut == prompt
    (problem,) = tokenizer.report("a cat " * 1000, 9).problems()
    assert "this is lost: " in problem
    assert len(problem) < 500


def test_nothing_is_cut_from_a_prompt_that_just_fits(tokenizer):
    prompt = "a red circle moves right"
    count = len(tokenizer.encode(prompt))
    assert tokenizer.report(prompt, count + 1).problems() == []
    assert tokenizer.report(prompt, count).cut != ""


def test_characters_that_the_vocabulary_lacks_are_reported_once_and_unless_cut(tokenizer):
    prompt = "a red ᚠᚢ circle 🎈 and ᚠᚢ moves 一只狗"
    report = tokenizer.report(prompt)
    assert (report.cut, report.unknown) == ("", ("ᚠᚢ", "🎈", "一只狗"))
    assert report.problems() == ["has characters that the model doesn't know: ᚠᚢ 🎈 一只狗"]
    short = tokenizer.report(prompt, len(tokenizer.encode("a red ᚠᚢ circle")) + 1)
    assert (short.cut, short.unknown) == ("🎈 and ᚠᚢ moves 一只狗", ("ᚠᚢ",))


def test_prompts_of_the_same_words_have_the_same_ids_whatever_the_spaces(tokenizer):
    rows = np.array(tokenizer(["a red  dog", "\ta red\ndog ", "a\u3000red\u200bdog"]))
    assert (rows == rows[0]).all()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"has neither spiece\.model nor tokenizer\.json: copy"
    ):
        T5Tokenizer.from_pretrained(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"spiece\.model: .* no sentencepiece model"):
        T5Tokenizer.from_pretrained(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "spiece.model").touch()
    with pytest.raises(CheckpointError):
        T5Tokenizer.from_pretrained(tmp_path)


def test_a_sentencepiece_model_of_another_family_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle", "the old dog"] * 50),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(CheckpointError, match="not a T5 tokenizer"):
        T5Tokenizer.from_pretrained(tmp_path)


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(InvalidInputError, match="surrogate"):
        tokenizer(["a \ud83d cat"])


def test_a_text_without_end_is_refused(tokenizer):
    with pytest.raises(InvalidInputError, match="has 1,000,000 characters, and 262,144 are"):
        tokenizer("a" * 10**6)


def test_a_prompt_that_is_no_text_is_refused(tokenizer):
    with pytest.raises(InvalidInputError, match="must be text; got NoneType"):
        tokenizer([None])


def test_a_length_without_room_for_the_end_token_is_refused(tokenizer):
    with pytest.raises(InvalidInputError, match="at least 1"):
        tokenizer(["a"], max_length=0)


def small_json() -> dict:
    """Returns a ``tokenizer.json`` as transformers writes it, with a few pieces."""
    special = ("<pad>", "</s>", "<unk>")
    pieces = [*special, "▁", "a", "▁a", "▁red", "d", "e", "r"]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "added_tokens": [{"id": i, "content": t, "special": True} for i, t in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace],
        },
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[piece, -float(i > 2) * i] for i, piece in enumerate(pieces)],
            "byte_fallback": False,
        },
    }


def write_json(folder, contents) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(contents))


def test_a_tokenizer_json_is_read_where_there_is_no_spiece_model(tmp_path):
    write_json(tmp_path, small_json())
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    assert tokenizer(["a red"], max_length=5).tolist() == [[5, 6, 1, 0, 0]]
    assert tokenizer.encode("dear ?") == [3, 7, 8, 4, 9, 3, 2]


def test_the_steps_of_older_versions_around_the_normalizer_are_understood(tmp_path):
    contents = small_json()
    replace = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    contents["normalizer"] = {"type": "Sequence", "normalizers": [strip, replace]}
    contents["pre_tokenizer"] = contents["pre_tokenizer"]["pretokenizers"][1]
    write_json(tmp_path, contents)
    assert T5Tokenizer.from_pretrained(tmp_path).encode("a  red ") == [5, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {}, "unk_id": 2}}, "tokenizer.json"),
        ({"normalizer": {"type": "Lowercase"}}, "its normalizer isn't T5's"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "doesn't split words"),
        ({"pre_tokenizer": None}, "isn't T5's tokenizer.json"),
        (
            {"added_tokens": [{"id": 32100, "content": "<cat>", "special": True}]},
            "adds tokens to T5's, such as '<cat>'",
        ),
        ({"added_tokens": [{"id": 5, "content": "▁a", "special": False}]}, "such as '▁a'"),
        ({"model": None}, "isn't T5's tokenizer.json"),
        ({"added_tokens": []}, "pad, eos and unk have ids"),
    ],
    ids=["bpe", "normalizer", "words", "none", "foreign", "not special", "model", "unmarked"],
)
def test_another_tokenizer_json_is_refused(tmp_path, change, message):
    write_json(tmp_path, small_json() | change)
    with pytest.raises(CheckpointError, match=message) as caught:
        T5Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "{}", '{"model": 3}'])
def test_a_damaged_tokenizer_json_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"isn't T5's|is not valid JSON|should hold"):
        T5Tokenizer.from_pretrained(tmp_path)
