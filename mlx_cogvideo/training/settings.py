"""What is trained and how: the settings of a training, and the adapter that it begins with."""

from dataclasses import dataclass

import mlx.core as mx

from ..errors import InvalidInputError
from ..nn.low_rank import LowRank
from ..nn.quantization import linear_layers
from ..nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from ..pipeline.sources import check_image_latent_scale

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Settings:
    """Of a training; changing one of them makes it another training.

    Attributes:
        alpha: None is the rank. The adapter is scaled by alpha / rank.
        targets: ends of the names of the layers that are adapted.
        batch_size: clips a step.
        accumulate: steps whose gradients make one update.
        warmup: updates in which the learning rate rises.
        schedule: ``"constant"`` or ``"cosine"``, falling to nothing.
        clip_norm: of the gradient, at most.
        caption_dropout: share of the clips that are learned without their caption.
        image_dropout: share of the clips that an image-to-video model learns without their picture.
        image_latent_scale: see ``pipeline.sources.image_latent_scale``.
        prior_batch_size: prompts a step whose videos are to stay as they are.
        prior_weight: of their loss against that of the clips.
    """

    iters: int = 1000
    learning_rate: float = 1e-4
    rank: int = 64
    alpha: float | None = None
    targets: tuple[str, ...] = TARGETS
    batch_size: int = 1
    accumulate: int = 1
    warmup: int = 50
    schedule: str = "constant"
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    caption_dropout: float = 0.1
    image_dropout: float = 0.05
    image_latent_scale: str = "official"
    prior_batch_size: int = 0
    prior_weight: float = 0.05
    seed: int = 0

    def __post_init__(self):
        least = dict.fromkeys(("iters", "rank", "batch_size", "accumulate"), 1)
        for name, limit in (least | {"warmup": 0, "prior_batch_size": 0, "seed": 0}).items():
            if getattr(self, name) < limit:
                raise InvalidInputError(
                    f"{name} must be at least {limit}; got {getattr(self, name)}"
                )
        if self.seed >= 2**63:
            raise InvalidInputError(f"seed must be below 2**63; got {self.seed}")
        for name in ("learning_rate", "effective_alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                told = name.removeprefix("effective_")
                raise InvalidInputError(
                    f"{told} must be a number above 0; got {getattr(self, name)}"
                )
        if not 0 <= self.prior_weight < float("inf"):
            raise InvalidInputError(f"prior_weight must be 0 or more; got {self.prior_weight}")
        check_image_latent_scale(self.image_latent_scale)
        for name in ("caption_dropout", "image_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name} must be from 0 to 1; got {getattr(self, name)}")

    @property
    def effective_alpha(self) -> float:
        return self.rank if self.alpha is None else self.alpha


def new_adapter(transformer: CogVideoXTransformer3DModel, settings: Settings) -> dict[str, LowRank]:
    """A for each target as peft begins with it, uniform to ±1/√inputs, and B of zeros.

    Raises:
        InvalidInputError: no layer of the blocks has such a name.
    """
    shapes = _adapted(transformer.config, settings)
    scale = settings.effective_alpha / settings.rank
    keys = mx.random.split(mx.random.key(settings.seed), len(shapes))
    layers = {}
    for key, (path, (outputs, inputs)) in zip(keys, shapes.items(), strict=True):
        limit = inputs**-0.5
        a = mx.random.uniform(-limit, limit, (settings.rank, inputs), key=key)
        layers[path] = LowRank(a, mx.zeros((outputs, settings.rank)), scale)
    return layers


def adapter_parameters(config: TransformerConfig, settings: Settings) -> int:
    """Numbers in the adapter of a training."""
    shapes = _adapted(config, settings).values()
    return sum(settings.rank * (outputs + inputs) for outputs, inputs in shapes)


def _adapted(config: TransformerConfig, settings: Settings) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the layers that are adapted, by path."""
    shapes, unknown = {}, set(settings.targets)
    for path, shape in linear_layers(CogVideoXTransformer3DModel(config)).items():
        named = {target for target in settings.targets if path.endswith(f".{target}")}
        if named and path.startswith("transformer_blocks."):
            shapes[path] = shape
            unknown -= named
    if unknown:
        raise InvalidInputError(f"the model's blocks have no layers {', '.join(sorted(unknown))}")
    return shapes
