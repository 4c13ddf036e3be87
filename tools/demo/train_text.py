"""The demo's text encoder, trained so that every row of its output knows the whole caption."""

from collections.abc import Generator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from captions import ATTRIBUTES, MAX_LENGTH, VALUES, Combination, caption, with_other_words
from learner import Losses
from make_tokenizer import ENGLISH, VOCABULARY

from mlx_cogvideo.checkpoints.tokenizer import T5Tokenizer
from mlx_cogvideo.nn.t5 import T5Config, T5EncoderModel

CONFIG = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 3,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "is_encoder_decoder": False,
    "use_cache": False,
    "tie_word_embeddings": False,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
PEAK_RATE, HOLD = 2e-3, 0.5
EMPTY_SHARE, ENGLISH_SHARE = 0.02, 0.1
TOKEN_WEIGHT = 0.25


class Reader(nn.Module):
    """The encoder with linear heads, which are only used in training.

    From each row of the encoder's output, one head for each attribute predicts the caption's value,
    or that it is outside the small world. Another head predicts the row's own token, so that words
    without a meaning yet stay distinct.
    """

    def __init__(self):
        super().__init__()
        self.encoder = T5EncoderModel(T5Config.from_dict(CONFIG))
        shape = self.encoder.shared.weight.shape
        self.encoder.shared.weight = mx.random.normal(shape, scale=0.5)
        width = CONFIG["d_model"]
        self.heads = [nn.Linear(width, len(values) + 1) for values in VALUES]
        self.token = nn.Linear(width, VOCABULARY)


def objective(reader: Reader, ids: mx.array, labels: mx.array) -> tuple[mx.array, Losses]:
    """Cross entropies over all rows, padding included, of `ids` [B, L] and `labels` [B, 4]."""
    rows = reader.encoder(ids)
    losses = {}
    for name, head, label in zip(ATTRIBUTES, reader.heads, labels.T, strict=True):
        label = mx.broadcast_to(label[:, None], ids.shape)
        losses[name] = nn.losses.cross_entropy(head(rows), label, reduction="mean")
    loss = sum(losses.values())
    losses["token"] = nn.losses.cross_entropy(reader.token(rows), ids, reduction="mean")
    return loss + TOKEN_WEIGHT * losses["token"], losses


def label_of(combination: Combination) -> list[int]:
    """One class for each attribute; the last class means any other value."""
    pairs = zip(combination, VALUES, strict=True)
    return [values.index(value) if value in values else len(values) for value, values in pairs]


def _example(combinations: list[Combination], rng: np.random.Generator) -> tuple[str, list[int]]:
    draw = rng.random()
    nothing = Combination("", "", "", "")
    if draw < EMPTY_SHARE:
        return "", label_of(nothing)
    if draw < EMPTY_SHARE + ENGLISH_SHARE:
        return " ".join(rng.choice(ENGLISH, rng.integers(1, 14))), label_of(nothing)
    combination = combinations[rng.integers(len(combinations))]
    if rng.random() < 0.5:
        combination = with_other_words(combination, rng)
    return caption(combination, rng), label_of(combination)


def batches(
    rng: np.random.Generator,
    tokenizer: T5Tokenizer,
    combinations: list[Combination],
    size: int,
    captions: int,
) -> Generator:
    """Yields token ids and labels, drawn from `captions` captions that are made first."""
    texts, labels = zip(*(_example(combinations, rng) for _ in range(captions)), strict=True)
    ids, labels = tokenizer(list(texts), max_length=MAX_LENGTH), mx.array(labels)
    yield
    while True:
        chosen = mx.array(rng.integers(captions, size=size))
        yield ids[chosen], labels[chosen]
