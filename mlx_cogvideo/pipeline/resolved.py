"""Settings with nothing left open, for one model."""

from dataclasses import dataclass, field, replace

from ..diffusion.division import ONE_PROCESS, Division
from ..diffusion.extrapolation import POINTS, held_arrays
from ..errors import InvalidInputError
from .fields import about
from .geometry import Geometry
from .settings import VideoSettings
from .sources import Source
from .vae_stage import Tiling


@dataclass(frozen=True)
class Preset:
    """The preset that settings come from.

    Attributes:
        name: of it.
        is_tuned: whether its steps were found for the model; else they are the usual ones.
    """

    name: str
    is_tuned: bool = False


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(VideoSettings):
    """Settings with nothing left open, for one model. ``CogVideoXPipeline.request`` makes them.

    Attributes:
        geometry: frames and size, and the shape of the latents.
        decoding: how the VAE decodes.
        source: what the video starts from beside noise.
        division: how processes divide the steps.
        recommended: names of the settings whose values the model recommends.
        preset_used: what the steps to compute come from, or None.
    """

    num_inference_steps: int = field(metadata=about(VideoSettings, "num_inference_steps"))
    guidance_scale: float = field(metadata=about(VideoSettings, "guidance_scale"))
    geometry: Geometry
    decoding: Tiling
    source: Source
    division: Division = field(default=ONE_PROCESS, compare=False)
    recommended: tuple[str, ...] = field(default=(), compare=False)
    preset_used: Preset | None = field(default=None, compare=False)

    @property
    def encodes_frames(self) -> bool:
        """Whether the VAE encodes something: what the video starts from, or continues."""
        return bool(self.extend) or not self.source.is_noise

    @property
    def encoding(self) -> Tiling:
        """How the VAE encodes what the video starts from; tiles are those of decoding."""
        if self.source.tiling == "tiled":
            return replace(self.decoding, mode="tiled")
        return Tiling(self.source.tiling)

    @property
    def guided(self) -> bool:
        """Whether steps are computed with and without the prompt."""
        return self.guidance_scale > 1

    @property
    def batch_parts(self) -> int:
        """Parts in which the batch of a guided step is computed: 2 take half the memory of 1."""
        return 2 if self.guided and self.sequential_guidance else 1

    @property
    def steps(self) -> int:
        """Steps that are taken. A video to start from replaces the first, noisiest ones."""
        strength = None if self.source.video is None else self.source.strength
        return steps_taken(self.num_inference_steps, strength)

    @property
    def steps_of_all_windows(self) -> int:
        """The sum of the steps; windows after the first take all of them."""
        return self.steps + self.extend * self.num_inference_steps

    @property
    def passes_of_all_windows(self) -> int:
        """Passes of the transformer in these steps, if no cache skips blocks."""
        windows = [self.steps, *[self.num_inference_steps] * self.extend]
        return sum(self._passes(steps) for steps in windows)

    def _passes(self, steps: int) -> int:
        """Passes of a window that takes the last `steps` of all."""
        first = self.num_inference_steps - steps
        begin, end = self.guidance_range or (0, steps)
        computed = {first, first + 1, *(self.computed_steps or ())}
        passes = 0
        for step in range(steps):
            count = 2 if self.guided and begin <= step < end else 1
            skips = self.computed_steps is not None and first + step not in computed
            passes += count - (held_arrays(self.cache, count) // POINTS if skips else 0)
        return passes

    @property
    def total_frames(self) -> int:
        """Frames of the whole video, of all windows."""
        frames = self.geometry.num_frames
        return frames + self.extend * (frames - (self.overlap or 0))

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        """Shape of the latents that are decoded, without the leading ones."""
        batch, frames, *rest = self.geometry.latent_shape
        return batch, frames - self.geometry.leading_latents, *rest


def check_steps(settings: ResolvedSettings) -> None:
    """Raises InvalidInputError where no step is left, or the guided ones don't exist."""
    if settings.steps < 1:
        raise InvalidInputError(
            f"strength {settings.source.strength:g} leaves none of "
            f"{settings.num_inference_steps} steps: raise one of them"
        )
    if settings.guidance_range is None:
        return
    if settings.extend and settings.source.video is not None:
        raise InvalidInputError(
            "guidance_range can't be given for a video that starts from another one and is "
            "extended: its windows take different numbers of steps"
        )
    if not settings.guided:
        raise InvalidInputError("guidance_range needs a guidance_scale above 1")
    given = settings.guidance_range
    whole = len(given) == 2 and all(isinstance(step, int) for step in given)
    if not (whole and 0 <= given[0] < given[1] <= settings.steps):
        raise InvalidInputError(
            f"guidance_range must be two steps from 0 to {settings.steps}, the second above "
            f"the first; got {', '.join(map(str, given))}"
        )


def steps_taken(num_inference_steps: int, strength: float | None) -> int:
    """Steps that are taken with a video of that strength, or with None of them."""
    return num_inference_steps if strength is None else int(num_inference_steps * strength)
