"""The tokenizer against transformers' T5Tokenizer, both built from one spiece.model."""

import unicodedata

import numpy as np
import pytest
from support import WORDS, write_spiece_model
from transformers import T5Tokenizer as ReferenceTokenizer

from mlx_cogvideo.checkpoints.tokenizer import T5Tokenizer

PROMPTS = {
    "plain": "a red circle moves right on the white background.",
    "empty": "",
    "one space": " ",
    "whitespace only": " \t\n\u3000 ",
    "several spaces": "  a   red  circle ",
    "tabs and newlines": "a\tred\ncircle\r\nmoves\x0bright\x0cup",
    "every unicode space": "a\x85b\xa0c\u1680d\u2003e\u2028f\u2029g\u202fh\u205fi\u3000j",
    "separators that are no space": "a\x1cb\x1db\x1eb\x1fb",
    "zero width": "a\u200bred\u200ccir\u200dcle\u2060 \ufeffmoves",
    "metaspace inside": "a▁red▁▁circle",
    "metaspace in front": "▁a ▁red ▁▁circle",
    "metaspace alone": "▁",
    "metaspace among spaces": "a ▁ b ▁▁ c▁ d",
    "emoji": "😀😀 a 😀cat😀 👨‍👩‍👧 👍🏽 🇫🇷 1️⃣",
    "unknown run": "ᚠᚢᚦ aᚠb ᚠ ᚢ",
    "ligatures": "ﬁne ﬂow ﬃ",
    "full width": "ＲＥＤ　ｃｉｒｃｌｅ，１６：９",
    "half width": "ｶﾞｷﾞｸﾞ ﾊﾟ ﾊ",
    "precomposed": "café naïve Tiếng Việt Ǻ",
    "decomposed": unicodedata.normalize("NFD", "café naïve Tiếng Việt Ǻ ộ ガ 가나다 강"),
    "marks on marks": "x\u0300\u0301 e\u0301\u0327 ①\u0301 ½\u0308 \u0301a ﬁ\u0301",
    "right to left": "שלום ים بحر ثلج",
    "devanagari": "नमस्ते",
    "control characters": "\x00a\x01red\x08 \x7fcircle\x9f",
    "fractions and symbols": "½ ² ™ … № ℃",
    "soft hyphen and bidi": "well\xadlit \u200ered\u200f \u202acat\u202c",
    "long word": "circle" * 100,
    "long prompt": " ".join(WORDS * 12),
}


@pytest.fixture(scope="module", params=["nmt_nfkc", "identity"])
def pair(request, tmp_path_factory):
    """Our tokenizer and transformers', with T5's normalization and with none."""
    folder = tmp_path_factory.mktemp(request.param)
    write_spiece_model(folder, request.param)
    theirs = ReferenceTokenizer.from_pretrained(folder)
    assert (theirs.backend_tokenizer.normalizer is None) == (request.param == "identity")
    return T5Tokenizer.from_pretrained(folder), theirs


def reference_ids(tokenizer, prompts: list[str], max_length: int) -> np.ndarray:
    batch = tokenizer(
        prompts,
        padding="max_length",
        max_length=max_length,
        truncation=True,
        add_special_tokens=True,
        return_tensors="np",
    )
    return batch.input_ids


@pytest.mark.parametrize("name", PROMPTS)
def test_ids_equal_transformers(pair, name):
    ours, theirs = pair
    expected = reference_ids(theirs, [PROMPTS[name]], 226)
    np.testing.assert_array_equal(np.array(ours([PROMPTS[name]])), expected)


@pytest.mark.parametrize("max_length", [1, 2, 7, 226])
def test_a_batch_is_cut_and_padded_like_transformers(pair, max_length):
    ours, theirs = pair
    prompts = list(PROMPTS.values())
    expected = reference_ids(theirs, prompts, max_length)
    np.testing.assert_array_equal(np.array(ours(prompts, max_length=max_length)), expected)


def test_random_text_from_all_scripts_gives_the_ids_of_transformers(pair):
    ours, theirs = pair
    rng = np.random.default_rng(0)
    texts = [random_text(rng) for _ in range(3000)]
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, expected, strict=True):
        assert ours.encode(text) == ids, ascii(text)


@pytest.mark.parametrize("token", ["</s>", "<pad>", "<unk>", "<extra_id_0>"])
def test_a_typed_special_token_is_text_here_and_special_in_transformers(pair, token):
    ours, theirs = pair
    special = theirs.convert_tokens_to_ids(token)
    assert special in theirs(f"a {token} b", add_special_tokens=False)["input_ids"]
    assert ours.report(token, 1).cut == token
    ids = ours.encode(f"a {token} b")
    assert len(ids) > len(ours.encode("a b")) + 1
    assert ({ours.pad_token_id, ours.eos_token_id, special} - {ours.unk_token_id}).isdisjoint(ids)


def random_text(rng) -> str:
    """Up to 12 characters from one to three ranges, mixed with spaces and common letters.

    Two kinds of characters are left out: unassigned ones, whose grapheme class depends on the
    Unicode version, and format controls such as U+0600, which begin a grapheme in tokenizers.
    """
    ranges = [(0x20, 0x7F), (0x00, 0x100), (0x300, 0x370), (0x100, 0x800), (0x800, 0x1100)]
    ranges += [(0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2400), (0x3000, 0xD7FF)]
    ranges += [(0xF900, 0x10000), (0x1F000, 0x1FAFF)]
    chosen = rng.choice(len(ranges), rng.integers(1, 4), replace=False)
    text = ""
    for _ in range(rng.integers(1, 13)):
        if rng.random() < 0.25:
            text += rng.choice(list("aeo  ▁"))
            continue
        character = chr(rng.integers(*ranges[rng.choice(chosen)]))
        is_joiner = character in "\u200b\u200c\u200d\u2060\ufeff"
        if is_joiner or unicodedata.category(character) not in ("Cn", "Cf", "Cs", "Co"):
            text += character
    return text
