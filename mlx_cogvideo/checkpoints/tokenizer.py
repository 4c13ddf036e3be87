"""T5's tokenizer on sentencepiece, with the ids of transformers' T5Tokenizer for the same file.

transformers normalizes, splits at whitespace, puts "▁" in front of every word and segments each
word by itself. Sentencepiece can do all of this at once, with small differences. Therefore it only
normalizes single characters and segments single words here; the steps between are our own.

One difference is intended: transformers turns special tokens typed in a prompt ("</s>", "<pad>",
"<extra_id_0>") into their ids. Here they are ordinary text.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import mlx.core as mx
from sentencepiece import SentencePieceNormalizer, SentencePieceProcessor

from ..errors import CheckpointError, InvalidInputError
from .tokenizer_json import model_proto

MODEL_FILE, JSON_FILE = "spiece.model", "tokenizer.json"
"""Files of a tokenizer folder, either of which is enough."""

SPACE = "▁"
# Unicode's White_Space. Python's \s also includes the separators U+001C to U+001F.
WHITESPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
# A ModelProto's normalizer_spec that changes nothing. Serialized messages merge when they are
# joined, and the later value of a field wins.
IDENTITY_NORMALIZER = bytes.fromhex("1a08 1200 1800 2000 2800")
LONGEST_TEXT = 2**18
"""Characters of a text: all of it is normalized and cut into pieces, whatever the model takes."""
# tokenizers looks up a base character and its marks together if they have fewer bytes than this.
SHORT_CLUSTER = 6
# Characters that join the one before them as a mark does: ZWNJ, ZWJ, half-width voicing marks.
JOINERS = "\u200c\u200d\uff9e\uff9f"
# Characters of a report on a text.
LONGEST = 400


@dataclass(frozen=True)
class TextReport:
    """What a text encoder doesn't get of a text.

    Attributes:
        max_length: ids that the encoder takes, including ``</s>``.
        cut: the end of the text that max_length ids can't hold, normalized; "" if all of it fits.
        unknown: characters of the rest that the vocabulary lacks, each run of them once.
    """

    max_length: int
    cut: str
    unknown: tuple[str, ...]

    def problems(self) -> list[str]:
        """A clause for each problem, to which the subject is missing ("the prompt ...")."""
        problems = []
        if self.cut:
            problems.append(f"is cut at {self.max_length} tokens; this is lost: {self.cut}")
        if self.unknown:
            problems.append(f"has characters that the model doesn't know: {' '.join(self.unknown)}")
        return [text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for text in problems]


class T5Tokenizer:
    """Text to ids: pieces, then ``</s>``, then pads."""

    pad_token_id = 0
    eos_token_id = 1
    unk_token_id = 2

    def __init__(self, model_proto: bytes):
        """Takes the contents of a ``spiece.model``: a sentencepiece model with T5's special ids.

        Raises:
            CheckpointError: it isn't a sentencepiece model, or pad, end and unknown don't have
                the ids 0, 1 and 2.
        """
        try:
            self._pieces = SentencePieceProcessor(model_proto=model_proto + IDENTITY_NORMALIZER)
            normalizer = SentencePieceNormalizer(
                model_proto=model_proto,
                add_dummy_prefix=False,
                escape_whitespaces=False,
                remove_extra_whitespaces=False,
            )
        except (RuntimeError, OSError) as error:
            raise CheckpointError("the tokenizer's file is no sentencepiece model") from error
        found = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        expected = (self.pad_token_id, self.eos_token_id, self.unk_token_id)
        if found != expected:
            raise CheckpointError(
                f"not a T5 tokenizer: pad, eos and unk have ids {found}, expected {expected}"
            )
        self._normalize = lru_cache(maxsize=4096)(normalizer.Normalize)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Reads ``spiece.model``, or else ``tokenizer.json``, in a checkpoint's tokenizer folder.

        Raises:
            CheckpointError: the file is missing, damaged or not T5's.
        """
        readers = {MODEL_FILE: Path.read_bytes, JSON_FILE: model_proto}
        files = (Path(folder) / name for name in readers)
        if (path := next(filter(Path.is_file, files), None)) is None:
            raise CheckpointError(
                f"{folder} has neither {MODEL_FILE} nor {JSON_FILE}: copy {MODEL_FILE} there from "
                "the tokenizer folder of an official model"
            )
        contents = readers[path.name](path)
        try:
            return cls(contents)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def __call__(self, texts: str | Sequence[str], max_length: int = 226) -> mx.array:
        """Tokenizes prompts to one length.

        Args:
            texts: B prompts, or one. An empty prompt becomes ``</s>`` and pads.
            max_length: ids per prompt, including ``</s>``. A longer prompt is cut: see
                ``report``.

        Returns:
            int32 [B, max_length].

        Raises:
            InvalidInputError: a prompt isn't Unicode text or max_length isn't positive.
        """
        texts = [texts] if isinstance(texts, str) else texts
        return mx.array([self._padded(self.encode(t), max_length) for t in texts], mx.int32)

    @property
    def size(self) -> int:
        """Number of pieces; all ids are below it."""
        return self._pieces.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, without ``</s>`` and pads."""
        return [i for word in self._words(text) for i in self._pieces.Encode(word, out_type=int)]

    def report(self, text: str, max_length: int = 226) -> TextReport:
        """Tells what the ids of a text lack.

        Args:
            max_length: as in a call.

        Raises:
            InvalidInputError: the text isn't Unicode.
        """
        pieces = [p for word in self._words(text) for p in self._pieces.Encode(word, out_type=str)]
        ids, kept = self.encode(text), max_length - 1
        unknown = [
            piece
            for piece, id in zip(pieces[:kept], ids[:kept], strict=True)
            if id == self.unk_token_id
        ]
        cut = "".join(pieces[kept:]).replace(SPACE, " ").strip()
        return TextReport(max_length, cut, tuple(dict.fromkeys(unknown)))

    def _padded(self, ids: list[int], max_length: int) -> list[int]:
        if max_length < 1:
            raise InvalidInputError(f"max_length must be at least 1; got {max_length}")
        ids = [*ids[: max_length - 1], self.eos_token_id]
        return ids + [self.pad_token_id] * (max_length - len(ids))

    def _words(self, text: str) -> Iterator[str]:
        """Normalized words, each with one "▁" in front and none inside."""
        if not isinstance(text, str):
            raise InvalidInputError(f"a prompt must be text; got {type(text).__name__}")
        if len(text) > LONGEST_TEXT:
            raise InvalidInputError(
                f"the text has {len(text):,} characters, and {LONGEST_TEXT:,} are the most"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError("the prompt has half a surrogate pair: not Unicode") from error
        normalized = "".join(self._normalized_cluster(c) for c in _clusters(text))
        for word in WHITESPACE.split(normalized):
            if word:
                # A "▁" in the text begins a word, too, and serves as the one in front.
                yield from (SPACE + part for part in word.removeprefix(SPACE).split(SPACE))

    def _normalized_cluster(self, cluster: str) -> str:
        """The nmt_nfkc form of a character with its marks, as tokenizers computes it.

        Its table is searched for the shortest known beginning of the cluster. The replacement of
        that beginning replaces the whole cluster, so that one of two accents is lost if they are
        separate marks. A cluster without a known beginning is normalized character by character.
        """
        for end in range(1, len(cluster) + 1):
            beginning = cluster[:end]
            normalized = self._normalize(beginning)
            if normalized != beginning[0] + "".join(map(self._normalize, beginning[1:])):
                return normalized
        return "".join(map(self._normalize, cluster))


def _clusters(text: str) -> Iterator[str]:
    """Splits a text into characters; a base stays with its marks if both are short together.

    Longer clusters are split, because tokenizers normalizes their characters one by one.
    """
    start = 0
    while start < len(text):
        end = start + 1
        if _can_be_extended(text[start]):
            while end < len(text) and _extends(text[end]):
                end += 1
        cluster = text[start:end]
        if len(cluster.encode()) < SHORT_CLUSTER:
            yield cluster
        else:
            yield from cluster
        start = end


def _extends(character: str) -> bool:
    """Whether Unicode keeps the character with the one before it (UAX 29, GB9 and GB9a)."""
    return unicodedata.category(character) in ("Mn", "Me", "Mc") or character in JOINERS


def _can_be_extended(character: str) -> bool:
    """Whether marks after the character belong to it: not to controls (UAX 29, GB4)."""
    is_control = unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")
    return character in JOINERS or not is_control
