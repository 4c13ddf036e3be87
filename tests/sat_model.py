"""The transformer of the original SAT code, with which the checkpoints were trained.

Its forward pass (``sat/dit_video_concat.py`` of zai-org/CogVideo at v1.0, and the base model of
SwissArmyTransformer) in float64, for 2B, 5B and 5B-I2V, with weights under SAT's names.
"""

import math
from collections.abc import Iterator

import torch
from torch.nn.functional import conv2d, gelu, layer_norm, silu

HEADS, HEAD_DIM, LAYERS = 3, 16, 2
DIM, TIME_DIM, TEXT_DIM = HEADS * HEAD_DIM, 20, 24
TEXT_LENGTH, CHANNELS, PATCH = 226, 16, 2
GRID = 13, 30, 45
"""Frames, rows and columns of patches of the official models."""

BLOCK_EPS = 1e-5
"""SAT's ``--layernorm-epsilon``, which replaces the 1e-6 that the model's code asks for."""

QK_EPS = FINAL_EPS = 1e-6


class SatTransformer:
    """A tiny model with random weights.

    Attributes:
        variant: ``"2b"``, ``"5b"`` or ``"5b-i2v"``.
        grid: frames, rows and columns of patches, from the configuration.
        state: weights by name, in float64, of which float32 holds every bit.
    """

    def __init__(self, variant: str, grid: tuple[int, int, int] = GRID):
        self.variant, self.grid = variant, grid
        generator = torch.Generator().manual_seed(77)
        self.state = {}
        for name, shape in self._shapes():
            noise = torch.randn(shape, generator=generator)
            if "norm" in name:
                noise = 0.2 * noise + name.endswith("weight")
            elif name.endswith("weight"):
                noise *= (noise[0].numel()) ** -0.5
            else:
                noise *= 0.3
            self.state[name] = noise.double()
        if self.is_rotary:
            angles = self._angles().float().double()
            self.state["mixins.pos_embed.freqs_sin"] = angles.sin()
            self.state["mixins.pos_embed.freqs_cos"] = angles.cos()

    @property
    def is_rotary(self) -> bool:
        return self.variant != "2b"

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """Predicts the velocity.

        Args:
            latents: ``[B, frames, channels, height, width]``, with those of the image behind them
                on the channel axis for image to video.
            timesteps: ``[B]``.
            text: ``[B, 226, TEXT_DIM]``.

        Returns:
            ``[B, frames, 16, height, width]``.
        """
        time = self._linear("time_embed.0", _sinusoid(timesteps))
        time = self._linear("time_embed.2", silu(time))
        x = self._add_positions(torch.cat([self._text(text), self._patches(latents)], 1))
        for layer in range(LAYERS):
            x = self._block(layer, x, time)
        x = self._norm("transformer.final_layernorm", x, BLOCK_EPS)[:, TEXT_LENGTH:]
        return self._final(x, time, latents.shape)

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the weights, as SAT's configurations give them."""
        channels = 2 * CHANNELS if self.variant == "5b-i2v" else CHANNELS
        linear = {
            "mixins.patch_embed.text_proj": (DIM, TEXT_DIM),
            "time_embed.0": (TIME_DIM, DIM),
            "time_embed.2": (TIME_DIM, TIME_DIM),
            "mixins.final_layer.adaLN_modulation.1": (2 * DIM, TIME_DIM),
            "mixins.final_layer.linear": (PATCH**2 * CHANNELS, DIM),
            "mixins.patch_embed.proj": (DIM, channels, PATCH, PATCH),
        }
        norms = {"transformer.final_layernorm": DIM, "mixins.final_layer.norm_final": DIM}
        for i in range(LAYERS):
            layer, mixin = f"transformer.layers.{i}.", "mixins.adaln_layer."
            linear |= {
                f"{mixin}adaLN_modulations.{i}.1": (12 * DIM, TIME_DIM),
                f"{layer}attention.query_key_value": (3 * DIM, DIM),
                f"{layer}attention.dense": (DIM, DIM),
                f"{layer}mlp.dense_h_to_4h": (4 * DIM, DIM),
                f"{layer}mlp.dense_4h_to_h": (DIM, 4 * DIM),
            }
            norms |= {
                f"{mixin}query_layernorm_list.{i}": HEAD_DIM,
                f"{mixin}key_layernorm_list.{i}": HEAD_DIM,
                f"{layer}input_layernorm": DIM,
                f"{layer}post_attention_layernorm": DIM,
            }
        for name, shape in [*linear.items(), *((name, (size,)) for name, size in norms.items())]:
            yield f"{name}.weight", shape
            yield f"{name}.bias", shape[:1]
        if self.variant == "5b-i2v":
            yield "mixins.pos_embed.pos_embedding", (1, TEXT_LENGTH + math.prod(self.grid), DIM)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def _norm(self, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], weight, bias, eps)

    def _text(self, text: torch.Tensor) -> torch.Tensor:
        return self._linear("mixins.patch_embed.text_proj", text.double())

    def _patches(self, latents: torch.Tensor) -> torch.Tensor:
        """Tokens ``[B, frames * rows * columns, DIM]``."""
        name = "mixins.patch_embed.proj"
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        patches = conv2d(latents.double().flatten(0, 1), weight, bias, stride=PATCH)
        return patches.unflatten(0, latents.shape[:2]).flatten(3).transpose(2, 3).flatten(1, 2)

    def _add_positions(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the sinusoids of 2B or the learned table of 5B-I2V, of which fewer frames take the
        beginning."""
        if self.variant == "5b-i2v":
            return x + self.state["mixins.pos_embed.pos_embedding"][:, : x.shape[1]]
        if self.variant == "2b":
            table = _sinusoids_3d(self.grid, DIM)[: x.shape[1] - TEXT_LENGTH]
            return torch.cat([x[:, :TEXT_LENGTH], x[:, TEXT_LENGTH:] + table], 1)
        return x

    def _angles(self) -> torch.Tensor:
        """Angles of the rotation ``[frames * rows * columns, HEAD_DIM]``; neighbours share one."""
        sizes = HEAD_DIM // 4, HEAD_DIM // 8 * 3, HEAD_DIM // 8 * 3
        axes = torch.meshgrid(*map(torch.arange, self.grid), indexing="ij")
        parts = []
        for axis, size in zip(axes, sizes, strict=True):
            frequencies = 10000 ** -(torch.arange(0, size, 2).double() / size)
            parts.append(axis.flatten()[:, None] * frequencies.repeat_interleave(2))
        return torch.cat(parts, 1)

    def _block(self, layer: int, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        name = f"transformer.layers.{layer}."
        adaln = self._linear(f"mixins.adaln_layer.adaLN_modulations.{layer}.1", silu(time))
        # Shift, scale and gate of the attention and of the MLP: for the video, then for the text.
        video, text = adaln.unflatten(1, (2, 2, 3, DIM)).unbind(1)
        for part, norm, run in (
            (0, "input_layernorm", self._attention),
            (1, "post_attention_layernorm", self._mlp),
        ):
            shift, scale, gate = _by_token(video[:, part], text[:, part], x.shape[1])
            normed = self._norm(name + norm, x, BLOCK_EPS)
            x = x + gate * run(layer, normed * (1 + scale) + shift)
        return x

    def _attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        name = f"transformer.layers.{layer}.attention."
        fused = self._linear(f"{name}query_key_value", x)
        queries, keys, values = (
            part.unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2) for part in fused.chunk(3, -1)
        )
        lists = "mixins.adaln_layer.{}_layernorm_list." + str(layer)
        queries = self._rotated(self._norm(lists.format("query"), queries, QK_EPS))
        keys = self._rotated(self._norm(lists.format("key"), keys, QK_EPS))
        weights = torch.softmax(queries @ keys.mT * HEAD_DIM**-0.5, -1)
        return self._linear(f"{name}dense", (weights @ values).transpose(1, 2).flatten(2))

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        """Rotates the video tokens of ``[B, heads, tokens, HEAD_DIM]``."""
        if not self.is_rotary:
            return x
        text, video = x[:, :, :TEXT_LENGTH], x[:, :, TEXT_LENGTH:]
        sines, cosines = (
            self.state[f"mixins.pos_embed.freqs_{kind}"][: video.shape[2]]
            for kind in ("sin", "cos")
        )
        turned = torch.stack([-video[..., 1::2], video[..., ::2]], -1).flatten(-2)
        return torch.cat([text, video * cosines + turned * sines], 2)

    def _mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        name = f"transformer.layers.{layer}.mlp."
        wide = gelu(self._linear(f"{name}dense_h_to_4h", x), approximate="tanh")
        return self._linear(f"{name}dense_4h_to_h", wide)

    def _final(self, x: torch.Tensor, time: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        name = "mixins.final_layer."
        modulation = self._linear(f"{name}adaLN_modulation.1", silu(time))
        shift, scale = modulation[:, None].chunk(2, -1)
        x = self._norm(f"{name}norm_final", x, FINAL_EPS) * (1 + scale) + shift
        batch, frames, _, height, width = shape
        x = self._linear(f"{name}linear", x).unflatten(2, (CHANNELS, PATCH, PATCH))
        x = x.unflatten(1, (frames, height // PATCH, width // PATCH))
        return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, CHANNELS, height, width)


def _by_token(video: torch.Tensor, text: torch.Tensor, tokens: int) -> torch.Tensor:
    """Modulations ``[B, 3, DIM]`` of video and text as ``[3, B, tokens, DIM]``, text first."""
    text = text[:, :, None].expand(-1, -1, TEXT_LENGTH, -1)
    video = video[:, :, None].expand(-1, -1, tokens - TEXT_LENGTH, -1)
    return torch.cat([text, video], 2).transpose(0, 1)


def _sinusoid(timesteps: torch.Tensor) -> torch.Tensor:
    """Cosines, then sines, of the timesteps, ``[B, DIM]``."""
    half = DIM // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half).double() / half)
    angles = timesteps[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def _sinusoids_3d(grid: tuple[int, int, int], dim: int) -> torch.Tensor:
    """A quarter of the features for the frame, the others for column and row, in float32's
    precision, ``[frames * rows * columns, dim]``. Rows and columns are interpolated by 1.875."""
    frame, row, column = torch.meshgrid(
        *(torch.arange(size).double() for size in grid), indexing="ij"
    )
    parts = []
    for position, size in (
        (frame, dim // 4),
        (column / 1.875, dim // 8 * 3),
        (row / 1.875, dim // 8 * 3),
    ):
        frequencies = 10000 ** -(torch.arange(size // 2).double() / (size / 2))
        angles = position.flatten()[:, None] * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, 1).float().double()
