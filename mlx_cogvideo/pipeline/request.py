"""What is asked of a model: the settings of a run, checked before it starts."""

from dataclasses import dataclass, replace
from typing import Any

from ..diffusion.schedulers import Scheduler
from ..errors import InvalidInputError
from .geometry import Geometry
from .sources import Source
from .vae_stage import Tiling


@dataclass(frozen=True)
class Request:
    """A video to make, with every setting in effect: nothing is left to a default.

    Made by ``CogVideoXPipeline.request``, which also says what the fields mean.
    """

    prompt: str | None
    negative_prompt: str
    geometry: Geometry
    num_inference_steps: int
    guidance_scale: float
    dynamic_cfg: str
    scheduler: str | Scheduler
    seed: int
    tiling: Tiling
    source: Source
    uncond: str
    guidance_range: tuple[int, int] | None
    extend: int
    overlap: int
    cache: str | None
    cache_threshold: float | None
    sequential_guidance: bool

    @property
    def encodes_frames(self) -> bool:
        """Whether the VAE encodes something: what the video starts from, or goes on from."""
        return bool(self.extend) or not self.source.is_noise

    @property
    def source_tiling(self) -> Tiling:
        """How the VAE takes what the video starts from: where in tiles, in those of decoding."""
        if self.source.tiling == "tiled":
            return replace(self.tiling, mode="tiled")
        return Tiling(self.source.tiling)

    @property
    def guided(self) -> bool:
        """Whether steps are computed with and without the prompt."""
        return self.guidance_scale > 1

    @property
    def steps(self) -> int:
        """Steps that are taken: with a video to start from, not the first, noisiest ones."""
        strength = None if self.source.video is None else self.source.strength
        return steps_taken(self.num_inference_steps, strength)

    @property
    def steps_of_all_windows(self) -> int:
        """The sum; windows that go on take all steps."""
        return self.steps + self.extend * self.num_inference_steps

    def guides(self, step: int) -> bool:
        """Whether a step, counted from 0, is computed without the prompt, too."""
        first, end = self.guidance_range or (0, self.steps)
        return self.guided and first <= step < end

    @property
    def total_frames(self) -> int:
        """Frames of the whole video, which may be of several windows."""
        frames = self.geometry.num_frames
        return frames + self.extend * (frames - self.overlap)

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Shape of the latents that are decoded: without the leading ones."""
        batch, frames, *rest = self.geometry.latent_shape
        return batch, frames - self.geometry.leading_latents, *rest

    def check_steps(self) -> None:
        """Raises InvalidInputError where no step is left, or those of the guidance aren't there."""
        if self.steps < 1:
            raise InvalidInputError(
                f"strength {self.source.strength:g} leaves none of {self.num_inference_steps} "
                "steps: raise one of them"
            )
        if self.guidance_range is not None:
            if self.extend and self.source.video is not None:
                raise InvalidInputError(
                    "guidance_range can't be told for a video that starts from another and goes "
                    "on: its windows take other numbers of steps"
                )
            if not self.guided:
                raise InvalidInputError("guidance_range needs a guidance_scale above 1")
            told = self.guidance_range
            whole = len(told) == 2 and all(isinstance(step, int) for step in told)
            if not (whole and 0 <= told[0] < told[1] <= self.steps):
                raise InvalidInputError(
                    f"guidance_range must be two steps from 0 to {self.steps}, the second above "
                    f"the first; got {', '.join(map(str, told))}"
                )

    def settings(self) -> dict[str, Any]:
        """The arguments of ``CogVideoXPipeline.request`` that give this again, fit for JSON."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_frames": self.geometry.num_frames,
            "height": self.geometry.height,
            "width": self.geometry.width,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "dynamic_cfg": self.dynamic_cfg,
            "scheduler": self.scheduler,
            "seed": self.seed,
            "uncond": self.uncond,
            "guidance_range": self.guidance_range and list(self.guidance_range),
            "sequential_guidance": self.sequential_guidance,
            **(
                {"cache": self.cache, "cache_threshold": self.cache_threshold} if self.cache else {}
            ),
            **({"extend": self.extend, "overlap": self.overlap} if self.extend else {}),
            **self.source.settings(),
            **({"source_tiling": self.source.tiling} if self.encodes_frames else {}),
            **self.tiling.settings(),
        }


def steps_taken(num_inference_steps: int, strength: float | None) -> int:
    """How many of the steps are taken with a video of that strength, or None of them."""
    return num_inference_steps if strength is None else int(num_inference_steps * strength)
