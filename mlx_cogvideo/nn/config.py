"""The configurations of the networks: upstream's fields of ``config.json``, and its defaults."""

import math
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Config:
    """The base of the configurations."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Takes the known fields of a ``config.json``; others don't change the network."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


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
    def patch(self) -> tuple[int, int, int]:
        """Frames, rows and columns of latents in a patch."""
        return self.patch_size_t or 1, self.patch_size, self.patch_size

    @property
    def native_latent_frames(self) -> int:
        return (self.sample_frames - 1) // self.temporal_compression_ratio + 1

    def leading_frames(self, latent_frames: int) -> int:
        """Latent frames that 1.5 needs in front to complete its temporal patches."""
        return -latent_frames % (self.patch_size_t or 1)

    def token_count(self, latent_shape: tuple[int, ...]) -> int:
        """Number of text tokens and patches for latents ``[B, f, h, w, c]``."""
        _, frames, height, width, _ = latent_shape
        patches = frames // (self.patch_size_t or 1) * (height * width // self.patch_size**2)
        return self.max_text_seq_length + patches

    def patch_grid(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Frames, rows and columns of patches in latents ``[B, f, h, w, c]``.

        Raises:
            ValueError: the latents don't divide into patches.
        """
        sizes = latent_shape[1:4]
        if any(size % side for size, side in zip(sizes, self.patch, strict=True)):
            raise ValueError(f"latents {sizes} (f, h, w) don't divide into {self.patch} patches")
        frames, rows, columns = (size // s for size, s in zip(sizes, self.patch, strict=True))
        return frames, rows, columns


@dataclass(frozen=True)
class T5Config(Config):
    """Fields of ``text_encoder/config.json``."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @property
    def block_weights(self) -> int:
        """Number of elements in the matrices of a block."""
        return self.d_model * (4 * self.num_heads * self.d_kv + 3 * self.d_ff)


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """Fields of ``vae/config.json``."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 1.15258426
    invert_scale_latents: bool = False

    @property
    def spatial_compression_ratio(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)

    def compresses_time(self, level: int) -> bool:
        """Whether a level changes the number of frames, as the first ones of both coders do."""
        return level < int(math.log2(self.temporal_compression_ratio))
