"""The CogVideoX diffusion transformer (arXiv:2408.06072), all variants.

Text and video tokens form one sequence, text first, and attend to each other without a mask.
What differs between the variants are configuration fields: the position embeddings, the temporal
patch of 1.5, the image channels and the ``ofs`` embedding of image-to-video.
"""

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .attention import attention, merge_heads, split_heads
from .backend import kernel_operations
from .config import TransformerConfig
from .embeddings import CogVideoXPatchEmbed, TimestepEmbedding, sinusoid, unpatchify
from .eval_schedule import LAZY, EvalSchedule, in_kernels, in_parts
from .fusion import fused
from .low_rank import permute_rows
from .modulation import AdaLayerNorm, CogVideoXLayerNormZero, gated_residual, layer_norm, norm_heads
from .positions import Rotation, half_split, rope_tables
from .token_share import TokenShare

QK_NORM_EPS = 1e-6

FEED_FORWARD_ELEMENTS = 2**28
"""Elements of the wide layer that are computed at a time; in 16 bits, 512 MB."""


class BlockContext(NamedTuple):
    """What each block takes besides its tokens.

    Attributes:
        temb: the time embedding, ``[batch, time_embed_dim]``.
        is_text: ``[tokens, 1]``, True for text tokens.
        rotation: cosines and sines from ``positions.rope_tables``, or None.
        share: which tokens these are, where other processes have the rest.
    """

    temb: mx.array
    is_text: mx.array
    rotation: Rotation
    share: TokenShare | None = None

    def of_rows(self, first: int, end: int) -> "BlockContext":
        """The context of some of the tokens."""
        rotation = self.rotation and tuple(table[first:end] for table in self.rotation)
        return BlockContext(self.temb, self.is_text[first:end], rotation)

    def of_share(self, share: TokenShare) -> "BlockContext":
        """The context of a process's tokens."""
        return self.of_rows(share.first, share.end)._replace(share=share)


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
        self.proj_out = nn.Linear(config.dim, math.prod(config.patch) * config.out_channels)

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
            ofs: ``[batch]`` or ``[1]``; the default is 2.0 if the configuration has an
                ``ofs_embed_dim``.
            schedule: when to evaluate; by default the result is lazy.

        Returns:
            ``[batch, frames, height, width, out_channels]``.

        Raises:
            ValueError: frames, height or width don't fit the patches or the position table.
        """
        embedded = [*self.embed(hidden_states, encoder_hidden_states, timestep, ofs)]
        context = embedded.pop()
        # Popped: a variable here would keep these tokens in memory until the last block is done.
        x = self.run_blocks(embedded.pop(), context, schedule=schedule)
        return self.project(x, context.temb, hidden_states.shape)

    def run_blocks(
        self,
        x: mx.array,
        context: BlockContext,
        first: int = 0,
        end: int | None = None,
        schedule: EvalSchedule = LAZY,
    ) -> mx.array:
        """Passes tokens through the blocks from `first` to `end`, all by default."""
        for block in self.transformer_blocks[first:end]:
            # Half by half: a call of the block would keep its input in memory until it returns.
            x = block.attend(x, context, schedule)
            x = block.feed_forward(x, context, schedule)
        return x

    def embed(
        self,
        hidden_states: mx.array,
        encoder_hidden_states: mx.array,
        timestep: mx.array,
        ofs: mx.array | None = None,
        share: TokenShare | None = None,
    ) -> tuple[mx.array, BlockContext]:
        """Makes the input of the blocks: tokens ``[batch, text_length + patches, dim]``, and their
        context.

        Args:
            share: the tokens to return, where other processes compute the rest; None is all.
                The others are as in ``__call__``.
        """
        config, text_length = self.config, encoder_hidden_states.shape[1]
        grid = config.patch_grid(hidden_states.shape)
        temb = self.embed_time(timestep, hidden_states.dtype, ofs)
        x = self.patch_embed(hidden_states, encoder_hidden_states, grid)
        is_text = (mx.arange(x.shape[1]) < text_length)[:, None]
        context = BlockContext(temb, is_text, self._rotation(text_length, grid))
        if share is None:
            return x, context
        return x[:, share.first : share.end], context.of_share(share)

    def embed_time(
        self, timestep: mx.array, dtype: mx.Dtype, ofs: mx.array | None = None
    ) -> mx.array:
        """``[batch] -> [batch, time_embed_dim]``; adds the embedding of ofs if there is one."""
        config = self.config
        temb = self.time_embedding(sinusoid(timestep, config.dim, config).astype(dtype))
        if config.ofs_embed_dim:
            ofs = mx.array([2.0]) if ofs is None else ofs
            temb = temb + self.ofs_embedding(
                sinusoid(ofs, config.ofs_embed_dim, config).astype(dtype)
            )
        return temb

    def project(self, x: mx.array, temb: mx.array, shape: tuple[int, ...]) -> mx.array:
        """Turns the last block's tokens into a velocity for latents of `shape`.

        Args:
            x: ``[batch, tokens, dim]``; text tokens come first, and don't count.
        """
        video = x[:, -math.prod(self.config.patch_grid(shape)) :]
        return self.unpatchify(self.project_patches(video, temb), shape)

    def project_patches(self, x: mx.array, temb: mx.array) -> mx.array:
        """Turns video tokens of the last block into patches of the velocity.

        Args:
            x: ``[batch, patches, dim]``, any of them.

        Returns:
            ``[batch, patches, numbers of a patch]``.
        """
        norm = self.norm_final
        x = layer_norm(x, norm.weight, norm.bias, norm.eps)
        return self.proj_out(self.norm_out(x, temb))

    def unpatchify(self, patches: mx.array, shape: tuple[int, ...]) -> mx.array:
        """Puts all patches together to a velocity for latents of `shape`."""
        return unpatchify(patches, self.config, self.config.patch_grid(shape))

    def _rotation(self, text_length: int, grid: tuple[int, int, int]) -> Rotation:
        config = self.config
        if not config.use_rotary_positional_embeddings:
            return None
        base = None
        if config.patch_size_t is None:
            size = config.patch_size
            base = config.sample_height // size, config.sample_width // size
        return rope_tables(text_length, grid, config.attention_head_dim, base)


class CogVideoXBlock(nn.Module):
    """Attention and feed-forward of tokens ``[B, tokens, dim]``, each modulated and gated."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        norm_sizes = config.time_embed_dim, config.dim, config.norm_eps
        self.norm1, self.attn1 = CogVideoXLayerNormZero(*norm_sizes), Attention(config)
        self.norm2, self.ff = CogVideoXLayerNormZero(*norm_sizes), FeedForward(config.dim)

    def __call__(
        self, x: mx.array, context: BlockContext, schedule: EvalSchedule = LAZY
    ) -> mx.array:
        return self.feed_forward(self.attend(x, context, schedule), context, schedule)

    def attend(self, x: mx.array, context: BlockContext, schedule: EvalSchedule = LAZY) -> mx.array:
        temb, is_text, rotation, share = context
        modulation = self.norm1.modulation(temb)
        modulated = self.norm1(x, is_text, modulation, schedule)
        # The update has no name: a variable would keep it in memory beside the result.
        return schedule.push(
            gated_residual(
                x,
                self.attn1(modulated, rotation, schedule, share),
                is_text,
                *modulation.gates,
            )
        )

    def feed_forward(
        self, x: mx.array, context: BlockContext, schedule: EvalSchedule = LAZY
    ) -> mx.array:
        temb, is_text = context[:2]
        modulation = self.norm2.modulation(temb)
        modulated = self.norm2(x, is_text, modulation, schedule)
        return schedule.push(
            gated_residual(x, self.ff(modulated, schedule), is_text, *modulation.gates)
        )


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear. The nesting gives the parameters their official names."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = [GELU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)]

    def __call__(self, x: mx.array, schedule: EvalSchedule = LAZY) -> mx.array:
        dim = x.shape[-1]
        count = feed_forward_parts(x.size // dim, dim) if schedule.evaluate else 1
        if count == 1:
            return self._run(x)
        return in_parts(lambda rows: schedule.push(self._run(rows)), x, count)

    def _run(self, x: mx.array) -> mx.array:
        for layer in self.net:
            x = layer(x)
        return x


class Attention(nn.Module):
    """Self-attention of tokens ``[B, tokens, dim]``; queries and keys are normalized per head."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim, head_dim, bias = config.dim, config.attention_head_dim, config.attention_bias
        self.heads = config.num_attention_heads
        self.norm_q, self.norm_k = (nn.LayerNorm(head_dim, eps=QK_NORM_EPS) for _ in range(2))
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=bias) for _ in range(3))
        self.to_out = [nn.Linear(dim, dim)]

    def __call__(
        self,
        x: mx.array,
        rotation: Rotation,
        schedule: EvalSchedule = LAZY,
        share: TokenShare | None = None,
    ) -> mx.array:
        """
        Args:
            share: which tokens `x` has, where other processes have the rest.
        """
        if share is None:
            return self.project(attention(*self.queries_keys_values(x, rotation, schedule)))
        queries, keys, values = self.queries_keys_values(x, rotation, schedule)
        keys, values = share.keys_values_of_all(keys, values, queries)
        return self.project(attention(queries, keys, values))

    def queries_keys_values(
        self, x: mx.array, rotation: Rotation, schedule: EvalSchedule = LAZY
    ) -> tuple[mx.array, mx.array, mx.array]:
        queries = schedule.push(self._in_heads(x, self.to_q, self.norm_q, rotation, schedule))
        keys = schedule.push(self._in_heads(x, self.to_k, self.norm_k, rotation, schedule))
        return queries, keys, split_heads(in_kernels(self.to_v, x), self.heads)

    def project(self, attended: mx.array) -> mx.array:
        return in_kernels(self.to_out[0], merge_heads(attended))

    def _in_heads(
        self,
        x: mx.array,
        linear: nn.Module,
        norm: nn.LayerNorm,
        rotation: Rotation,
        schedule: EvalSchedule,
    ) -> mx.array:
        """Queries or keys ``[B, heads, tokens, head_dim]``, normalized and rotated."""
        heads, weight, bias = self.heads, norm.weight, norm.bias
        head_dim = len(weight)
        if rotation is None:
            y = in_kernels(linear, x)
        else:
            y = in_kernels(lambda x: permute_rows(linear, x, half_split(heads, head_dim)), x)
            permutation = half_split(1, head_dim)
            weight, bias = weight[permutation], bias[permutation]
        y = y.reshape(*x.shape[:2], heads, head_dim)
        return norm_heads(y, weight, bias, norm.eps, rotation, schedule).swapaxes(1, 2)


def feed_forward_parts(rows: int, dim: int, operations: float | None = None) -> int:
    """Number of parts into which the feed-forward layers divide their rows.

    Args:
        operations: operations that a kernel may take; None is the limit of this machine.
    """
    at_once = kernel_operations() if operations is None else operations
    return max(
        1,
        math.ceil(4 * rows * dim / FEED_FORWARD_ELEMENTS),
        math.ceil(8 * rows * dim**2 / at_once),
    )


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
