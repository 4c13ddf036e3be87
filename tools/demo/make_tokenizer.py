"""Makes the demo's tokenizer: a small unigram sentencepiece model with T5's conventions."""

import io
import json
import string
from pathlib import Path

import numpy as np
import sentencepiece
from captions import MAX_LENGTH, caption, combinations, with_other_words

VOCABULARY = 576
CAPTIONS = 12_000

# A little of everyday English, so that words outside the captions fall into pieces, not into <unk>.
_ENGLISH = """
the and of to in is that it was for on are as with his they at be this from have or by one had
not but what all were when we there can an your which their said if do will each about how up
out them then she many some so these would other into has more her two like him see time could
no make than first been its who now people my made over did down only way find use may water
long little very after words called just where most know get through back much before go good
new write our used me man too any day same right look think also around another came come work
three must because does part even place well such here take why things help put years different
away again off went old number great tell men say small every found still between name should
home big give air line set own under read last never us left end along while might next sound
below saw something thought both few those always looked show large often together asked house
world going want school important until form food keep children feet land side without boy once
animals life enough took sometimes four head above kind began almost live page got earth need
far hand high year mother light parts country father let night following picture being study
second eyes soon times story boys since white days ever paper hard near sentence better best
across during today others however sure means knew try told young miles sun ways thing whole
hear example heard several change answer room sea against top turned learn point city play
toward five using himself usually money seen car morning given trees body upon family later turn
move face door cut done group true leave color colour red friend pretty eat front feel really
walk fast slow dog bird forest river mountain rain snow fire cloud sky grass flower tree street
window table chair book music dance camera shot view scene close wide slow motion bright dark
soft warm cold sunny evening summer winter glass metal wood
"""
ENGLISH = _ENGLISH.split()


def corpus(rng: np.random.Generator) -> list[str]:
    """Captions, English words, and every printable character often enough to get a piece."""
    every = combinations()
    chosen = [every[index] for index in rng.integers(len(every), size=CAPTIONS)]
    lines = [caption(with_other_words(combination, rng), rng) for combination in chosen]
    lines += [" ".join(rng.choice(ENGLISH, 10)) for _ in range(1_500)]
    characters = string.ascii_letters + string.digits + string.punctuation
    return lines + [" ".join(rng.permutation(list(characters))) for _ in range(20)]


def train(lines: list[str]) -> bytes:
    """The serialized model: <pad> 0, </s> 1, <unk> 2, no beginning mark."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write(folder: Path, seed: int) -> None:
    """Trains the model and writes it with the configuration files that transformers expects."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(train(corpus(np.random.default_rng(seed))))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = special | {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 0,
        "additional_special_tokens": [],
        "model_max_length": MAX_LENGTH,
    }
    for name, values in (("tokenizer_config", config), ("special_tokens_map", special)):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
