"""The options of the model that makes videos, which ``generate`` and ``tune`` share."""

from collections.abc import Mapping
from typing import Any

from ..checkpoints import BUNDLED
from ..checkpoints.variants import ALIASES
from ..runs.settings import RunSettings
from .common import BASE, Bits, WithScale
from .options import add_setting, named


def add_model_options(groups: Mapping[str, Any]) -> None:
    """Adds the options of the model that makes videos, and of what changes it.

    Args:
        groups: of the parser's options, by name; see `add_settings`.
    """
    add_setting(
        groups["sampling"].add_argument,
        RunSettings,
        "lora",
        nargs="+",
        action=WithScale,
        type=str,
    )
    add = groups["what"].add_argument
    add(
        "--model",
        type=named,
        help=f"Folder, hub id, {', '.join(BUNDLED)}, or {', '.join(ALIASES)}. Default: the folder "
        "mlx_model if it exists, else the bundled demo.",
    )
    add("--base", type=named, metavar="MODEL", help=f"{BASE} Default: none.")
    add_setting(groups["memory"].add_argument, RunSettings, "quantize", action=Bits)
