"""The text encoder equals transformers' T5EncoderModel."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from support import relative_error
from torch_reference import TOLERANCE, load_config, make_t5, ours

from mlx_cogvideo.checkpoints import load_component
from mlx_cogvideo.nn.t5 import T5Config, T5EncoderModel, relative_position_buckets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "text_encoder"
    make_t5().save_pretrained(folder)
    return folder


def load(folder, dtype=None) -> T5EncoderModel:
    config = T5Config.from_dict(load_config(folder))
    return load_component(T5EncoderModel(config), folder, dtype)


def padded_ids(length: int, words: int) -> torch.Tensor:
    ids = torch.randint(3, 400, (2, length), generator=torch.Generator().manual_seed(1))
    ids[:, words] = 1
    ids[:, words + 1 :] = 0
    return ids


@pytest.mark.parametrize(("length", "words"), [(226, 40), (226, 0), (226, 225), (10, 4)])
def test_equals_transformers_with_padding(folder, length, words):
    ids = padded_ids(length, words)
    with torch.no_grad():
        expected = make_t5()(ids).last_hidden_state
    assert relative_error(load(folder)(ours(ids)), expected) < TOLERANCE


def test_position_buckets_equal_transformers():
    attention = make_t5().encoder.block[0].layer[0].SelfAttention
    position = torch.arange(300)
    distance = position[None, :] - position[:, None]
    for buckets, furthest in ((32, 128), (16, 64), (64, 256)):
        expected = attention._relative_position_bucket(
            distance, bidirectional=True, num_buckets=buckets, max_distance=furthest
        )
        assert (relative_position_buckets(300, buckets, furthest) == expected.numpy()).all()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_sixteen_bit_weights_keep_the_residual_in_float32(folder, dtype):
    ids = ours(padded_ids(64, 20))
    model = load(folder, dtype)
    streams = []
    block_call = type(model.encoder.block[0]).__call__

    def recording(self, x, *rest):
        streams.append(x.dtype)
        return block_call(self, x, *rest)

    type(model.encoder.block[0]).__call__ = recording
    try:
        result = model(ids)
    finally:
        type(model.encoder.block[0]).__call__ = block_call
    assert set(streams) == {mx.float32}
    assert result.dtype == dtype
    error = relative_error(result.astype(mx.float32), np.array(load(folder)(ids)))
    assert error < {mx.float16: 4e-3, mx.bfloat16: 3e-2}[dtype]


def test_float16_activations_beyond_its_range_stay_finite(folder):
    model = load(folder, mx.float16)
    for block in model.encoder.block:
        dense = block.layer[1].DenseReluDense
        dense.wi_0.weight *= 400
        dense.wi_1.weight *= 400
    ids = ours(padded_ids(32, 20))
    assert mx.isfinite(model(ids)).all()
