"""The settings of a training as one dataclass, and the adapter that a training starts with."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from ..errors import InvalidInputError
from ..nn.low_rank import LowRank, with_magnitudes
from ..nn.quantization import linear_layers
from ..nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from ..pipeline.fields import SEED, SHARE, above, at_least, check_values, setting, settings_of
from ..pipeline.sources import IMAGE_LATENT_SCALES

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
SCHEDULES = ("constant", "cosine")
FINE_TUNE_TYPES = ("lora", "dora", "full")
OPTIMIZERS = ("adamw", "adamw_8bit", "adafactor")

adapter_setting = partial(setting, group="adapter")
training_setting = partial(setting, group="training")
prior_setting = partial(setting, group="prior")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything that a training depends on, but for the model and the data.

    Raises:
        InvalidInputError: a number is out of its range.
    """

    fine_tune_type: str = adapter_setting(
        "lora",
        "What is trained: lora trains an adapter, dora an adapter that also learns the norms of "
        "the weights' rows, full all weights of the transformer.",
        choices=FINE_TUNE_TYPES,
        before="lora",
    )
    rank: int = adapter_setting(64, "Rank of the adapter.", within=at_least(1))
    alpha: float | None = adapter_setting(
        None,
        "Alpha of the adapter, which is scaled by alpha / rank.",
        if_none="the rank",
        within=above(0),
    )
    use_rslora: bool = adapter_setting(
        False,
        "Scale the adapter by alpha / sqrt(rank) instead (rsLoRA), so that a high rank learns as "
        "fast as a low one.",
        before=False,
    )
    targets: tuple[str, ...] = adapter_setting(
        TARGETS,
        "Ends of the names of the layers that are adapted. Adding ff.net.0.proj and ff.net.2 "
        "learns more, and forgets more.",
        "--target",
        metavar="LAYER",
    )
    resume_adapter_file: str | None = adapter_setting(
        None,
        "Existing adapter to start from, a file, a folder or a hub id. Its kind, rank, alpha and "
        "layers are kept; the steps, the learning rate and the clips are new.",
        metavar="ADAPTER",
        if_none="a new adapter",
    )
    train_layers: tuple[str, ...] | None = adapter_setting(
        None,
        "Weights that a full training changes: patterns of their paths in the transformer, such as "
        '"transformer_blocks.*.attn1.*".',
        metavar="PATTERN",
        if_none="all",
    )
    iters: int = training_setting(
        1000, "Updates of the weights.", within=at_least(1), may_change=True
    )
    optimizer: str | None = training_setting(
        None,
        "Optimizer. adamw keeps two float32 numbers for each weight, adamw_8bit two of 8 bits, and "
        "adafactor a few numbers for each row and column.",
        choices=OPTIMIZERS,
        if_none="adamw for an adapter, adafactor for all weights",
    )
    master_weights: bool = training_setting(
        False,
        "Train a float32 copy of weights that are stored in 16 bits. By default they are rounded "
        "stochastically after each update.",
        before=False,
    )
    learning_rate: float | None = training_setting(
        None,
        "Learning rate.",
        metavar="RATE",
        within=above(0),
        if_none="0.0001 for an adapter, 0.00001 for all weights",
    )
    schedule: str = training_setting(
        "constant",
        "Learning rate after the warmup: constant, or cosine, which falls to 0 at the last update.",
        "--lr-schedule",
        choices=SCHEDULES,
    )
    warmup: int = training_setting(
        50,
        "Updates in which the learning rate rises to its value; at most half of --iters.",
        metavar="UPDATES",
        within=at_least(0),
    )
    weight_decay: float = training_setting(
        1e-4, "Weight decay of the optimizer.", within=at_least(0)
    )
    clip_norm: float = training_setting(
        1.0,
        "Largest norm of the gradient; a larger gradient is scaled down.",
        metavar="NORM",
        within=above(0),
    )
    batch_size: int = training_setting(1, "Clips in a batch, in each process.", within=at_least(1))
    accumulate: int = training_setting(
        1,
        "Batches whose mean gradient makes one update.",
        "--grad-accumulation-steps",
        within=at_least(1),
    )
    caption_dropout: float = training_setting(
        0.1,
        "Share of the clips that are learned without their caption, so that guidance keeps "
        "working.",
        metavar="SHARE",
        within=SHARE,
    )
    image_dropout: float = training_setting(
        0.05,
        "Share of the clips that an image-to-video model learns without their image.",
        metavar="SHARE",
        within=SHARE,
    )
    image_latent_scale: str = training_setting(
        "official",
        "Scale of the image's latents for image-to-video models of version 1.5. Choose the one "
        "that videos will be made with.",
        choices=IMAGE_LATENT_SCALES,
    )
    seed: int = training_setting(
        0, "Seed of the adapter, the noise, the order of the clips and random crops.", within=SEED
    )
    prior_batch_size: int = prior_setting(
        0,
        "Prior prompts in a batch, in each process.",
        if_none="1 with --prior-prompts, else 0",
        within=at_least(0),
    )
    prior_weight: float = prior_setting(
        0.05,
        "Weight of the prior prompts' loss against that of the clips. A larger weight forgets "
        "less and learns more slowly.",
        metavar="WEIGHT",
        within=at_least(0),
    )

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def is_full(self) -> bool:
        """Whether all weights are trained, and not an adapter."""
        return self.fine_tune_type == "full"

    @property
    def effective_optimizer(self) -> str:
        return self.optimizer or ("adafactor" if self.is_full else "adamw")

    @property
    def effective_learning_rate(self) -> float:
        return self.learning_rate or (1e-5 if self.is_full else 1e-4)

    @property
    def effective_alpha(self) -> float:
        return self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """What the adapter's layers are scaled by."""
        return self.effective_alpha / (self.rank**0.5 if self.use_rslora else self.rank)

    def of_all(self, processes: int) -> dict[str, Any]:
        """The settings by name with which one process would do the same as all together."""
        return asdict(self) | {
            "batch_size": processes * self.batch_size,
            "prior_batch_size": processes * self.prior_batch_size,
            "learning_rate": self.effective_learning_rate,
            "optimizer": self.effective_optimizer,
        }


