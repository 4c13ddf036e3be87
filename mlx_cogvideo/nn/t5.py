"""The T5 v1.1 encoder (arXiv:1910.10683, arXiv:2002.05202).

CogVideoX runs it without an attention mask: padding attends and is attended to, and the transformer
also receives the rows of the padding.
"""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .attention import attention, merge_heads, split_heads
from .config import T5Config
from .eval_schedule import LAZY, EvalSchedule


class T5EncoderModel(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)

    def __call__(self, input_ids: mx.array, schedule: EvalSchedule = LAZY) -> mx.array:
        """``[batch, length]`` token ids to ``[batch, length, d_model]`` in the weights' dtype."""
        embedded = self.shared(input_ids)
        return schedule.flush(self.encoder(embedded, schedule).astype(embedded.dtype))


class T5Stack(nn.Module):
    """The blocks. The residual stream is float32, whatever the dtype of the weights.

    In T5-XXL it exceeds the range of float16 and the precision of bfloat16.
    """

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.block = [T5Block(config, has_bias=i == 0) for i in range(config.num_layers)]
        self.final_layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def __call__(self, x: mx.array, schedule: EvalSchedule = LAZY) -> mx.array:
        length, dtype = x.shape[1], x.dtype
        # Only the first block has a table of position biases; all blocks use it.
        bias = self.block[0].layer[0].SelfAttention.position_bias(length).astype(dtype)
        x = x.astype(mx.float32)
        for block in self.block:
            # Packed weights are unpacked in a block, and are larger than its activations.
            x = schedule.push(block(x, bias, dtype), self.config.block_weights)
        return self.final_layer_norm(x)


class T5Block(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool):
        super().__init__()
        self.layer = [T5LayerSelfAttention(config, has_bias), T5LayerFF(config)]

    def __call__(self, x: mx.array, bias: mx.array, dtype: mx.Dtype) -> mx.array:
        self_attention, feed_forward = self.layer
        return feed_forward(self_attention(x, bias, dtype), dtype)


class T5LayerSelfAttention(nn.Module):
    def __init__(self, config: T5Config, has_bias: bool):
        super().__init__()
        self.SelfAttention = T5Attention(config, has_bias)
        self.layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def __call__(self, x: mx.array, bias: mx.array, dtype: mx.Dtype) -> mx.array:
        return x + self.SelfAttention(self.layer_norm(x).astype(dtype), bias)


class T5LayerFF(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = T5DenseGatedActDense(config)
        self.layer_norm = nn.RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def __call__(self, x: mx.array, dtype: mx.Dtype) -> mx.array:
        return x + self.DenseReluDense(self.layer_norm(x).astype(dtype))


class T5Attention(nn.Module):
    """Attention without the usual 1/√d, which T5 folds into its initial weights."""

    def __init__(self, config: T5Config, has_bias: bool):
        super().__init__()
        inner_dim = config.num_heads * config.d_kv
        self.config = config
        self.q = nn.Linear(config.d_model, inner_dim, bias=False)
        self.k = nn.Linear(config.d_model, inner_dim, bias=False)
        self.v = nn.Linear(config.d_model, inner_dim, bias=False)
        self.o = nn.Linear(inner_dim, config.d_model, bias=False)
        if has_bias:
            buckets = config.relative_attention_num_buckets
            self.relative_attention_bias = nn.Embedding(buckets, config.num_heads)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        heads = self.config.num_heads
        queries, keys, values = (split_heads(p(x), heads) for p in (self.q, self.k, self.v))
        return self.o(merge_heads(attention(queries, keys, values, scale=1.0, bias=bias)))

    def position_bias(self, length: int) -> mx.array:
        """``[1, heads, length, length]``, added to the scores."""
        config = self.config
        buckets = relative_position_buckets(
            length, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        return self.relative_attention_bias(mx.array(buckets)).transpose(2, 0, 1)[None]


class T5DenseGatedActDense(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        gate, x = nn.gelu_approx(self.wi_0(x)), self.wi_1(x)
        if x.dtype == mx.float16:
            # T5-XXL's largest activations are here: their product and its sums overflow float16.
            gate = gate.astype(mx.float32)
        return self.wo(gate * x)


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Buckets of all (query, key) pairs, ``[length, length]``, bidirectional.

    Half of the buckets are for keys after the query. In each half, near distances have a bucket
    each, and distances up to `max_distance` share the rest logarithmically.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half, exact = num_buckets // 2, num_buckets // 4
    magnitude = np.abs(distance)
    # In float32, whose rounding decides the bucket at exact powers, as in the reference.
    ratio = np.log(np.maximum(magnitude, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + ratio.astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0) + np.where(magnitude < exact, magnitude, far)
