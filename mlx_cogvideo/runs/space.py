"""The room on the disk that the saved runs of a plan need."""

from collections.abc import Iterable
from math import prod
from pathlib import Path

from ..device import Need
from ..diffusion.extrapolation import held_arrays
from ..nn.config import TransformerConfig
from .resumable import VideoJob


def saved_needs(config: TransformerConfig, jobs: Iterable[VideoJob]) -> list[Need]:
    """The room that each folder of saved runs needs."""
    needs: dict[Path, int] = {}
    for job in jobs:
        settings = job.settings
        embeds = config.max_text_seq_length * config.text_embed_dim * (1 + settings.guided)
        # Latents, x0 and what a cache holds, twice for the moment in which one save takes the place
        # of another. What it starts from, and the windows before the last, come on top.
        held = held_arrays(settings.cache, 1 + settings.guided)
        arrays = 2 * (2 + held) + 4 * (not settings.source.is_noise) + settings.extend
        latents = arrays * prod(settings.geometry.latent_shape)
        before = needs.setdefault(job.path.parent, 4 * (embeds + latents))
        needs[job.path.parent] = before + 4 * embeds
    return [
        Need(folder, count, "the saved run", "choose another --output")
        for folder, count in needs.items()
    ]
