"""The arguments of a pipeline's call as diffusers names them, for one video or several."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints.model_folder import ModelFolder
from ..errors import InvalidInputError
from .call import Call, PromptedSettings, prepare
from .fields import SEEDS, about, random_seed
from .resolved import ResolvedSettings
from .step_hook import TENSORS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class PipelineCall(Call):
    """The arguments of a pipeline's call beside its settings.

    Attributes:
        prompt_embeds: ``[1, text_length, text_embed_dim]`` in place of `prompt`; of several
            prompts, as many in place of 1.
        negative_prompt_embeds: the same in place of `negative_prompt`.
        latents: initial noise ``[1, frames, height, width, channels]`` in latents, 1.5's extra
            leading frame included; of several videos, as many in place of 1. These three may be
            arrays of NumPy or PyTorch, too.
        output_type: ``"np"`` for float32 frames in [0, 1], ``"uint8"``, ``"pil"`` for pictures of
            Pillow, ``"latent"`` for the final latents in float32, shaped like `latents`.
        callback_on_step_end: called after each step with its index, its timestep and the latents;
            returning False ends the denoising there, and leaves out the windows after it. A
            function of four arguments is called as in diffusers: the pipeline, the index, the
            timestep, and a dict with the latents, which it may return changed.
        callback_on_step_end_tensor_inputs: names in that dict; only ``"latents"``.
        on_progress: called with a stage's name, the steps done and their number.
        num_videos_per_prompt: videos to make of each prompt, one after another.
        generator: the seed in another form: an integer, a key of ``mx.random.key``, or a generator
            of PyTorch, whose seed is taken; or a list of one for each video.
        use_dynamic_cfg: True is ``dynamic_cfg="wave"``, False ``"constant"``.
        max_sequence_length: tokens of the prompt; only the model's own number.
        return_dict: False returns a tuple, of which the first is ``frames``.
        eta, timesteps, attention_kwargs: only their defaults, 0 and None.
    """

    # Wider types than those of a single video.
    prompt: str | list[str] | None = field(  # type: ignore[assignment]
        default=None, kw_only=False, metadata=about(PromptedSettings, "prompt")
    )
    negative_prompt: str | list[str] | None = field(  # type: ignore[assignment]
        default="", kw_only=False, metadata=about(PromptedSettings, "negative_prompt")
    )
    num_videos_per_prompt: int | None = 1
    generator: Any = None
    use_dynamic_cfg: bool | None = None
    callback_on_step_end_tensor_inputs: list[str] | None = None
    max_sequence_length: int | None = None
    return_dict: bool = True
    eta: float | None = 0.0
    timesteps: Any = None
    attention_kwargs: Any = None

    def prepared(self, model: ModelFolder) -> list[tuple[Call, ResolvedSettings]]:
        """The call and the settings of each video, in the order of the prompts, all checked.

        Raises:
            InvalidInputError: an argument can't be followed, or doesn't fit the number of videos.
        """
        self._check(model)
        prompts, copies = self._prompts(), self._copies()
        made: list[tuple[Call, ResolvedSettings]] = []
        for i, call in enumerate(self._calls(prompts, copies)):
            copied = i % copies > 0  # and checked before
            settings = replace(made[-1][1], seed=call.seed) if copied else prepare(model, call)
            made.append((call, settings))
        return made

    def _calls(self, prompts: list[str | None], copies: int) -> Iterator[Call]:
        count, negatives = len(prompts), self._negatives()
        if len(negatives) == 1:
            negatives *= count
        _check_count("negative_prompt", negatives, count)
        _check_count("prompt_embeds", self.prompt_embeds, count)
        _check_count("negative_prompt_embeds", self.negative_prompt_embeds, count)
        _check_count("latents", self.latents, count * copies)
        known = {f.name: getattr(self, f.name) for f in fields(Call)}
        if self.use_dynamic_cfg is not None:
            known["dynamic_cfg"] = self.use_dynamic_cfg
        for i, seed in enumerate(self._seeds(count * copies)):
            which = i // copies
            known["prompt"], known["negative_prompt"] = prompts[which], negatives[which]
            known["prompt_embeds"] = _row(self.prompt_embeds, which, count)
            known["negative_prompt_embeds"] = _row(self.negative_prompt_embeds, which, count)
            known["latents"] = _row(self.latents, i, count * copies)
            yield Call(**known | {"seed": seed})

    def _check(self, model: ModelFolder) -> None:
        """Raises InvalidInputError for an argument of diffusers that isn't supported."""
        length = model.configs["transformer"].max_text_seq_length
        tensors = self.callback_on_step_end_tensor_inputs
        for holds, words in (
            (self.max_sequence_length in (None, length), f"max_sequence_length is {length} here"),
            (not self.eta, "eta must be 0: the samplers of CogVideoX don't have it"),
            (self.timesteps is None, "timesteps can't be given: use num_inference_steps"),
            (self.attention_kwargs is None, "attention_kwargs: use set_adapters for LoRA scales"),
            (
                tensors is None
                or (isinstance(tensors, list | tuple) and all(name in TENSORS for name in tensors)),
                "callback_on_step_end_tensor_inputs can only have latents",
            ),
            (
                self.use_dynamic_cfg is None or self.dynamic_cfg is None,
                "use_dynamic_cfg is dynamic_cfg: give one of them",
            ),
            (
                self.generator is None or self.seed is None,
                "generator is seed: give one of them",
            ),
        ):
            if not holds:
                raise InvalidInputError(words)

    def not_recorded(self, own_schedule: bool) -> str:
        """What a video of this call depends on beside its settings, in words; "" is nothing."""
        arrays = ("prompt_embeds", "negative_prompt_embeds", "latents", "callback_on_step_end")
        beyond = [name for name in arrays if getattr(self, name) is not None]
        return ", ".join([*beyond, *(["the scheduler's configuration"] if own_schedule else [])])

    def _prompts(self) -> list[str | None]:
        if isinstance(self.prompt, list | tuple):
            if not self.prompt:
                raise InvalidInputError("prompt is an empty list: give a text, or a list of texts")
            return list(self.prompt)
        if self.prompt is None and self.prompt_embeds is not None and self.prompt_embeds.ndim == 3:
            return [None] * len(self.prompt_embeds)
        return [self.prompt]

    def _negatives(self) -> list[str]:
        given = self.negative_prompt
        return list(given) if isinstance(given, list | tuple) else [given or ""]

    def _copies(self) -> int:
        copies = 1 if self.num_videos_per_prompt is None else self.num_videos_per_prompt
        if not isinstance(copies, int) or copies < 1:
            raise InvalidInputError(f"num_videos_per_prompt must be 1 or more; got {copies!r}")
        return copies

    def _seeds(self, count: int) -> list[int | None]:
        """The seed of each video: that of the call and the numbers after it, or a list's own."""
        if isinstance(self.generator, list | tuple):
            _check_count("generator", self.generator, count)
            return [seed_of(generator) for generator in self.generator]
        first = self.seed if self.generator is None else seed_of(self.generator)
        if count == 1:
            return [first]
        first = random_seed() if first is None else first
        return [(first + i) % SEEDS for i in range(count)]