def changed_settings(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describes the settings with which a recorded training can't be continued.

    Args:
        recorded: settings by name, as a checkpoint holds them; settings that are newer than the
            checkpoint are missing.
        now: settings by name of the training that is to continue it.
    """
    known = settings_of(TrainingSettings)
    added = {name: about.before for name, about in known.items() if about.before is not None}
    before = {name: value for name, value in added.items() if name in now}
    free = {name for name, about in known.items() if about.may_change}
    return [
        f"{name} was {value} and is now {now.get(name)}"
        for name, value in (before | recorded).items()
        if name not in free and now.get(name) != value
    ]


def new_adapter(
    transformer: CogVideoXTransformer3DModel, settings: TrainingSettings
) -> dict[str, LowRank]:
    """An initial adapter as in PEFT: A is uniform in ±1/√inputs, and B is zero.

    DoRA begins with the norms of the weights as its magnitudes, so it changes nothing either.

    Returns:
        The adapter's layers by the paths of the layers that they adapt.

    Raises:
        InvalidInputError: no layer of the blocks has a name in `settings.targets`.
    """
    shapes = adapted_layers(transformer.config, settings.targets)
    keys = mx.random.split(mx.random.key(settings.seed), len(shapes))
    layers = {}
    for key, (path, (outputs, inputs)) in zip(keys, shapes.items(), strict=True):
        limit = inputs**-0.5
        a = mx.random.uniform(-limit, limit, (settings.rank, inputs), key=key)
        layers[path] = LowRank(a, mx.zeros((outputs, settings.rank)), settings.scale)
    if settings.fine_tune_type == "dora":
        linear = dict(transformer.named_modules())
        return {path: with_magnitudes(low, linear[path]) for path, low in layers.items()}
    return layers


def check_rank(config: TransformerConfig, settings: TrainingSettings) -> None:
    """Raises InvalidInputError if a new adapter has a higher rank than a layer that it adapts."""
    for path, shape in adapted_layers(config, settings.targets).items():
        if settings.rank > min(shape):
            raise InvalidInputError(
                f"rank must be at most {min(shape)}, the width of {path}; got {settings.rank}"
            )


def adapted_layers(
    config: TransformerConfig, targets: Collection[str]
) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the blocks' layers whose paths end in one of `targets`, by path.

    Raises:
        InvalidInputError: no layer of the blocks has one of these names.
    """
    shapes, unknown = {}, set(targets)
    layers = linear_layers(CogVideoXTransformer3DModel(config))
    for path, shape in layers.items():
        named = {target for target in targets if f".{path}".endswith(f".{target}")}
        if named and path.startswith("transformer_blocks."):
            shapes[path] = shape
            unknown -= named
    if unknown:
        missing = sorted(unknown)
        blocks = (path for path in layers if path.startswith("transformer_blocks."))
        known = sorted({path.split(".", 2)[2] for path in blocks})
        raise InvalidInputError(
            f"the model's blocks have no layers {', '.join(name or repr('') for name in missing)}; "
            f"they have {', '.join(known)}"
        )
    return shapes
