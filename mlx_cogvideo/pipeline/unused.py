"""Settings that are given and have no effect, or probably not the wanted one.

They are reported rather than refused, so that a recorded run with such a setting can be repeated.
"""

from collections.abc import Collection, Iterator

from ..checkpoints.model_configurations import ModelConfigurations
from .resolved import ResolvedSettings

FEWEST_STEPS = 7
"""Steps to compute of which fewer have spoilt videos of the demo."""


def without_effect(
    model: ModelConfigurations,
    given: Collection[str],
    settings: ResolvedSettings,
    *,
    decodes: bool = True,
) -> Iterator[str]:
    """Describes each given setting that has no effect, and what may spoil the video.

    Args:
        given: names of the settings that were asked for.
        settings: what they became for the model.
        decodes: whether latents become frames.
    """
    guided, source = settings.guided, settings.source
    guidance = guided, "guidance_scale is at most 1"
    tiles = decodes or settings.encodes_frames, "no frames are computed"
    if settings.vae == "tiny" and not settings.encodes_frames:
        tiles = False, "the tiny decoder computes frames whole"
    reasons = {
        "negative_prompt": guidance,
        "negative_prompt_embeds": guidance,
        "uncond": guidance,
        "dynamic_cfg": (guided or settings.dynamic_cfg == "constant", guidance[1]),
        "sequential_guidance": (guided or not settings.sequential_guidance, guidance[1]),
        "cache": (guided or settings.cache != "guidance", guidance[1]),
        "image_fit": (
            source.needs_fit(settings.geometry.height, settings.geometry.width),
            "pixels have the size of the video already",
        ),
        "image_latent_scale": (
            model.configs["vae"].invert_scale_latents,
            "it is for models of version 1.5",
        ),
        "tiling": tiles,
        "tile_size": tiles,
        "tile_overlap": tiles,
        "vae": (decodes or settings.vae == "full", "no frames are decoded"),
    }
    for name, (applies, reason) in reasons.items():
        if name in given and not applies:
            yield f"{name} has no effect: {reason}"
    yield from _few_steps(settings)


def _few_steps(settings: ResolvedSettings) -> Iterator[str]:
    """Describes a list of so few steps to compute that the video may break."""
    if settings.cache == "latents" and len(settings.computed_steps or ()) < FEWEST_STEPS:
        computed, steps = len(settings.computed_steps or ()), settings.num_inference_steps
        yield (
            f"only {computed} of {steps} steps are computed: with fewer than {FEWEST_STEPS} the "
            "video often breaks; take more steps, or compute more of them"
        )
