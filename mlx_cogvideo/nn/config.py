"""The configurations of a model: upstream's fields, their defaults, and what they may be.

The ranges are wide: they keep out what no network can be, such as a negative or an endless size.
Whether the tensors on disk fit is another question.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from .config_fields import check_fields, choice, number, shown, wrong

SIZE = 1, 2**16
"""Range of widths, channels, lengths and sizes."""
COUNT = 1, 1024
"""Range of the numbers of layers and heads."""
EPSILON = 1e-15, 1
SCALE = 1e-4, 1e4


@dataclass(frozen=True)
class Config:
    """The base of the configurations.

    Raises:
        ValueError: on creation, if a field is of another type or out of its range, or if fields
            don't fit each other.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {}
    """Fields of upstream that would change the result, with the only values that are computed."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.check_together()

    def check_together(self) -> None:
        """Raises ValueError if fields don't fit each other."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Takes the known fields of a JSON file; others don't change the network.

        Raises:
            ValueError: as on creation, or a field of `FIXED` has another value.
        """
        for name, computed in cls.FIXED.items():
            if values.get(name, computed) != computed:
                raise wrong(name, shown(computed), values[name])
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class TransformerConfig(Config):
    """Fields of ``transformer/config.json``. Sizes are in latents: 90x60 stands for 720x480."""

    num_attention_heads: int = number(30, *COUNT)
    attention_head_dim: int = number(64, *COUNT)
    in_channels: int = number(16, *SIZE)
    out_channels: int = number(16, *SIZE)
    time_embed_dim: int = number(512, *SIZE)
    ofs_embed_dim: int | None = number(None, 0, SIZE[1])
    text_embed_dim: int = number(4096, *SIZE)
    num_layers: int = number(30, *COUNT)
    attention_bias: bool = True
    sample_width: int = number(90, *SIZE)
    sample_height: int = number(60, *SIZE)
    sample_frames: int = number(49, *SIZE)
    patch_size: int = number(2, 1, 64)
    patch_size_t: int | None = number(None, 1, 64)
    patch_bias: bool = True
    temporal_compression_ratio: int = choice(4)
    max_text_seq_length: int = number(226, *SIZE)
    norm_eps: float = number(1e-5, *EPSILON)
    spatial_interpolation_scale: float = number(1.875, *SCALE)
    temporal_interpolation_scale: float = number(1.0, *SCALE)
    flip_sin_to_cos: bool = True
    freq_shift: int = choice(0, 1)
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False

    FIXED: ClassVar[Mapping[str, Any]] = {
        "activation_fn": "gelu-approximate",
        "timestep_activation_fn": "silu",
        "norm_elementwise_affine": True,
    }

    def check_together(self) -> None:
        width = self.attention_head_dim if self.use_rotary_positional_embeddings else self.dim
        if width % 16:  # positions take an even part of 1/4 : 3/8 : 3/8
            name = "attention_head_dim" if width == self.attention_head_dim else "the width"
            raise ValueError(f"{name} must be a multiple of 16; got {width}")
        if self.ofs_embed_dim not in (None, 0, self.time_embed_dim):
            raise ValueError(
                f"ofs_embed_dim is {self.ofs_embed_dim} and time_embed_dim {self.time_embed_dim}: "
                "they are added, and must be the same"
            )
        if min(self.sample_width, self.sample_height) < self.patch_size:
            raise ValueError(
                f"sample_width {self.sample_width} and sample_height {self.sample_height} can't be "
                f"smaller than patch_size {self.patch_size}"
            )
        if self.use_learned_positional_embeddings and self._native_tokens > 2**31:
            raise ValueError(
                f"sample_width {self.sample_width}, sample_height {self.sample_height} and "
                f"sample_frames {self.sample_frames} are too many positions to be learned"
            )

    @property
    def _native_tokens(self) -> int:
        sizes = self.native_latent_frames, self.sample_height, self.sample_width
        return self.token_count((1, *sizes, self.out_channels))

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

    vocab_size: int = number(32128, 1, 2**24)
    d_model: int = number(4096, *SIZE)
    d_kv: int = number(64, *SIZE)
    d_ff: int = number(10240, 1, 2**20)
    num_layers: int = number(24, *COUNT)
    num_heads: int = number(64, *COUNT)
    relative_attention_num_buckets: int = number(32, 4, 2**16)
    relative_attention_max_distance: int = number(128, *SIZE)
    layer_norm_epsilon: float = number(1e-6, *EPSILON)

    FIXED: ClassVar[Mapping[str, Any]] = {
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
    }

    def check_together(self) -> None:
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 4:
            raise ValueError(
                f"relative_attention_max_distance {self.relative_attention_max_distance} is too "
                f"small for {self.relative_attention_num_buckets} relative_attention_num_buckets"
            )

    @property
    def block_weights(self) -> int:
        """Number of elements in the matrices of a block."""
        return self.d_model * (4 * self.num_heads * self.d_kv + 3 * self.d_ff)


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """Fields of ``vae/config.json``."""

    in_channels: int = choice(3)
    out_channels: int = choice(3)
    block_out_channels: tuple[int, ...] = number((128, 256, 256, 512), *SIZE)
    latent_channels: int = number(16, *SIZE)
    layers_per_block: int = number(3, *COUNT)
    norm_num_groups: int = number(32, *SIZE)
    temporal_compression_ratio: int = choice(4)
    sample_height: int = number(480, *SIZE)
    sample_width: int = number(720, *SIZE)
    scaling_factor: float = number(1.15258426, *SCALE)
    invert_scale_latents: bool = False

    FIXED: ClassVar[Mapping[str, Any]] = {"act_fn": "silu", "norm_eps": 1e-6}

    def check_together(self) -> None:
        levels = len(self.block_out_channels)
        if not 3 <= levels <= 8:  # the first two halve the time
            raise ValueError(f"block_out_channels must be 3 to 8 numbers; got {levels}")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(
                f"block_out_channels {list(self.block_out_channels)} don't divide into "
                f"norm_num_groups {self.norm_num_groups}"
            )

    @property
    def spatial_compression_ratio(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)

    def compresses_time(self, level: int) -> bool:
        """Whether a level changes the number of frames, as the first ones of both coders do."""
        return level < int(math.log2(self.temporal_compression_ratio))


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """Fields of ``scheduler/scheduler_config.json`` that change numbers, with diffusers' defaults.

    The official checkpoints set v_prediction, trailing and rescale_betas_zero_snr, and a
    snr_shift_scale of 3.0 (2B) or 1.0 (all others).
    """

    num_train_timesteps: int = number(1000, 2, 10_000)
    beta_start: float = number(0.00085, 1e-7, 0.5)
    beta_end: float = number(0.0120, 1e-7, 0.5)
    beta_schedule: str = choice("scaled_linear")
    trained_betas: tuple[float, ...] | None = choice(None)
    set_alpha_to_one: bool = True
    steps_offset: int = number(0, 0, 10_000)
    prediction_type: str = choice("epsilon", "v_prediction", "sample")
    timestep_spacing: str = choice("leading", "trailing", "linspace")
    rescale_betas_zero_snr: bool = False
    snr_shift_scale: float = number(3.0, *SCALE)

    def check_together(self) -> None:
        if self.prediction_type == "epsilon" and self.rescale_betas_zero_snr:
            raise ValueError(
                "prediction_type epsilon can't be undone where the SNR is zero: "
                "use v_prediction or set rescale_betas_zero_snr to false"
            )
