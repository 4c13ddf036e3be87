"""The CogVideoX diffusion transformer (arXiv:2408.06072), all variants.

Text and video tokens form one sequence, text first, and attend to each other without a mask.
What differs between the variants are configuration fields: the position embeddings, the temporal
patch of 1.5, the image channels and the ``ofs`` embedding of image-to-video.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from . import cuda
from .attention import attention, merge_heads, split_heads
from .backend import kernel_operations
from .config import Config
from .eval_schedule import LAZY, EvalSchedule, in_kernels
from .fusion import fused
from .low_rank import permute_rows
from .modulation import AdaLayerNorm, CogVideoXLayerNormZero, gated_residual, layer_norm, silu
from .positions import half_split, rope_tables, rotate, sincos_table

QK_NORM_EPS = 1e-6

FEED_FORWARD_ELEMENTS = 2**28
"""Of the wide layer that are computed at a time; in 16 bits, 512 MB."""


def feed_forward_parts(rows: int, dim: int, operations: float | None = None) -> int:
    """Into how many parts the feed-forward layers divide their rows.

    Args:
        operations: that a kernel may take; None is what this machine allows.
    """
    at_once = kernel_operations() if operations is None else operations
    return max(
        1,
        math.ceil(4 * rows * dim / FEED_FORWARD_ELEMENTS),
        math.ceil(8 * rows * dim**2 / at_once),
    )


@dataclass(frozen=True)
class TransformerConfig(Config):
    """Fields of ``transformer/config.json``. Sizes are in latents: 90x60 stands for 720x480."""

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None
    text_embed_dim: int = 4096
    num_layers: int = 30
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    patch_size_t: int | None = None
    patch_bias: bool = True
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def takes_image(self) -> bool:
        """Whether it is an image-to-video model."""
        return self.in_channels > self.out_channels

    @property
    def native_latent_frames(self) -> int:
        return (self.sample_frames - 1) // self.temporal_compression_ratio + 1

    def leading_frames(self, latent_frames: int) -> int:
        """Latent frames that 1.5 wants in front, to fill up its temporal patches."""
        return -latent_frames % (self.patch_size_t or 1)

    def token_count(self, latent_shape: tuple[int, ...]) -> int:
        """Tokens of the text and of latents ``[B, f, h, w, c]``."""
        _, frames, height, width, _ = latent_shape
        patches = frames // (self.patch_size_t or 1) * (height * width // self.patch_size**2)
        return self.max_text_seq_length + patches


class BlockContext(NamedTuple):
    """What each block is given besides its tokens.

    Attributes:
        temb: ``[batch, time_embed_dim]``.
        is_text: ``[tokens, 1]``.
        rotation: cosines and sines of ``positions.rope_tables``, or None.
    """

    temb: mx.array
    is_text: mx.array
    rotation: tuple[mx.array, mx.array] | None

    def of_rows(self, first: int, end: int) -> "BlockContext":
        """For some of the tokens."""
        turn = self.rotation and tuple(table[first:end] for table in self.rotation)
        return BlockContext(self.temb, self.is_text[first:end], turn)


class CogVideoXTransformer3DModel(nn.Module):
    """Predicts the velocity of noisy latents."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        time_dim = config.time_embed_dim
        self.patch_embed = CogVideoXPatchEmbed(config)
        self.time_embedding = TimestepEmbedding(config.dim, time_dim)
        if config.ofs_embed_dim:
            self.ofs_embedding = TimestepEmbedding(config.ofs_embed_dim, config.ofs_embed_dim)
        self.transformer_blocks = [CogVideoXBlock(config) for _ in range(config.num_layers)]
        self.norm_final = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.norm_out = AdaLayerNorm(time_dim, config.dim, config.norm_eps)
        patch_volume = (config.patch_size_t or 1) * config.patch_size**2
        self.proj_out = nn.Linear(config.dim, patch_volume * config.out_channels)

    def __call__(
        self,
        hidden_states: mx.array,
        encoder_hidden_states: mx.array,
        timestep: mx.array,
        ofs: mx.array | None = None,
        schedule: EvalSchedule = LAZY,
    ) -> mx.array:
        """
        Args:
            hidden_states: ``[batch, frames, height, width, in_channels]``, noisy latents (and, for
                image-to-video, the image latents behind them on the channel axis).
            encoder_hidden_states: ``[batch, text_length, text_embed_dim]``.
            timestep: ``[batch]``, 0 to 999.
            ofs: ``[batch]`` or ``[1]``; 2.0 where the configuration has an ``ofs_embed_dim`` and
                nothing is given.
            schedule: how to compute it; lazily if not told.

        Returns:
            ``[batch, frames, height, width, out_channels]``.

        Raises:
            ValueError: frames, height or width that the patches or the position table don't fit.
        """
        embedded = [*self.embed(hidden_states, encoder_hidden_states, timestep, ofs)]
        context = embedded.pop()
        # Popped, so that nothing but the first block holds them.
        x = self.run_blocks(embedded.pop(), context, schedule=schedule)
        return self.project(x, context, hidden_states.shape)

    def run_blocks(
        self,
        x: mx.array,
        context: "BlockContext",
        first: int = 0,
        end: int | None = None,
        schedule: EvalSchedule = LAZY,
    ) -> mx.array:
        """Tokens through some of the blocks, all unless told."""
        for block in self.transformer_blocks[first:end]:
            # In two halves, so that the tokens before the first are let go in the second.
            x = block.attend(x, *context, schedule)
            x = block.add_feed_forward(x, context.temb, context.is_text, schedule)
        return x

    def embed(
        self,
        hidden_states: mx.array,
        encoder_hidden_states: mx.array,
        timestep: mx.array,
        ofs: mx.array | None = None,
    ) -> tuple[mx.array, "BlockContext"]:
        """What the blocks begin with: tokens ``[batch, text_length + patches, dim]``, and what
        each of them is given besides. Arguments as in ``__call__``."""
        grid = self._patch_grid(hidden_states.shape)
        text_length = encoder_hidden_states.shape[1]
        temb = self.embed_time(timestep, hidden_states.dtype, ofs)
        x = self.patch_embed(hidden_states, encoder_hidden_states, grid)
        is_text = (mx.arange(x.shape[1]) < text_length)[:, None]
        return x, BlockContext(temb, is_text, self._rotation(text_length, grid))

    def embed_time(
        self, timestep: mx.array, dtype: mx.Dtype, ofs: mx.array | None = None
    ) -> mx.array:
        """``[batch] -> [batch, time_embed_dim]``, with that of ofs where there is one."""
        config = self.config
        temb = self.time_embedding(sinusoid(timestep, config.dim, config).astype(dtype))
        if config.ofs_embed_dim:
            ofs = mx.array([2.0]) if ofs is None else ofs
            temb = temb + self.ofs_embedding(
                sinusoid(ofs, config.ofs_embed_dim, config).astype(dtype)
            )
        return temb

    def project(self, x: mx.array, context: "BlockContext", shape: tuple[int, ...]) -> mx.array:
        """The last block's tokens to a velocity for latents of `shape`."""
        grid = self._patch_grid(shape)
        norm = self.norm_final
        x = layer_norm(x[:, -math.prod(grid) :], norm.weight, norm.bias, norm.eps)
        x = self.proj_out(self.norm_out(x, context.temb))
        return self._unpatchify(x, grid)

    def _patch_grid(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        patch = (self.config.patch_size_t or 1, self.config.patch_size, self.config.patch_size)
        if any(size % p for size, p in zip(shape[1:4], patch, strict=True)):
            raise ValueError(f"latents {shape[1:4]} (f, h, w) don't divide into {patch} patches")
        frames, rows, columns = (size // p for size, p in zip(shape[1:4], patch, strict=True))
        return frames, rows, columns

    def _rotation(
        self, text_length: int, grid: tuple[int, int, int]
    ) -> tuple[mx.array, mx.array] | None:
        config = self.config
        if not config.use_rotary_positional_embeddings:
            return None
        base = None
        if config.patch_size_t is None:
            base = (
                config.sample_height // config.patch_size,
                config.sample_width // config.patch_size,
            )
        return rope_tables(text_length, grid, config.attention_head_dim, base)

    def _unpatchify(self, x: mx.array, grid: tuple[int, int, int]) -> mx.array:
        """Features of a token are ordered (channel, frame, row, column) inside its patch."""
        frames, rows, columns = grid
        p_t, p, channels = self.config.patch_size_t or 1, self.config.patch_size, -1
        x = x.reshape(x.shape[0], frames, rows, columns, channels, p_t, p, p)
        x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(x.shape[0], frames * p_t, rows * p, columns * p, channels)


class CogVideoXPatchEmbed(nn.Module):
    """Latents and text to one sequence of tokens."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        channels, p, p_t = config.in_channels, config.patch_size, config.patch_size_t
        if p_t is None:
            self.proj = nn.Conv2d(channels, config.dim, p, stride=p, bias=config.patch_bias)
        else:
            # CogVideoX 1.5 sets patch_bias to false and has a bias all the same.
            self.proj = nn.Linear(channels * p_t * p * p, config.dim)
        self.text_proj = nn.Linear(config.text_embed_dim, config.dim)
        if config.use_learned_positional_embeddings:
            patches = config.native_latent_frames
            patches *= (config.sample_height // p) * (config.sample_width // p)
            self.pos_embedding = mx.zeros((1, config.max_text_seq_length + patches, config.dim))

    def __call__(self, latents: mx.array, text: mx.array, grid: tuple[int, int, int]) -> mx.array:
        """``[B, f, h, w, c], [B, L, text_dim] -> [B, L + tokens, dim]``."""
        config = self.config
        text = self.text_proj(text)
        video = self._embed_patches(latents, grid)
        if config.use_learned_positional_embeddings:
            joint = mx.concatenate([text, video], axis=1)
            return joint + self._learned_positions(text.shape[1], latents.shape).astype(joint.dtype)
        if not config.use_rotary_positional_embeddings:
            scales = config.spatial_interpolation_scale, config.temporal_interpolation_scale
            video = video + sincos_table(grid, config.dim, *scales).astype(video.dtype)
        return mx.concatenate([text, video], axis=1)

    def _embed_patches(self, latents: mx.array, grid: tuple[int, int, int]) -> mx.array:
        batch, (frames, rows, columns) = latents.shape[0], grid
        p, p_t = self.config.patch_size, self.config.patch_size_t
        if p_t is None:
            tokens = self.proj(latents.flatten(0, 1))
        else:
            patches = latents.reshape(batch, frames, p_t, rows, p, columns, p, -1)
            # (channel, frame, row, column) inside a patch, as the weights expect.
            tokens = self.proj(patches.transpose(0, 1, 3, 5, 7, 2, 4, 6).flatten(4))
        return tokens.reshape(batch, frames * rows * columns, -1)

    def _learned_positions(self, text_length: int, shape: tuple[int, ...]) -> mx.array:
        """The table, cut to fewer frames if need be; it covers the text rows too."""
        config, (frames, height, width) = self.config, shape[1:4]
        native = config.native_latent_frames, config.sample_height, config.sample_width
        if (height, width) != native[1:] or frames > native[0]:
            raise ValueError(
                f"this model's learned positions hold up to {native} latents (f, h, w); "
                f"got {(frames, height, width)}"
            )
        if text_length != config.max_text_seq_length:
            raise ValueError(
                f"this model's learned positions expect {config.max_text_seq_length} text tokens; "
                f"got {text_length}"
            )
        patches = frames * (height // config.patch_size) * (width // config.patch_size)
        return self.pos_embedding[:, : text_length + patches]


class CogVideoXBlock(nn.Module):
    """Joint attention and feed-forward, each modulated before and gated after."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm1 = CogVideoXLayerNormZero(config.time_embed_dim, config.dim, config.norm_eps)
        self.attn1 = Attention(config)
        self.norm2 = CogVideoXLayerNormZero(config.time_embed_dim, config.dim, config.norm_eps)
        self.ff = FeedForward(config.dim)

    def __call__(
        self,
        x: mx.array,
        temb: mx.array,
        is_text: mx.array,
        rotation: tuple[mx.array, mx.array] | None,
        schedule: EvalSchedule = LAZY,
    ) -> mx.array:
        """``[B, tokens, dim] -> [B, tokens, dim]``; see `CogVideoXLayerNormZero` for the rest."""
        x = self.attend(x, temb, is_text, rotation, schedule)
        return self.add_feed_forward(x, temb, is_text, schedule)

    def attend(
        self,
        x: mx.array,
        temb: mx.array,
        is_text: mx.array,
        rotation: tuple[mx.array, mx.array] | None,
        schedule: EvalSchedule = LAZY,
    ) -> mx.array:
        """The first half of the block."""
        attended = attention(*self.to_attend(x, temb, is_text, rotation, schedule))
        return schedule.push(self.add_attention(x, attended, temb, is_text))

    # The parts beside attention treat each token by itself. Gradients are taken of one after
    # another, some tokens at a time (training/blockwise.py).

    def to_attend(
        self,
        x: mx.array,
        temb: mx.array,
        is_text: mx.array,
        rotation: tuple[mx.array, mx.array] | None,
        schedule: EvalSchedule = LAZY,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values, ``[B, heads, tokens, head_dim]`` each."""
        modulated, _ = self.norm1(x, temb, is_text, schedule)
        return self.attn1(modulated, rotation, schedule)

    def add_attention(
        self, x: mx.array, attended: mx.array, temb: mx.array, is_text: mx.array
    ) -> mx.array:
        """`attended` is what came of queries, keys and values, shaped like these."""
        _, gates = self.norm1(x, temb, is_text)
        return gated_residual(
            x, in_kernels(self.attn1.to_out[0], merge_heads(attended)), is_text, *gates
        )

    def add_feed_forward(
        self, x: mx.array, temb: mx.array, is_text: mx.array, schedule: EvalSchedule = LAZY
    ) -> mx.array:
        modulated, gates = self.norm2(x, temb, is_text, schedule)
        return schedule.push(gated_residual(x, self.ff(modulated, schedule), is_text, *gates))


class Attention(nn.Module):
    """The layers of self-attention over the joint sequence; queries and keys are normalized per
    head."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim, bias = config.dim, config.attention_bias
        self.heads = config.num_attention_heads
        self.norm_q = nn.LayerNorm(config.attention_head_dim, eps=QK_NORM_EPS)
        self.norm_k = nn.LayerNorm(config.attention_head_dim, eps=QK_NORM_EPS)
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(dim, dim, bias=bias)
        self.to_v = nn.Linear(dim, dim, bias=bias)
        self.to_out = [nn.Linear(dim, dim)]

    def __call__(
        self,
        x: mx.array,
        rotation: tuple[mx.array, mx.array] | None,
        schedule: EvalSchedule = LAZY,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """``[B, tokens, dim]`` to queries, keys and values ``[B, heads, tokens, head_dim]``."""
        queries = schedule.push(self._positioned(x, self.to_q, self.norm_q, rotation, schedule))
        keys = schedule.push(self._positioned(x, self.to_k, self.norm_k, rotation, schedule))
        return queries, keys, split_heads(in_kernels(self.to_v, x), self.heads)

    def _positioned(
        self,
        x: mx.array,
        linear: nn.Module,
        norm: nn.LayerNorm,
        rotation: tuple[mx.array, mx.array] | None,
        schedule: EvalSchedule,
    ) -> mx.array:
        """Queries or keys ``[B, heads, tokens, head_dim]``."""
        heads, weight, bias = self.heads, norm.weight, norm.bias
        head_dim = len(weight)
        if rotation is None:
            y = in_kernels(linear, x)
        else:
            y = in_kernels(lambda x: permute_rows(linear, x, half_split(heads, head_dim)), x)
            order = half_split(1, head_dim)
            weight, bias = weight[order], bias[order]
        y = y.reshape(*x.shape[:2], heads, head_dim)
        return norm_heads(y, weight, bias, norm.eps, rotation, schedule).swapaxes(1, 2)


def norm_heads(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    eps: float,
    rotation: tuple[mx.array, mx.array] | None,
    schedule: EvalSchedule = LAZY,
) -> mx.array:
    """Layer norm of each head, and then its rotation where there is one.

    Args:
        x: ``[B, tokens, heads, head_dim]``, in the order of `half_split` where it is rotated.
        weight, bias: ``[head_dim]``, in the same order.
        rotation: of `rope_tables`.
        schedule: what it is part of.
    """
    if schedule.evaluate and x.shape[-1] == cuda.HEAD_DIM and cuda.available():
        return cuda.norm_heads(x, weight, bias, eps, rotation)
    x = mx.fast.layer_norm(x, weight, bias, eps)
    return x if rotation is None else rotate(x, *rotation)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear, some rows at a time where the result is not left lazy.

    The nesting gives the parameters their official names.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.net = [GELU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)]

    def __call__(self, x: mx.array, schedule: EvalSchedule = LAZY) -> mx.array:
        """``[B, tokens, dim] -> [B, tokens, dim]``."""
        dim = x.shape[-1]
        count = feed_forward_parts(x.size // dim, dim) if schedule.evaluate else 1
        if count == 1:
            return self._run(x)
        rows = x.flatten(0, 1)
        edges = [i * len(rows) // count for i in range(count + 1)]
        parts = [schedule.push(self._run(rows[a:b])) for a, b in pairwise(edges)]
        return mx.concatenate(parts).reshape(x.shape)

    def _run(self, x: mx.array) -> mx.array:
        for layer in self.net:
            x = layer(x)
        return x


class GELU(nn.Module):
    def __init__(self, dim: int, inner_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim)

    def __call__(self, x: mx.array) -> mx.array:
        return gelu_tanh(self.proj(x))


@fused
def gelu_tanh(x):
    # (1 + tanh u) / 2 is sigmoid(2u), which costs less and loses nothing where tanh nears -1.
    wide = x.astype(mx.float32)
    twice_u = math.sqrt(8 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (wide * mx.sigmoid(twice_u)).astype(x.dtype)


class TimestepEmbedding(nn.Module):
    """Two linear layers over a sinusoid of the timestep."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(silu(self.linear_1(x)))


def sinusoid(values: mx.array, dim: int, config: TransformerConfig) -> mx.array:
    """``[batch] -> [batch, dim]`` in float32: cosines, then sines (``flip_sin_to_cos``)."""
    half = dim // 2
    # The exponent is rounded to float32 as torch rounds it: at timestep 999 one unit in the last
    # place of a frequency turns the phase by 6e-5.
    exponents = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32)
    exponents = exponents / np.float32(half - config.freq_shift)
    frequencies = mx.array(np.exp(exponents.astype(np.float64)).astype(np.float32))
    angles = values.astype(mx.float32)[:, None] * frequencies
    parts = [mx.sin(angles), mx.cos(angles)]
    return mx.concatenate(parts[::-1] if config.flip_sin_to_cos else parts, axis=-1)
