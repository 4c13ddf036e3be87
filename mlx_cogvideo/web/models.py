"""The models that the page and the API offer, under names that are no paths."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import BUNDLED
from ..checkpoints.components import stored_quantization
from ..checkpoints.variants import ALIASES
from ..errors import CogVideoXError, InvalidInputError, did_you_mean
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.planned import open_to_plan
from .home import Home

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that can be chosen.

    Attributes:
        name: how it is chosen: a bundled model, a short name of an official one, or the name of a
            folder among the models.
        title: what pages call it.
        source: what a command gets as ``--model``.
        download: bytes that are still to download.
        bytes: of its weights, on this machine or after the download.
        takes_image: whether it makes videos of pictures, and needs one.
        scales_picture: whether the setting ``image_latent_scale`` is for it.
        has_one_size: whether it makes no other width and height.
        width, height, frames, fps: of its videos, unless others are asked for.
    """

    name: str
    title: str
    source: str
    download: int
    bytes: int
    takes_image: bool
    scales_picture: bool
    has_one_size: bool
    width: int
    height: int
    frames: int
    fps: float

    @property
    def is_here(self) -> bool:
        """Whether nothing is left to download."""
        return not self.download


def list_models(home: Home) -> list[Model]:
    """All models: those that can be used at once first. Folders that hold no model are left out."""
    sources = {name: name for name in (*BUNDLED, *ALIASES)}
    for folder in sorted(home.models.iterdir()):
        if folder.is_dir() and _NAME.fullmatch(folder.name) and folder.name not in sources:
            sources[folder.name] = str(folder)
    found = []
    for name, source in sources.items():
        try:
            found.append(_open(name, source))
        except CogVideoXError:
            continue
    return sorted(found, key=lambda model: not model.is_here)


def find_model(home: Home, name: str) -> Model:
    """A model by its name.

    Raises:
        InvalidInputError: there is none of this name.
        CheckpointError: its folder holds no model.
    """
    known = (*BUNDLED, *ALIASES)
    if name in known:
        return _open(name, name)
    folder = home.models / name
    if _NAME.fullmatch(name) and folder.is_dir():
        return _open(name, str(folder))
    others = [*known, *(path.name for path in home.models.iterdir() if path.is_dir())]
    raise InvalidInputError(f"there is no model {name[:80]!r}{did_you_mean(name, others)}")


def _open(name: str, source: str | Path) -> Model:
    pipe = open_to_plan(source)
    geometry = pipe.geometry()
    return Model(
        name=name,
        title=_title(name, pipe),
        source=str(source),
        download=pipe.to_download,
        bytes=sum(t.bytes for stored in pipe.stored.values() for t in stored.values()),
        takes_image=pipe.takes_image,
        scales_picture=pipe.takes_image and pipe.configs["vae"].invert_scale_latents,
        has_one_size=pipe.configs["transformer"].use_learned_positional_embeddings,
        width=geometry.width,
        height=geometry.height,
        frames=geometry.num_frames,
        fps=pipe.fps,
    )


def _title(name: str, pipe: CogVideoXPipeline) -> str:
    """Such as ``CogVideoX-5b, 4 bits``; a model that is no official one goes by its own name."""
    title = pipe.variant.name if pipe.variant is not None else name
    if not pipe.is_packed("transformer"):
        return title
    packed = stored_quantization(pipe.component("transformer"), pipe.stored["transformer"])
    return f"{title}, {min(each.bits for each in packed.values())} bits"
