"""What denoising starts from besides noise: a picture's latents, a clip's, or those of a window.

The tasks differ in this alone. A picture's latents stand beside the noisy ones in every step; noise
is added to a clip's latents in the beginning; the first latents of a window that continues another
stay what they are.
"""

from dataclasses import dataclass, fields

import mlx.core as mx

from .schedulers import Scheduler


@dataclass(frozen=True)
class Conditioning:
    """Latents that a run is given besides noise.

    Attributes:
        image_latents: ``[1, f, h, w, c]``, scaled; zeros but for the first frame.
        start: scaled latents ``[1, f, h, w, c]`` that noise is added to in the beginning.
        prefix: scaled latents of the first frames ``[1, f, h, w, c]``, which are to stay: in each
            step they have the noise of that step.
    """

    image_latents: mx.array | None = None
    start: mx.array | None = None
    prefix: mx.array | None = None

    def first_latents(self, scheduler: Scheduler, noise: mx.array, timestep: int) -> mx.array:
        """The latents of the first step: noise, or a clip with noise added."""
        if self.start is not None:
            return scheduler.add_noise(self.start, noise, timestep)
        return self.hold(scheduler, noise, noise, timestep)

    def hold(
        self, scheduler: Scheduler, latents: mx.array, noise: mx.array, timestep: int | None
    ) -> mx.array:
        """Latents with the prefix in its place, at the noise of a timestep; None has no noise."""
        if self.prefix is None:
            return latents
        kept, count = self.prefix, self.prefix.shape[1]
        if timestep is not None:
            kept = scheduler.add_noise(kept, noise[:, :count], timestep)
        return mx.concatenate([kept, latents[:, count:]], axis=1)

    def beside(self, latents: mx.array) -> mx.array:
        """Latents as the transformer takes them: with the picture's behind their channels."""
        if self.image_latents is None:
            return latents
        return mx.concatenate([latents, self.image_latents], axis=-1)

    def arrays(self) -> dict[str, mx.array]:
        """The arrays that aren't None, by name."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}


def place_image(latents: mx.array, frames: int) -> mx.array:
    """Puts a picture in the first of `frames` latent frames, and zeros in the others.

    With 1.5's leading frame the first one is the picture's place, too.

    Args:
        latents: ``[B, 1, h, w, c]``, scaled.

    Returns:
        ``[B, f, h, w, c]``.
    """
    batch, _, *rest = latents.shape
    return mx.concatenate([latents, mx.zeros((batch, frames - 1, *rest), latents.dtype)], axis=1)


def with_leading(latents: mx.array, count: int) -> mx.array:
    """Adds `count` copies of the first latent frame in front, as 1.5's temporal patches need."""
    return mx.concatenate([latents[:, :1]] * count + [latents], axis=1) if count else latents
