"""Settings that a model's folder recommends for its videos."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..nn.config import Config
from ..nn.config_fields import choice, number, wrong
from .json_files import read_config

KEY = "_mlx_cogvideo"
"""Key of ``model_index.json``: the settings by name. diffusers ignores keys that begin with "_"."""


@dataclass(frozen=True)
class RecommendedSettings(Config):
    """The settings of a video that a folder may recommend; None recommends nothing.

    They only choose how to sample. A folder may be a stranger's: none of them names a file.
    """

    num_inference_steps: int | None = number(None, 1, 1000)
    guidance_scale: float | None = number(None, 0, 1000)
    dynamic_cfg: str | None = choice(None, "constant", "wave", "cosine")
    scheduler: str | None = choice(None, "ddim", "dpm", "dpm++")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RecommendedSettings":
        """Takes the settings of a JSON file.

        Raises:
            ValueError: as on creation, or a setting is none of these.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(values.keys() - set(known)):
            raise ValueError(f"{unknown[0][:60]} isn't one of {', '.join(known)}")
        return cls(**values)


def read_recommended(index: Path) -> dict[str, Any]:
    """The settings that a ``model_index.json`` recommends, by name.

    Raises:
        CheckpointError: the file is no JSON object, or a setting isn't known or out of its range.
    """
    values = read_config(index).get(KEY, {})
    try:
        if not isinstance(values, dict):
            raise wrong(KEY, "an object of settings", values)
        found = RecommendedSettings.from_dict(values)
    except ValueError as error:
        raise CheckpointError(f"{index}: {KEY}: {error}") from None
    return {name: value for name, value in vars(found).items() if value is not None}