def seed_of(generator: Any) -> int:
    """The seed of a generator: an integer, a key of MLX, or a generator of PyTorch.

    Raises:
        InvalidInputError: it is none of these.
    """
    if isinstance(generator, int) and not isinstance(generator, bool):
        return generator
    if isinstance(generator, mx.array) and (generator.shape, generator.dtype) == ((2,), mx.uint32):
        high, low = (int(word) for word in np.array(generator))
        return ((high << 32) + low) % SEEDS
    if callable(getattr(generator, "initial_seed", None)):
        logger.warning("the generator gives its seed only: the noise is MLX's, not PyTorch's")
        return int(generator.initial_seed()) % SEEDS
    raise InvalidInputError(
        "generator must be an integer, a key of mx.random.key, or a generator of PyTorch; got "
        f"{type(generator).__name__}"
    )


def _check_count(name: str, given: Any, count: int) -> None:
    """Raises InvalidInputError unless there is one of them for each video or prompt."""
    if given is not None and count > 1 and len(given) != count:
        raise InvalidInputError(f"{name} must have {count} entries here; got {len(given)}")


def _row(array: mx.array | None, index: int, count: int) -> mx.array | None:
    """What an array has for one of several videos; of a single one, the array itself."""
    return array if array is None or count == 1 else array[index : index + 1]
