"""Names of diffusers' pipelines: what they do here, or a word where there is nothing to do."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import mlx.core as mx

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.schedulers import Scheduler, make_scheduler, scheduler_name
from ..errors import InvalidInputError
from ..nn.config import SchedulerConfig

logger = logging.getLogger(__name__)


class DiffusersNames(ModelFolder):
    """A model folder with methods that are called as those of diffusers' pipelines.

    Attributes:
        has_own_schedule: whether the sampler's configuration isn't the model's any more.
    """

    has_own_schedule = False

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Does nothing: MLX computes on the default device, and `dtype` is chosen on opening."""
        _nothing_to_do("to()", "MLX computes on the Mac's GPU")
        return self

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: each stage frees its network."""
        _nothing_to_do("enable_model_cpu_offload()", "each stage frees its network")

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: each stage frees its network, and a quantized model needs less memory."""
        _nothing_to_do("enable_sequential_cpu_offload()", "each stage frees its network")

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Does nothing: there is no progress bar; `on_progress` of a call reports progress."""
        _nothing_to_do("set_progress_bar_config()", "there is no bar; see on_progress")

    @property
    def scheduler(self) -> Scheduler:
        """The sampler of calls that don't name one; its noise comes from a call's seed."""
        name = scheduler_name(self.recommended.get("scheduler"), self.scheduler_config)
        return make_scheduler(name, self.scheduler_config, mx.random.key(0))

    @scheduler.setter
    def scheduler(self, given: Scheduler) -> None:
        if not isinstance(given, Scheduler):
            raise InvalidInputError(
                "scheduler must be a CogVideoXDDIMScheduler, CogVideoXDPMScheduler or "
                "CogVideoXDPMPlusPlusScheduler of mlx_cogvideo; got "
                f"{type(given).__module__}.{type(given).__name__}"
            )
        config = given.to_config()
        self.recommended = {**self.recommended, "scheduler": scheduler_name(None, config)}
        before = SchedulerConfig.from_dict(self.scheduler_config)
        self.has_own_schedule = self.has_own_schedule or given.config != before
        self.scheduler_config = config

    def load_lora_weights(
        self,
        source: str | Path,
        *,
        weight_name: str | None = None,
        adapter_name: str | Sequence[str] | None = None,
        subfolder: str | None = None,
    ) -> None:
        """Adds a LoRA adapter at weight 1; see ``load_lora``, which takes the weight, too.

        Args:
            source: a file, a folder or a hub id.
            weight_name: name of the file in that folder or repository.
            adapter_name: what ``set_adapters`` calls it, also as a list of one name; None is
                ``default_0`` and so on.
            subfolder: folder of the file in that repository.

        Raises:
            InvalidInputError, ModelNotFoundError, CheckpointError: as ``load_lora``.
        """
        names = [None] if adapter_name is None else _names("adapter_name", adapter_name)
        if len(names) != 1:
            raise InvalidInputError(f"adapter_name must be one name; got {adapter_name!r}")
        parts = [str(source), *filter(None, (subfolder, weight_name))]
        self.load_lora("/".join(parts), name=names[0])

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float] | None = None,
    ) -> None:
        """Uses these adapters, at these weights, and no others; None is a weight of 1.

        Raises:
            InvalidInputError: no adapter has such a name, or a weight isn't a number.
        """
        names = _names("adapter_names", adapter_names)
        weights = 1.0 if adapter_weights is None else adapter_weights
        scales = list(weights) if isinstance(weights, Sequence) else [weights] * len(names)
        self.adapter_set.choose(names, [1.0 if scale is None else scale for scale in scales])
        self.reload_transformer()

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that are used and not fused."""
        return self.adapter_set.active

    def fuse_lora(self, components: Any = None, lora_scale: float = 1.0) -> None:
        """Multiplies the weights of the adapters, and keeps them until ``unfuse_lora``.

        They stay beside the model's weights: nothing is rounded, and no time is saved.

        Raises:
            InvalidInputError: `lora_scale` isn't a finite number.
        """
        self.adapter_set.fuse(lora_scale)
        self.reload_transformer()

    def unfuse_lora(self, components: Any = None) -> None:
        """Uses the adapters again as before ``fuse_lora``."""
        self.adapter_set.unfuse()
        self.reload_transformer()

    def unload_lora_weights(self) -> None:
        """Removes all adapters but those that ``fuse_lora`` keeps."""
        self.adapter_set.unload()
        self.reload_transformer()


def _names(argument: str, given: Any) -> list[str]:
    """Names that are given as one text or as a list of texts.

    Raises:
        InvalidInputError: they are neither.
    """
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidInputError(f"{argument} must be a text or a list of texts; got {given!r}")
    return list(names)


def _nothing_to_do(call: str, why: str) -> None:
    logger.warning("%s has nothing to do here: %s", call, why)
