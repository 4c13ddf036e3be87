"""Settings in the place of others: what a new value of one means for those that depend on it."""

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInputError
from .fields import settings_of
from .settings import VideoSettings


def override(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings with given ones in their place; what belonged to a replaced one goes.

    Args:
        recorded: names and values; those of other classes of settings stay.
    """
    given = dict(given)
    parts = {name: about.belongs_to for name, about in settings_of(VideoSettings).items()}
    if "tiling" not in given and any(parts.get(name) == "tiling" for name in given):
        given["tiling"] = "tiled"
    given_by = {name for owner in given for name in decided_by(owner)}
    reset = {name for name, owner in parts.items() if owner in given or owner in given_by}
    reset |= given_by
    if "guidance_scale" in given and given["guidance_scale"] <= 1:
        reset.add("guidance_range")
    if given.get("num_inference_steps", recorded.get("num_inference_steps")) != recorded.get(
        "num_inference_steps"
    ):
        reset.add("computed_steps")
    return {name: value for name, value in recorded.items() if name not in reset} | given


def check_presets(given: Mapping[str, Any]) -> None:
    """Raises InvalidInputError where a preset is given, and what it decides as well."""
    if given.get("preset") is None:
        return
    for name in decided_by("preset"):
        if given.get(name) is not None:
            raise InvalidInputError(f"preset and {name} say how much is computed: give one of them")


def decided_by(name: str) -> tuple[str, ...]:
    """The settings that a setting, if it is one of a video, gives their values."""
    about = settings_of(VideoSettings).get(name)
    return () if about is None else about.decides
