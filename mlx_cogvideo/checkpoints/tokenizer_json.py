"""Reads the ``tokenizer.json`` that transformers saves as the sentencepiece model it was made of.

Newer versions of transformers save a T5 tokenizer in this form only. It has everything that a
``spiece.model`` has: the pieces with their scores, and the table of the normalizer. The result is
a serialized ``ModelProto`` of sentencepiece (``sentencepiece_model.proto``), whose few fields are
written by hand here because sentencepiece's own classes need the protobuf package.
"""

import base64
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .json_files import read_config

# Numbers of the proto's fields.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _CHARSMAP = 3, 2

_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
"""Types of pieces. Text is never split into control pieces."""
_UNIGRAM = 1

# Exceptions for JSON that isn't, or is of another form.
_DAMAGE = ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError


def model_proto(file: Path) -> bytes:
    """The sentencepiece model in a ``tokenizer.json``.

    Special tokens, such as ``<extra_id_0>``, become control pieces.

    Raises:
        CheckpointError: the file is damaged, or a tokenizer of another kind than T5's.
    """
    contents = read_config(file)
    try:
        model, added = contents["model"], contents["added_tokens"]
        vocabulary = [(str(piece), float(score)) for piece, score in model["vocab"]]
        special = {token["content"] for token in added if token["special"]}
        own = special & {piece for piece, _ in vocabulary}
        _check(contents, {token["content"] for token in added} - own)
        charsmap = _charsmap(contents["normalizer"])
        pieces = _pieces(vocabulary, special, model["unk_id"])
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except _DAMAGE as error:
        raise CheckpointError(f"{file} isn't T5's tokenizer.json: {error!r}") from None
    trainer = _number(_MODEL_TYPE, _UNIGRAM)
    return pieces + _field(_TRAINER, trainer) + _field(_NORMALIZER, _field(_CHARSMAP, charsmap))


def _check(contents: Mapping[str, Any], foreign: Collection[str]) -> None:
    """Raises CheckpointError unless it is a unigram model that splits words as T5's does.

    Args:
        foreign: added tokens that aren't special ones of the vocabulary.
    """
    model, before = contents["model"], contents["pre_tokenizer"]
    if model["type"] != "Unigram" or model.get("byte_fallback"):
        raise CheckpointError(f"a {model['type']} tokenizer: only T5's unigram model can be read")
    steps = before.get("pretokenizers", [before])
    metaspaces = [step for step in steps if step["type"] == "Metaspace"]
    others = {step["type"] for step in steps} - {"Metaspace", "WhitespaceSplit"}
    if others or [step["replacement"] for step in metaspaces] != ["▁"]:
        raise CheckpointError("it doesn't split words as T5's tokenizer does")
    if foreign:
        raise CheckpointError(
            f"it adds tokens to T5's, such as {min(foreign)!r}: only T5's own can be used"
        )


def _charsmap(normalizer: Mapping[str, Any] | None) -> bytes:
    """The normalizer's table of replacements; empty if it changes nothing.

    Raises:
        CheckpointError: it does more than T5's.
    """
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    tables = [step for step in steps if step["type"] == "Precompiled"]
    # Others of T5's steps change nothing but spaces between words.
    spaces = [s for s in steps if s["type"] == "Strip" or s.get("pattern") == {"Regex": " {2,}"}]
    if len(tables) > 1 or len(tables) + len(spaces) < len(steps):
        raise CheckpointError("its normalizer isn't T5's")
    return base64.b64decode(tables[0]["precompiled_charsmap"], validate=True) if tables else b""


def _pieces(vocabulary: list[tuple[str, float]], special: Collection[str], unknown: int) -> bytes:
    pieces = []
    for i, (piece, score) in enumerate(vocabulary):
        kind = _UNKNOWN if i == unknown else _CONTROL if piece in special else _NORMAL
        fields = _field(_PIECE, piece.encode()) + _float(_SCORE, score) + _number(_TYPE, kind)
        pieces.append(_field(_PIECES, fields))
    return b"".join(pieces)


def _field(number: int, contents: bytes) -> bytes:
    """A field of bytes, text or another message."""
    return _varint(number << 3 | 2) + _varint(len(contents)) + contents


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """An integer in groups of 7 bits, the lowest first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
