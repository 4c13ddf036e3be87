"""The official models, one row each: facts that their configurations don't contain.

Sizes, numbers of frames and frames per second are those of the table of models in the README of
github.com/zai-org/CogVideo, which the model cards repeat. The samplers are those of its
``inference/cli_demo.py``.
"""

from dataclasses import dataclass

from ..nn.transformer import TransformerConfig


@dataclass(frozen=True)
class Variant:
    """An official model.

    Attributes:
        alias: short name for the command line.
        repo: hub repository of the official checkpoint.
        architecture: the transformer's configuration fields that tell the variants apart.
        width, height, num_frames, fps: what the model was trained on, and its defaults.
        max_frames: most frames of a video; more of them fall apart.
        frame_step: the model was trained on multiples of it plus one frame.
        scheduler, dynamic_cfg: the recommended sampler.
        longest_side: longest side in pixels of the videos that it was trained on, whose shorter
            side is `height`; None if all of them had its own size.
    """

    alias: str
    repo: str
    architecture: dict[str, int | bool | None]
    width: int
    height: int
    num_frames: int
    fps: int
    max_frames: int
    frame_step: int
    scheduler: str
    dynamic_cfg: str | bool
    longest_side: int | None

    @property
    def name(self) -> str:
        return self.repo.split("/")[-1]

    @property
    def recommended(self) -> dict[str, str | bool]:
        """The settings of a video that are recommended for it, by name."""
        return {"scheduler": self.scheduler, "dynamic_cfg": self.dynamic_cfg}

    @property
    def sizes(self) -> str:
        """The sizes that it was trained on, in words."""
        if self.longest_side is None:
            return f"{self.width}x{self.height}"
        return f"a shorter side of {self.height} and a longer one up to {self.longest_side}"

    @property
    def frames(self) -> str:
        """The numbers of frames that it was trained on, in words."""
        return f"{self.frame_step}N+1 frames, up to {self.max_frames}"

    def was_trained_on_frames(self, num_frames: int) -> bool:
        """Whether it was trained on videos of so many frames."""
        return num_frames % self.frame_step == 1 and num_frames <= self.max_frames

    def was_trained_on(self, height: int, width: int) -> bool:
        """Whether it was trained on videos of this size."""
        if self.longest_side is None:
            return (height, width) == (self.height, self.width)
        return min(height, width) == self.height and max(height, width) <= self.longest_side

    def size_like(self, picture: tuple[int, int]) -> tuple[int, int]:
        """A size that it was trained on, in about the aspect ratio of a picture (height, width)."""
        if self.longest_side is None:
            return self.height, self.width
        longer = round(self.height * max(picture) / min(picture) / 16) * 16
        sides = self.height, min(longer, self.longest_side)
        return sides if picture[1] >= picture[0] else sides[::-1]

    def matches(self, config: TransformerConfig) -> bool:
        return all(getattr(config, name) == value for name, value in self.architecture.items())


# The transformer's size, the channels that it takes, and the frames of its patches.
_2B = {"num_layers": 30, "num_attention_heads": 30, "attention_head_dim": 64}
_5B = {"num_layers": 42, "num_attention_heads": 48, "attention_head_dim": 64}
_TEXT, _IMAGE = {"in_channels": 16}, {"in_channels": 32}
_FLAT, _DEEP = {"patch_size_t": None}, {"patch_size_t": 2}

# Only one model was trained on other shapes than its own: "Min(W, H) = 768, 768 <= Max(W, H) <=
# 1360, Max(W, H) % 16 = 0".
_SIZE_1_0 = {"width": 720, "height": 480, "longest_side": None}
_SIZE_1_5 = {"width": 1360, "height": 768, "longest_side": None}
_ANY_SHAPE_1_5 = _SIZE_1_5 | {"longest_side": 1360}
# "8N + 1 where N <= 6" and "16N + 1 where N <= 10".
_TIME_1_0 = {"num_frames": 49, "max_frames": 49, "frame_step": 8, "fps": 8}
_TIME_1_5 = {"num_frames": 81, "max_frames": 161, "frame_step": 16, "fps": 16}
_V1_0 = _SIZE_1_0 | _TIME_1_0
_V1_5, _V1_5_I2V = _SIZE_1_5 | _TIME_1_5, _ANY_SHAPE_1_5 | _TIME_1_5
_DDIM = {"scheduler": "ddim", "dynamic_cfg": False}
_DPM = {"scheduler": "dpm", "dynamic_cfg": "wave"}

VARIANTS = (
    Variant("2b", "THUDM/CogVideoX-2b", _2B | _TEXT | _FLAT, **_V1_0, **_DDIM),
    Variant("5b", "THUDM/CogVideoX-5b", _5B | _TEXT | _FLAT, **_V1_0, **_DPM),
    Variant("5b-i2v", "THUDM/CogVideoX-5b-I2V", _5B | _IMAGE | _FLAT, **_V1_0, **_DPM),
    Variant("1.5-5b", "THUDM/CogVideoX1.5-5B", _5B | _TEXT | _DEEP, **_V1_5, **_DPM),
    Variant("1.5-5b-i2v", "THUDM/CogVideoX1.5-5B-I2V", _5B | _IMAGE | _DEEP, **_V1_5_I2V, **_DPM),
)

ALIASES = {variant.alias: variant.repo for variant in VARIANTS}

OWNERS = ("THUDM", "zai-org")
"""Names of the organisation that publishes the official models: its former one, and today's."""

NAMES = {
    name.lower(): variant
    for variant in VARIANTS
    for name in (variant.alias, variant.name, *(f"{owner}/{variant.name}" for owner in OWNERS))
}
"""The official models by all their names, in lower case."""


def match_variant(config: TransformerConfig) -> Variant | None:
    """The official variant with this transformer, or None for the demo and other models."""
    return next((variant for variant in VARIANTS if variant.matches(config)), None)
