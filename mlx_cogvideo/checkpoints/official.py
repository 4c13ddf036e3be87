"""The official models without their files: configurations, tensors and sizes of the downloads.

What they say is what the folders of the hub hold, so that a run can be planned before a download.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten

from ..errors import CheckpointError, NotDownloadedError
from .component_files import COMPONENT_STEMS, component_files
from .components import upstream_shape
from .networks import make_network
from .resolve import (
    COMPONENTS,
    Base,
    cached_repository,
    hub_id,
    missing_components,
    resolve_base,
    resolve_model,
)
from .sat_configs import sat_configurations
from .tensor_files import TensorInfo
from .variants import NAMES, VARIANTS, Variant

_ROTARY = {"use_rotary_positional_embeddings": True}
_V1_5 = _ROTARY | {"patch_bias": False, "sample_frames": 81}
_TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    "2b": {},
    "5b": _ROTARY,
    "5b-i2v": _ROTARY | {"use_learned_positional_embeddings": True},
    "1.5-5b": _V1_5 | {"sample_height": 300, "sample_width": 300},
    "1.5-5b-i2v": _V1_5 | {"sample_height": 96, "sample_width": 170, "ofs_embed_dim": 512},
}
"""Entries of each transformer's ``config.json`` beside its variant's architecture and diffusers'
defaults."""

_TYPES = {"2b": "F16"}
"""Type of a model's weights where it isn't bfloat16."""
# An assumption, not checked on the hub: 1.5 is stored as the official converter writes it, which
# keeps the VAE in float32, and T5 too without --typecast_text_encoder. Before a download, the sizes
# that the hub reports are used instead.
_FLOAT32 = {("1.5-5b", "text_encoder"), ("1.5-5b", "vae")}
_FLOAT32 |= {("1.5-5b-i2v", name) for _, name in _FLOAT32}

_SMALL = {"tokenizer": 800_000, "scheduler": 500}
"""Bytes of the components that aren't networks."""


@dataclass(frozen=True)
class NotDownloaded:
    """An official model whose files aren't all in the hub's cache.

    Attributes:
        folder: its folder in the cache, which has no components.
        bytes: to download for each component.
    """

    variant: Variant
    folder: Path
    bytes: Mapping[str, int]


def official_variant(model: str | Path) -> Variant | None:
    """The official model that a name refers to, or None.

    Raises:
        ModelNotFoundError: as `hub_id`.
    """
    return NAMES.get((hub_id(model) or "").lower())


def official_config(variant: Variant, component: str) -> dict[str, Any]:
    """The ``config.json`` of a network, or the ``scheduler_config.json``, with what isn't default.

    Args:
        component: a network's name or ``"scheduler"``.
    """
    transformer = {**variant.architecture, **_TRANSFORMERS[variant.alias]}
    rotary = "use_rotary_positional_embeddings" in transformer
    transformer.setdefault("out_channels", 16)
    if component == "scheduler":
        transformer.setdefault("use_rotary_positional_embeddings", False)
        return sat_configurations(transformer)["scheduler/scheduler_config.json"]
    deep = transformer["patch_size_t"] is not None
    vae = {"scaling_factor": 0.7, "invert_scale_latents": deep} if rotary else {}
    return {"transformer": transformer, "vae": vae, "text_encoder": {}}[component]


def official_tensors(variant: Variant, network: str) -> dict[str, TensorInfo]:
    """The tensors of a network by name, as they are stored."""
    return dict(_tensors(variant.alias, network))


@cache
def _tensors(alias: str, network: str) -> Mapping[str, TensorInfo]:
    (variant,) = (variant for variant in VARIANTS if variant.alias == alias)
    stored = "F32" if (alias, network) in _FLOAT32 else _TYPES.get(alias, "BF16")
    parameters = make_network(network, official_config(variant, network)).parameters()
    return {
        name: TensorInfo(stored, upstream_shape(parameter.shape))
        for name, parameter in tree_flatten(parameters)
    }


def official_bytes(variant: Variant, component: str) -> int:
    """The size of a component's files; their headers and configurations aren't counted."""
    if component in _SMALL:
        return _SMALL[component]
    return sum(tensor.bytes for tensor in official_tensors(variant, component).values())


def not_downloaded(
    model: str | Path, revision: str | None = None, needed: Collection[str] = COMPONENTS
) -> NotDownloaded | None:
    """What the hub's cache lacks of an official model; asks no server.

    Args:
        model, revision: as for `resolve_model`.
        needed: the components that are needed.

    Returns:
        None if all of them are there, or if the model isn't an official one.

    Raises:
        ModelNotFoundError: as `resolve_model`.
    """
    variant = official_variant(model)
    if variant is None:
        return None
    folder = cached_folder(model, revision)
    sizes = {name: _missing(folder, variant, name) for name in needed}
    if not any(sizes.values()):
        return None
    return NotDownloaded(variant, cached_repository(str(hub_id(model))), sizes)


def find_parts(
    model: str | Path,
    revision: str | None = None,
    base: str | Path | None = None,
    base_revision: str | None = None,
) -> tuple[Path, Base | None, NotDownloaded | None]:
    """Finds the parts of a model without downloading any; asks no server.

    Args:
        model, revision, base, base_revision: as for `resolve_model` and `resolve_base`.

    Returns:
        The model's folder, its base, and what the cache lacks of that of them which is official.

    Raises:
        NotDownloadedError: another model of the hub isn't in the cache.
        ModelNotFoundError, InvalidInputError: as `resolve_model` and `resolve_base`.
    """
    if base is None:
        missing = not_downloaded(model, revision)
        if missing is not None:
            return missing.folder, None, missing
        return resolve_model(model, revision, download=False), None, None
    folder = resolve_model(model, revision, download=False)
    missing = not_downloaded(base, base_revision, missing_components(folder))
    if missing is not None:
        return folder, Base(str(base), missing.folder), missing
    return folder, resolve_base(base, folder, base_revision, download=False), None


def cached_folder(model: str | Path, revision: str | None = None) -> Path | None:
    """The folder of a model, in the hub's cache if it is of the hub; None if it isn't there."""
    try:
        return resolve_model(model, revision, download=False)
    except NotDownloadedError:
        return None


def is_whole(folder: Path, component: str) -> bool:
    """Whether all files of a component are in a folder, by their names."""
    if component not in COMPONENT_STEMS:
        return (folder / component).is_dir()
    with suppress(CheckpointError):
        return (
            bool(component_files(folder / component))
            and (folder / component / "config.json").is_file()
        )
    return False


def _missing(folder: Path | None, variant: Variant, component: str) -> int:
    """Bytes of a component that a folder lacks."""
    if folder is None:
        return official_bytes(variant, component)
    if is_whole(folder, component):
        return 0
    files = (folder / component).glob("*.safetensors")
    here = sum(file.stat().st_size for file in files if file.is_file())
    return max(1, official_bytes(variant, component) - here)
