"""Compares the tokenizer with transformers' on T5's own vocabulary, which isn't distributed here.

::

    python tools/checks/genuine_tokenizer.py FOLDER

FOLDER has the official ``spiece.model``, such as ``tokenizer`` of CogVideoX-2b. transformers saves
it as ``tokenizer.json``, and that is read and compared on the texts of the tests and many random
ones. A few texts in ten thousand may differ where two segmentations have the same score: sentence-
piece adds scores in float32, tokenizers in float64.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import transformers

from mlx_cogvideo.checkpoints.tokenizer import T5Tokenizer

TESTS = Path(__file__).parents[2] / "tests"
sys.path += [str(TESTS), str(TESTS / "reference")]

from test_tokenizer import PROMPTS, random_text  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=20_000)
    args = parser.parse_args()
    if not (args.folder / "spiece.model").is_file():
        sys.exit(f"skipped: {args.folder} has no spiece.model")
    rng = np.random.default_rng(1)
    texts = [*PROMPTS.values(), *(random_text(rng) for _ in range(args.texts))]
    with tempfile.TemporaryDirectory() as saved:
        transformers.T5Tokenizer.from_pretrained(args.folder).save_pretrained(saved)
        theirs = transformers.T5Tokenizer.from_pretrained(saved)
        read, ours = map(T5Tokenizer.from_pretrained, (saved, args.folder))
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    pairs = list(zip(texts, expected, strict=True))
    other_ids = [text for text, ids in pairs if read.encode(text) != ids]
    other_forms = [text for text in texts if read.encode(text) != ours.encode(text)]
    print(f"{len(texts)} texts: {len(other_ids)} differ from transformers: {other_ids[:5]!a}")
    print(f"{len(other_forms)} differ between tokenizer.json and spiece.model")
    if other_forms or len(other_ids) > len(texts) / 2000:
        sys.exit("the tokenizers differ")


if __name__ == "__main__":
    main()
